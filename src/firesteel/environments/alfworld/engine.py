"""ALFWorld's engine with states that can be kept: a `Position` is immutable, and any number of them share one planner.

What TextWorld computes anew in every step is computed once for a game: the translation of its PDDL, the reading of its
grammar, and the command of each operator. Texts and commands are the same, character by character.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from firesteel.environments.alfworld.games import Game
from firesteel.environments.alfworld.grammar import (
    Entity,
    Facts,
    Given,
    Grammar,
    Literal,
    Scene,
    Symbol,
    Things,
    Value,
    Wording,
    parse_grammar,
    parse_symbols,
)
from firesteel.environments.alfworld.planner import (
    Atom,
    Operator,
    Planner,
    Translation,
    find_plan,
    translate,
)
from firesteel.environments.alfworld.plans import goal_text, reduced_problem
from firesteel.errors import TaskError

NOTHING_HAPPENS = "Nothing happens."

_ESCAPES = {"_bar_": "|", "_minus_": "-", "_plus_": "+", "_dot_": ".", "_comma_": ","}
_INTRODUCTION = parse_symbols("#intro#")


@dataclass(frozen=True, slots=True)
class Position:
    """A state of a game: the planner's number for it, what holds, and what each command would do."""

    state: int
    facts: Facts
    operators: Mapping[str, Operator]
    commands: tuple[str, ...]
    is_won: bool


class Rules:
    """What never changes in a game; shared by all that play it."""

    def __init__(self, game: Game) -> None:
        self.name = game.name
        try:
            self.grammar: Grammar = parse_grammar(game.grammar)
        except TaskError as error:
            raise TaskError(f"{game.name}: {error}") from error
        self.translation: Translation = translate(game.domain, game.problem, game.name)
        self.parameters = {
            name: tuple((variable, kind) for variable, kind in pairs)
            for name, pairs in self.translation.parameters.items()
        }
        self.fixed_facts: list[Atom] = [(name, tuple(arguments)) for name, *arguments in self.translation.facts]
        self.goal = goal_text(game.problem)
        self._commands: dict[str, str] = {}
        self.things = Things({}, _members(self.translation))

    def meet(self, facts: Iterable[Atom]) -> None:
        """Names everything that the facts mention."""
        if not self.things.entities:
            names = names_of({entity for _, arguments in facts for entity in arguments})
            self.things = Things({id: Entity(id, name) for id, name in names.items()}, self.things.members)

    def scene(self, operator: Operator, facts: Facts) -> tuple[Wording, Scene]:
        """An operator's wording, and the scene in which its action's variables stand for its arguments."""
        action, *arguments = operator.name.split()
        wording = self.grammar.actions.get(action)
        if wording is None or action not in self.parameters:
            raise TaskError(f"{self.name}: its grammar has no action '{action}', which its rules have")
        # An action with conditions of its own has further parameters, which are no arguments.
        return wording, Scene(facts, self.things, dict(zip(self.parameters[action], arguments, strict=False)))

    def command(self, operator: Operator, facts: Facts) -> str:
        """What to type for an operator; kept where it cannot change during the game."""
        found = self._commands.get(operator.name)
        if found is None:
            wording, scene = self.scene(operator, facts)
            found = self.grammar.write(wording.command, scene)
            if self._is_fixed(wording.command):
                self._commands[operator.name] = found
        return found

    def _is_fixed(self, symbols: Iterable[Symbol]) -> bool:
        def is_fixed(symbol: Symbol) -> bool:
            if isinstance(symbol, Given):
                changing = self.translation.changing
                return isinstance(symbol.expression, Value) and all(
                    condition.predicate.removeprefix("not_") not in changing for condition in symbol.query
                )
            return isinstance(symbol, Literal)

        return all(map(is_fixed, symbols))


@lru_cache(maxsize=64)
def rules_of(game: Game) -> Rules:
    """The rules of a game; those of the games used last are kept."""
    return Rules(game)


