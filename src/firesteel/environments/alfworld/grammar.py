"""The texts of ALFWorld: a reader of its grammar files (`alfred.twl2`), and what they say about a state.

Differs from TextWorld's reader: the grammar comes with every game file and holds expressions, which TextWorld gives to
`eval`. Here only names, attributes, texts, `+`, comparisons and choices are allowed in them. Nothing is copied while a
text is written, which is what TextWorld spends most of its time on.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType
from typing import Protocol

from firesteel.errors import TaskError

Facts = Mapping[str, Sequence[tuple[str, ...]]]
"""What holds: the arguments of each predicate, sorted."""

Variable = tuple[str, str]
"""A variable of the grammar: its name and its type."""


@dataclass(slots=True)
class Entity:
    """A thing as the grammar's expressions see it; `id` is its name in PDDL."""

    id: str
    name: str
    definite: str = "the"
    indefinite: str = "a"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Things:
    """All entities by id, and which of them each type holds (those of its subtypes included)."""

    entities: Mapping[str, Entity]
    members: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is written about: the facts, and the entity that each variable stands for."""

    facts: Facts
    things: Things
    bound: Mapping[Variable, str]

    def binding(self, bound: Mapping[Variable, str]) -> Scene:
        """The same facts with other variables."""
        return Scene(self.facts, self.things, bound)


@dataclass(frozen=True, slots=True)
class Condition:
    """One predicate of a query with its variables: `inreceptacle(o:object, r:receptacle)`."""

    predicate: str
    variables: tuple[Variable, ...]

    def matches(self, scene: Scene, bound: Mapping[Variable, str]) -> Iterator[dict[Variable, str]]:
        """The ways to make it true; different variables stand for different entities."""
        members = scene.things.members
        for arguments in scene.facts.get(self.predicate, ()):
            if len(arguments) != len(self.variables):
                continue
            found = dict(bound)
            for variable, entity in zip(self.variables, arguments, strict=True):
                if found.get(variable) == entity:
                    continue
                if variable in found or entity in found.values() or entity not in members.get(variable[1], ()):
                    break
                found[variable] = entity
            else:
                yield found


Query = tuple[Condition, ...]


def answers(query: Query, scene: Scene) -> list[dict[Variable, str]]:
    """Every way to make all conditions of a query true, in the order of the sorted facts."""
    found: list[dict[Variable, str]] = [dict(scene.bound)]
    for condition in query:
        found = [longer for bound in found for longer in condition.matches(scene, bound)]
    return found


class Symbol(Protocol):
    """A part of a text."""

    def write(self, grammar: Grammar, scene: Scene) -> str:
        """The part as it reads in a scene."""
        ...


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that is always the same."""

    text: str

    def write(self, grammar: Grammar, scene: Scene) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Reference:
    """`#name#`: whatever the first rule of that name whose condition holds says."""

    name: str

    def write(self, grammar: Grammar, scene: Scene) -> str:
        for rule in grammar.rules.get(self.name, ()):
            if not rule.condition or answers(rule.condition, scene):
                return grammar.write(rule.symbols, scene)
        raise TaskError(f"the game's grammar has no rule '{self.name}' that applies; the game file is damaged")


@dataclass(frozen=True, slots=True)
class Value:
    """`o.name`: an expression over the variables' entities."""

    code: CodeType
    source: str

    def write(self, grammar: Grammar, scene: Scene) -> str:
        names = {name: scene.things.entities[entity] for (name, _), entity in scene.bound.items()}
        try:
            return str(eval(self.code, {"__builtins__": {}}, names))
        except (NameError, AttributeError, TypeError) as error:
            raise TaskError(f"the game's grammar cannot say '{{{self.source}}}' ({error})") from error


