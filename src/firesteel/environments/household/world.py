"""The household's rules: an immutable game, and the few numbers that change while it is played.

Receptacles and objects are integers, numbered in the order in which the room lists them. A `Game` and its `Layout`
are shared by every episode and fork that plays it; a `World` holds only what actions change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from firesteel.environments.household.vocabulary import APPLIANCES, LAMP, OBJECTS, OPENABLE, TREATMENTS

MIDDLE = -1
"""The agent's place before its first `go to`: in the middle of the room, at no receptacle."""

HELD = -1
"""Where an object is while the agent carries it."""

ROOM_VIEW = "You are in the middle of a room. Looking quickly around you, you see "

CONDITIONS = {
    ("clean",): "clean",
    ("cool",): "cold",
    ("heat",): "hot",
    ("clean", "cool"): "cool and clean",
    ("clean", "heat"): "hot and clean",
}
"""The treatments that an object has had, in alphabetical order, and how it then looks."""


def number_names(types: tuple[str, ...]) -> tuple[str, ...]:
    """Names as the agent reads them: ("mug", "pen", "mug") becomes ("mug 1", "pen 1", "mug 2")."""
    seen: dict[str, int] = {}
    names = []
    for name in types:
        seen[name] = seen.get(name, 0) + 1
        names.append(f"{name} {seen[name]}")
    return tuple(names)


def enumerate_names(names: list[str] | tuple[str, ...]) -> str:
    """ALFWorld's list in words: "nothing", "a mug 1", "a mug 1, and a pen 2"; the article is always "a"."""
    if not names:
        return "nothing"
    if len(names) == 1:
        return f"a {names[0]}"
    return f"a {', a '.join(names[:-1])}, and a {names[-1]}"