class Engine:
    """A game in a planner, shared by all environments of the process that play it; `open_engine` counts them."""

    def __init__(self, game: Game, planner: Planner) -> None:
        self.game = game
        self.users = 0
        self.planner = planner
        self.rules = rules_of(game)
        planner.load(self.rules.translation.sas)
        facts = [*self.rules.fixed_facts, *planner.facts()]
        self.rules.meet(facts)
        held: dict[str, set[tuple[str, ...]]] = {}
        for name, arguments in facts:
            held.setdefault(name, set()).add(arguments)
        self.start = self._position({name: tuple(sorted(rows)) for name, rows in held.items()})

    def introduction(self) -> str:
        """What TextWorld says before the first step: a welcome, the room, and the task."""
        return self.rules.grammar.write(_INTRODUCTION, Scene(self.start.facts, self.rules.things, {}))

    def play(self, position: Position, command: str) -> tuple[Position, str]:
        """Plays a command from a position; one that is not among its commands changes nothing."""
        operator = position.operators.get(command.strip())
        if operator is None:
            return position, NOTHING_HAPPENS
        self.planner.go_to(position.state)
        after = self._position(_changed(position.facts, self.planner.apply(operator)))
        wording, scene = self.rules.scene(operator, after.facts)
        return after, self.rules.grammar.write(wording.feedback, scene)

    def plan(self, position: Position) -> tuple[str, ...] | None:
        """The planner's commands from a position to the goal; None where it finds none that reaches it.

        It is asked for a way through what the goal needs and nothing else (see `plans`); its answer is played here.
        """
        rules = self.rules
        problem = reduced_problem(rules.translation, position.facts, rules.goal)
        commands = []
        for name in find_plan(self.game.domain, problem, rules.name):
            self.planner.go_to(position.state)
            operator = next((each for each in self.planner.operators() if each.name == name), None)
            if operator is None:
                return None
            commands.append(rules.command(operator, position.facts))
            position, _ = self.play(position, commands[-1])
        return tuple(commands) if position.is_won else None

    def _position(self, facts: Facts) -> Position:
        """The planner's current state, in which `facts` hold."""
        operators: dict[str, Operator] = {}
        for operator in self.planner.operators():
            operators.setdefault(self.rules.command(operator, facts), operator)
        return Position(self.planner.state, facts, operators, tuple(sorted(operators)), self.planner.is_won())


def _changed(facts: Facts, effects: Iterable[tuple[Atom, bool]]) -> Facts:
    """The facts after some effects; what became false is kept as "not_...", which grammars ask for."""
    changed = dict(facts)
    for (name, arguments), is_true in effects:
        added, removed = (name, f"not_{name}") if is_true else (f"not_{name}", name)
        changed[removed] = tuple(row for row in changed.get(removed, ()) if row != arguments)
        changed[added] = tuple(sorted({*changed.get(added, ()), arguments}))
    return changed


def _members(translation: Translation) -> dict[str, frozenset[str]]:
    """The objects of every type, those of its subtypes included."""
    kinds = translation.types
    return {
        kind: frozenset(
            thing for thing, own in translation.objects.items() if own == kind or kind in kinds.get(own, ())
        )
        for kind in kinds
    }


def names_of(ids: Iterable[str]) -> dict[str, str]:
    """Names as ALFWorld gives them: "mug_bar_..." becomes "mug 2". The first id of a kind gets the last number.

    What is no thing of the room ("agent1") keeps its name, with a blank behind it.
    """
    kinds = {}
    for id in sorted(ids):
        kind, bar, _ = id.partition("_bar_")
        kinds[id] = kind + ("basin" if bar and "basin" in id else "") if bar else None
    left = Counter(kind for kind in kinds.values() if kind is not None)
    names = {}
    for id, named in kinds.items():
        if named is None:
            names[id] = f"{_unescaped(id)} "
            continue
        names[id] = f"{_unescaped(named)} {left[named]}"
        left[named] -= 1
    return names


def _unescaped(text: str) -> str:
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    return text


# --- sharing --------------------------------------------------------------------------------------------------

_in_use: dict[Game, Engine] = {}
_spare: list[Planner] = []


def open_engine(game: Game) -> Engine:
    """The engine of a game, with one more user."""
    engine = _in_use.get(game)
    if engine is None:
        rules_of(game)  # whatever is wrong with the game is found before a planner is taken
        # A planner remembers every state that was visited, and forgets them with the next load.
        engine = _in_use[game] = Engine(game, _spare.pop() if _spare else Planner())
    engine.users += 1
    return engine


def close_engine(engine: Engine) -> None:
    """One user less; the last one leaves the planner to the next game.

    Planners stay in memory (about 1.5 MB each): where a copy of the library was unloaded, the next one crashes.
    """
    engine.users -= 1
    if engine.users == 0:
        del _in_use[engine.game]
        _spare.append(engine.planner)