@dataclass(frozen=True, slots=True)
class Given:
    """`{expression | query}`: the expression once for every answer of the query; as a list, joined in words."""

    expression: Symbol
    query: Query
    is_list: bool = False

    def write(self, grammar: Grammar, scene: Scene) -> str:
        scenes = [scene.binding(bound) for bound in answers(self.query, scene)] if self.query else [scene]
        texts = [self.expression.write(grammar, each) for each in scenes]
        if not self.is_list or len(texts) == 1:
            return "".join(texts)
        if not texts:
            return Reference("list_empty").write(grammar, scene)
        middle, last = (Reference(f"list_{name}").write(grammar, scene) for name in ("separator", "last_separator"))
        return middle.join(texts[:-1]) + last + texts[-1]


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to say something, and when."""

    condition: Query
    symbols: tuple[Symbol, ...]


@dataclass(frozen=True, slots=True)
class Wording:
    """How an action is commanded, and what is said when it was done."""

    command: tuple[Symbol, ...]
    feedback: tuple[Symbol, ...]


@dataclass(slots=True)
class Grammar:
    """A grammar file: its rules by name, and the wording of each action (names in lower case)."""

    rules: dict[str, list[Rule]] = field(default_factory=dict)
    actions: dict[str, Wording] = field(default_factory=dict)

    def write(self, symbols: Sequence[Symbol], scene: Scene) -> str:
        """Symbols as text."""
        return "".join([symbol.write(self, scene) for symbol in symbols])


# --- reading --------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r'\s+|#[^\n]*|(?P<block>"""(?:.|\n)*?""")|(?P<text>"[^"]*")|(?P<word>[\w/-]+|::|[{};])')
_SYMBOL = re.compile(r"#(?P<name>[^#\n]+)#|(?P<open>\[?)\{(?P<body>[^{}]*)\}(?P<close>\]?)|(?P<text>[^#{}\[\]]+)")
_CONDITION = re.compile(r"\s*([\w-]+)\(([^()]*)\)\s*(?:&|$)")
_ALLOWED = (
    ast.Expression, ast.Load, ast.Name, ast.Attribute, ast.Constant, ast.BinOp, ast.Add, ast.BoolOp, ast.And, ast.Or,
    ast.UnaryOp, ast.Not, ast.IfExp, ast.Compare, ast.Eq, ast.NotEq,
)  # fmt: skip


def parse_grammar(text: str) -> Grammar:
    """Reads a grammar file. Raises `TaskError` where it is not one."""
    grammar = Grammar()
    words = list(_tokens(text))
    while words:
        kind = words.pop(0)
        if kind == "grammar":
            _add_rules(grammar, _block(_field(words)))
        elif kind == "action":
            name = words.pop(0).lower() if words else ""
            grammar.actions[name] = _action(grammar, name, words)
        else:
            raise TaskError(f"the game's grammar has {kind[:40]!r} where 'grammar' or 'action' must come")
    return grammar


def _tokens(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise TaskError(f"the game's grammar cannot be read from {text[place : place + 40]!r} on")
        place = found.end()
        if found.lastgroup:
            yield found.group(found.lastgroup)


def _field(words: list[str]) -> str:
    """The value of `:: value ;`."""
    if len(words) < 3 or words[0] != "::" or words[2] != ";":
        raise TaskError(f"the game's grammar is cut off or damaged before {' '.join(words[:3])[:60]!r}")
    value = words[1]
    del words[:3]
    return value


def _action(grammar: Grammar, name: str, words: list[str]) -> Wording:
    fields: dict[str, str] = {}
    if words[:1] != ["{"]:
        raise TaskError(f"the game's grammar: action '{name}' has no body")
    del words[0]
    while words and words[0] != "}":
        key = words.pop(0)
        fields[key] = _field(words)
    del words[:1]
    if "grammar" in fields:
        lines = _block(fields["grammar"]).split("\n")
        _add_rules(grammar, "\n".join(line for line in lines if not line.lstrip().startswith("#")))
    if not {"template", "feedback"} <= set(fields):
        raise TaskError(f"the game's grammar: action '{name}' needs a template and a feedback")
    return Wording(parse_symbols(fields["template"][1:-1]), parse_symbols(fields["feedback"][1:-1]))


def _block(value: str) -> str:
    return value[3:-3] if value.startswith('"""') else value


def _add_rules(grammar: Grammar, text: str) -> None:
    try:
        for name, rules in json.loads(text).items():
            read = [Rule(parse_query(rule.get("condition", "")), parse_symbols(rule["rhs"])) for rule in rules]
            grammar.rules.setdefault(name, []).extend(read)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"the game's grammar holds rules that cannot be read ({error})") from error


@lru_cache(maxsize=1024)
def parse_symbols(text: str) -> tuple[Symbol, ...]:
    """Reads a text with `#references#`, `{values}` and `[{lists | queries}]`; blanks at its start do not count."""
    # TextWorld's reader takes blanks at the start for an empty line of a comment, and writes "\\n" as a line end.
    text = text.lstrip().replace("\\n", "\n")
    symbols: list[Symbol] = []
    place = 0
    while place < len(text):
        found = _SYMBOL.match(text, place)
        if found is None or bool(found["open"]) != bool(found["close"]):
            # ALFWorld's own grammar has such a rule; TextWorld reads it up to there.
            break
        place = found.end()
        if found["body"] is not None:
            symbols.append(_given(found["body"], bool(found["open"])))
        else:
            symbols.append(Reference(found["name"]) if found["name"] else Literal(found["text"]))
    return tuple(symbols)


def _given(body: str, is_list: bool) -> Given:
    source, _, query = body.partition("|")
    source = source.strip()
    is_reference = len(source) > 2 and source.startswith("#") and source.endswith("#")
    expression = Reference(source[1:-1]) if is_reference else _value(source)
    return Given(expression, parse_query(query), is_list)


def _value(source: str) -> Value:
    try:
        tree = ast.parse(source, mode="eval")
    except SyntaxError as error:
        raise TaskError(f"the game's grammar has an expression that cannot be read: {source!r:.80}") from error
    for node in ast.walk(tree):
        is_private = isinstance(node, ast.Attribute) and node.attr.startswith("_")
        if not isinstance(node, _ALLOWED) or is_private:
            raise TaskError(f"the game's grammar has an expression that is not allowed: {source!r:.80}")
    return Value(compile(tree, "<grammar>", "eval"), source)


@lru_cache(maxsize=1024)
def parse_query(text: str) -> Query:
    """Reads `holds(a:agent, o:object) & pickupable(o:object)`; "" is the empty query."""
    conditions = []
    place = 0
    while place < len(text.rstrip()):
        found = _CONDITION.match(text, place)
        if found is None:
            raise TaskError(f"the game's grammar has a query that cannot be read: {text!r:.80}")
        place = found.end()
        pairs = [part.partition(":") for part in found[2].split(",") if part.strip()]
        variables = tuple((name.strip(), kind.strip() or name.strip()) for name, _, kind in pairs)
        conditions.append(Condition(found[1].lower(), variables))
    return tuple(conditions)