@dataclass(frozen=True)
class Layout:
    """A furnished room. Everything after `types` is derived from it once, so that steps only look things up."""

    id: str
    room: str
    types: tuple[str, ...]
    names: tuple[str, ...] = field(init=False, repr=False)
    index: dict[str, int] = field(init=False, repr=False, compare=False)
    is_openable: tuple[bool, ...] = field(init=False, repr=False)
    overview: str = field(init=False, repr=False)
    go_commands: tuple[tuple[str, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = number_names(self.types)
        go_all = tuple(f"go to {name}" for name in names)
        derived = {
            "names": names,
            "index": {name: place for place, name in enumerate(names)},
            "is_openable": tuple(name in OPENABLE for name in self.types),
            "overview": f"{ROOM_VIEW}{enumerate_names(names)}.",
            # The last entry is that of MIDDLE: from there every receptacle can be gone to.
            "go_commands": (*(go_all[:place] + go_all[place + 1 :] for place in range(len(names))), go_all),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Goal:
    """What is asked for. `destination` is a receptacle type, "" for look_at_obj_in_light."""

    kind: str
    object_type: str
    destination: str
    sentence: str

    @property
    def treatment(self) -> str:
        """ "clean", "heat", "cool" or ""."""
        return TREATMENTS.get(self.kind, "")


@dataclass(frozen=True)
class Game:
    """A layout, the objects in it, where each starts, and the goal."""

    layout: Layout
    object_types: tuple[str, ...]
    starts: tuple[int, ...]
    goal: Goal
    names: tuple[str, ...] = field(init=False, repr=False)
    index: dict[str, int] = field(init=False, repr=False, compare=False)
    targets: tuple[int, ...] = field(init=False, repr=False)
    destinations: tuple[int, ...] = field(init=False, repr=False)
    fits: tuple[tuple[bool, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = number_names(self.object_types)
        places = range(len(self.layout.types))
        derived = {
            "names": names,
            "index": {name: thing for thing, name in enumerate(names)},
            "targets": tuple(t for t, name in enumerate(self.object_types) if name == self.goal.object_type),
            "destinations": tuple(p for p in places if self.layout.types[p] == self.goal.destination),
            "fits": tuple(tuple(r in OBJECTS[name].fits for r in self.layout.types) for name in self.object_types),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def signature(self) -> tuple[object, ...]:
        """What makes two games the same game: the furniture, which object types lie where, and the goal."""
        contents = tuple(sorted(zip(self.object_types, self.starts, strict=True)))
        return (self.layout.types, contents, self.goal.kind, self.goal.object_type, self.goal.destination)


class World:
    """The state of one episode. `copy` is a fork.

    `seen` marks the receptacles whose contents the agent has been shown. Only the agent changes the world, so what
    it was shown and what it did since is all there is to know about them: `seen` is the agent's whole knowledge.
    """

    __slots__ = ("game", "holding", "opened", "place", "seen", "toggled", "treated", "where")

    def __init__(self, game: Game) -> None:
        self.game = game
        self.place = MIDDLE
        self.holding: int | None = None
        self.where = list(game.starts)
        self.opened: frozenset[int] = frozenset()
        self.seen: frozenset[int] = frozenset()
        self.toggled: frozenset[int] = frozenset()
        self.treated: frozenset[tuple[str, int]] = frozenset()

    def copy(self) -> World:
        """An independent world in the same state; the game is shared."""
        twin = World.__new__(World)
        twin.game = self.game
        twin.place = self.place
        twin.holding = self.holding
        twin.where = self.where.copy()
        twin.opened = self.opened
        twin.seen = self.seen
        twin.toggled = self.toggled
        twin.treated = self.treated
        return twin

    # What there is to see.

    def is_accessible(self, place: int) -> bool:
        """Whether things can be taken out of and put into a receptacle: it never closes, or it is open."""
        return not self.game.layout.is_openable[place] or place in self.opened

    def contents(self, place: int) -> list[int]:
        """The objects in a receptacle, whether or not they can be seen."""
        return [thing for thing, at in enumerate(self.where) if at == place]

    def describe(self, place: int) -> str:
        """What a look at a receptacle shows."""
        name = self.game.layout.names[place]
        if not self.is_accessible(place):
            return f"The {name} is closed."
        names = self.game.names
        things = enumerate_names([names[thing] for thing in self.contents(place)])
        if place in self.opened:
            return f"The {name} is open. In it, you see {things}."
        return f"On the {name}, you see {things}."

    def commands(self) -> tuple[str, ...]:
        """Every command that would do something now, grouped by verb in alphabetical order."""
        game, place, thing = self.game, self.place, self.holding
        if place == MIDDLE:
            return (*game.layout.go_commands[MIDDLE], "inventory", "look")
        name, names = game.layout.names[place], game.names
        is_accessible = self.is_accessible(place)
        visible = [names[other] for other in self.contents(place)] if is_accessible else []
        result: list[str] = []
        if place in self.opened:
            result.append(f"close {name}")
        if thing is not None:
            verb = self.treatment_here(thing)
            if verb:
                result.append(f"{verb} {names[thing]} with {name}")
            result.append(f"examine {names[thing]}")
        result.append(f"examine {name}")
        result.extend(game.layout.go_commands[place])
        result += ("inventory", "look")
        if not is_accessible:
            result.append(f"open {name}")
        elif thing is None:
            result.extend([f"take {other} from {name}" for other in visible if not other.startswith(LAMP)])
        elif game.fits[thing][place]:
            result.append(f"move {names[thing]} to {name}")
        result.extend([f"use {other}" for other in visible if other.startswith(LAMP)])
        return tuple(result)

    def treatment_here(self, thing: int) -> str:
        """The treatment that this place can give to an object, or ""."""
        if self.place == MIDDLE:
            return ""
        appliance = self.game.layout.types[self.place]
        for verb in OBJECTS[self.game.object_types[thing]].treatments:
            if APPLIANCES[verb] == appliance:
                return verb
        return ""

    # How far the goal is reached.

    def progress(self) -> float:
        """The fraction of the goal's conditions that hold, 1.0 when it is reached.

        The conditions are: the object lies in a destination (and is treated, of the same object); two objects lie
        in the same destination; the object is held, and a lamp that was turned on stands where the agent is.
        """
        game, goal, where = self.game, self.game.goal, self.where
        if goal.kind == "look_at_obj_in_light":
            is_lit = any(where[lamp] == self.place for lamp in self.toggled)
            return (is_lit + (self.holding in game.targets)) / 2
        placed = [target for target in game.targets if where[target] in game.destinations]
        if goal.kind == "pick_two_obj_and_place":
            at = [where[target] for target in placed]
            return min(max((at.count(place) for place in at), default=0), 2) / 2
        verb = goal.treatment
        if not verb:
            return float(bool(placed))
        return max((self.is_treated(target) + (target in placed)) / 2 for target in game.targets)

    def is_treated(self, target: int) -> bool:
        """Whether an object has had the treatment that the goal asks for (True where it asks for none)."""
        verb = self.game.goal.treatment
        return not verb or (verb, target) in self.treated

    # Actions. Each gets the words after the verb, and returns what the agent reads or None where it does not apply.

    def act(self, command: str) -> str | None:
        """Plays one command; None means that it is unknown or cannot be done now, and nothing has changed."""
        verb, _, rest = command.partition(" ")
        action = ACTIONS.get(verb)
        return None if action is None else action(self, rest)

    def _show(self, place: int) -> str:
        if place not in self.seen and self.is_accessible(place):
            self.seen |= {place}
        return self.describe(place)

    def _go(self, rest: str) -> str | None:
        place = self.game.layout.index.get(rest[3:]) if rest.startswith("to ") else None
        if place is None or place == self.place:
            return None
        self.place = place
        return f"You arrive at {rest[3:]}. {self._show(place)}"

    def _open(self, rest: str) -> str | None:
        if self.place == MIDDLE or self.game.layout.index.get(rest) != self.place or self.is_accessible(self.place):
            return None
        self.opened |= {self.place}
        return f"You open the {rest}. {self._show(self.place)}"

    def _close(self, rest: str) -> str | None:
        if self.place not in self.opened or self.game.layout.index.get(rest) != self.place:
            return None
        self.opened -= {self.place}
        return f"You close the {rest}."

    def _thing_and_here(self, rest: str, separator: str) -> int | None:
        """The object of "<object><separator><receptacle>", where the receptacle is the one the agent is at."""
        name, _, receptacle = rest.partition(separator)
        is_here = self.place != MIDDLE and self.game.layout.index.get(receptacle) == self.place
        return self.game.index.get(name) if is_here else None

    def _take(self, rest: str) -> str | None:
        thing = self._thing_and_here(rest, " from ")
        if thing is None or self.holding is not None or self.where[thing] != self.place:
            return None
        if not self.is_accessible(self.place) or self.game.object_types[thing] == LAMP:
            return None
        self.where[thing] = HELD
        self.holding = thing
        return f"You pick up the {self.game.names[thing]} from the {self.game.layout.names[self.place]}."

    def _move(self, rest: str) -> str | None:
        thing = self._thing_and_here(rest, " to ")
        if thing is None or thing != self.holding:
            return None
        if not self.is_accessible(self.place) or not self.game.fits[thing][self.place]:
            return None
        self.where[thing] = self.place
        self.holding = None
        return f"You move the {self.game.names[thing]} to the {self.game.layout.names[self.place]}."

    def _treat(self, verb: str, rest: str) -> str | None:
        thing = self._thing_and_here(rest, " with ")
        if thing is None or thing != self.holding or self.treatment_here(thing) != verb:
            return None
        undone = {"heat": "cool", "cool": "heat"}.get(verb, verb)
        self.treated = (self.treated - {(undone, thing)}) | {(verb, thing)}
        return f"You {verb} the {self.game.names[thing]} using the {self.game.layout.names[self.place]}."

    def _use(self, rest: str) -> str | None:
        thing = self.game.index.get(rest)
        if thing is None or self.game.object_types[thing] != LAMP or self.where[thing] != self.place:
            return None
        self.toggled |= {thing}
        return f"You turn on the {rest}."

    def _examine(self, rest: str) -> str | None:
        if self.place != MIDDLE and self.game.layout.index.get(rest) == self.place:
            return self._show(self.place)
        thing = self.game.index.get(rest)
        if thing is None or thing != self.holding:
            return None
        treatments = tuple(sorted(verb for verb, other in self.treated if other == thing))
        if not treatments:
            return f"There's nothing special about {rest}."
        return f"This is a {CONDITIONS[treatments]} {rest}."

    def _inventory(self, rest: str) -> str | None:
        if rest:
            return None
        if self.holding is None:
            return "You are not carrying anything."
        return f"You are carrying: a {self.game.names[self.holding]}."

    def _look(self, rest: str) -> str | None:
        if rest:
            return None
        if self.place == MIDDLE:
            return self.game.layout.overview
        return f"You are facing the {self.game.layout.names[self.place]}. Next to it, you see nothing."


ACTIONS: dict[str, Callable[[World, str], str | None]] = {
    "clean": lambda world, rest: world._treat("clean", rest),
    "close": World._close,
    "cool": lambda world, rest: world._treat("cool", rest),
    "examine": World._examine,
    "go": World._go,
    "heat": lambda world, rest: world._treat("heat", rest),
    "inventory": World._inventory,
    "look": World._look,
    "move": World._move,
    "open": World._open,
    "take": World._take,
    "use": World._use,
}
