"""Generated tool-calling tasks: tools with conventions, queries about them, and distractors.

What an argument looks like is a tool's convention ("OSLO", "osl", "city:oslo"). A documented tool says it in its
schema; of an undocumented one only other solved queries with the same tool tell, so that demonstrations help where a
guess mostly fails. That is what makes samples hard in ToolExpander's sense.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from firesteel.environments.tool_calls.examples import FEWEST_EXAMPLES
from firesteel.environments.tool_calls.tasks import Call, Demonstration, ToolTask
from firesteel.environments.tool_calls.words import KINDS, NOUNS, VERBS, Convention
from firesteel.types import Task

TASK_KINDS = ("simple", "multiple", "parallel", "parallel_multiple")
"""BFCL's: one call or several (parallel), one tool on offer or several (multiple)."""


NUM_DRAWN = 4
"""How many tools are drawn for a task, of which it offers up to three."""


@dataclass(frozen=True, slots=True)
class Split:
    """Which tools a split uses. `tools` names one of the disjoint sets; `count` is its default number of tasks.

    `buckets` are the tenths of all queries (by a hash of their text) that belong to it.
    """

    tools: str
    count: int
    buckets: range


SPLITS = {
    "cold_start": Split("cold_start", 2000, range(10)),
    "train": Split("known", 1000, range(7)),
    "validation": Split("known", 100, range(7, 8)),
    "test_tasks": Split("known", 200, range(8, 10)),
    "test_tools": Split("unknown", 200, range(10)),
}
"""Held-out tasks use the tools of training, with queries that training never holds; held-out tools are in no other
split."""

_SHARES = {"known": range(0, 5), "unknown": range(5, 7), "cold_start": range(7, 10)}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a tool, with the convention that its values follow."""

    name: str
    kind: str
    convention: Convention


@dataclass(frozen=True, slots=True)
class Tool:
    """A generated tool. `documented` says whether its schema tells the conventions."""

    name: str
    parameters: tuple[Parameter, ...]
    documented: bool

    def schema(self) -> dict[str, Any]:
        """The tool as tasks hold it."""
        properties: dict[str, Any] = {}
        for parameter in self.parameters:
            properties[parameter.name] = {"type": parameter.convention.type}
            if self.documented:
                properties[parameter.name]["description"] = parameter.convention.note
        required = [parameter.name for parameter in self.parameters]
        return {
            "name": self.name,
            "description": "",
            "parameters": {"type": "object", "properties": properties, "required": required},
        }

    def use(self, rng: random.Random) -> tuple[str, Call]:
        """A query about this tool with drawn values, and the call that answers it."""
        arguments: dict[str, Any] = {}
        phrases = []
        for parameter in self.parameters:
            kind = KINDS[parameter.kind]
            value = rng.choice(kind.values)
            arguments[parameter.name] = parameter.convention.write(value)
            said = (f"{'' if value else 'not '}{parameter.name}") if parameter.kind == "flag" else value
            phrases.append(kind.phrase.format(said))
        rng.shuffle(phrases)
        return " ".join([*self.name.split("_"), *phrases]), Call(self.name, arguments)


def _bucket(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") % 10


@lru_cache(maxsize=8)
def tool_names(tool_set: str) -> tuple[str, ...]:
    """All names of one of the disjoint sets "known", "unknown" and "cold_start", in a fixed order."""
    names = [f"{verb}_{noun}" for verb, noun in itertools.product(VERBS, NOUNS)]
    return tuple(name for name in names if _bucket(name) in _SHARES[tool_set])


def make_tool(name: str, rng: random.Random, documented: float) -> Tool:
    """A tool with one to three parameters of different kinds, documented with the given probability."""
    kinds = rng.sample(sorted(KINDS), rng.choice((1, 2, 2, 3)))
    if kinds == ["flag"]:
        kinds = ["flag", "place"]  # two possible queries would be too few
    parameters = tuple(Parameter(rng.choice(KINDS[kind].names), kind, rng.choice(KINDS[kind].conventions))
                       for kind in kinds)  # fmt: skip
    return Tool(name, parameters, rng.random() < documented)


@lru_cache(maxsize=32)
def catalogue(tool_set: str, num_tools: int, documented: float, seed: int) -> tuple[Tool, ...]:
    """The first `num_tools` tools of a set in a seeded order, each always the same one."""
    names = list(tool_names(tool_set))
    random.Random(f"tool_calls/names/{tool_set}/{seed}").shuffle(names)
    return tuple(
        make_tool(name, random.Random(f"tool_calls/tool/{name}/{seed}"), documented) for name in names[:num_tools]
    )


def make_task(split: str, seed: int, index: int, kind: str, *, num_tools: int, documented: float,
              max_demonstrations: int, self_exemplifying: float) -> Task:  # fmt: skip
    """One task; it depends on the arguments alone.

    In "cold_start" the tools are drawn anew for this task (the same name means something else in another task), 0 to
    `max_demonstrations` solved queries about the called tools are shown, and a share of `self_exemplifying` tasks is
    marked for the `<examples>` form.
    """
    rng = random.Random(f"tool_calls/{split}/{seed}/{index}/{kind}")
    query = ""
    while not query or _bucket(query) not in SPLITS[split].buckets:
        offered, used = _roles(kind, _draw_tools(split, rng, num_tools, documented), rng)
        pairs = [tool.use(rng) for tool in used]
        query = " and ".join(text for text, _ in pairs)
    calls = tuple(call for _, call in pairs)
    task = ToolTask(
        id=f"tool_calls-{split}-{seed}-{index}",
        messages=({"role": "user", "content": query},),
        tools=tuple(tool.schema() for tool in offered),
        answers=(calls,),
        kind=kind,
        split=split,
    ).to_task()
    if split != "cold_start":
        return task
    shown = draw_demonstrations(used, calls, rng.randint(0, max_demonstrations), rng)
    data = dict(task.data)
    if rng.random() < self_exemplifying:
        own = draw_demonstrations(used, calls, FEWEST_EXAMPLES, rng)
        data |= {"self_exemplifying": len(own) == FEWEST_EXAMPLES, "own_examples": [entry.to_dict() for entry in own]}
    return Task(task.id, task.kind, split, seed, data, tuple(entry.to_dict() for entry in shown))


def _draw_tools(split: str, rng: random.Random, num_tools: int, documented: float) -> Sequence[Tool]:
    tool_set = SPLITS[split].tools
    if split == "cold_start":
        return [make_tool(name, rng, documented) for name in rng.sample(tool_names(tool_set), NUM_DRAWN)]
    # Seed 0 whatever the seed of the tasks: validation must meet the tools of training.
    return rng.sample(catalogue(tool_set, num_tools, documented, 0), NUM_DRAWN)


def _roles(kind: str, tools: Sequence[Tool], rng: random.Random) -> tuple[list[Tool], list[Tool]]:
    """The tools on offer, shuffled, and those to be called, in order."""
    if kind == "simple":
        return [tools[0]], [tools[0]]
    if kind == "parallel":
        return [tools[0]], [tools[0]] * rng.choice((2, 2, 3))
    used = list(tools[:1]) if kind == "multiple" else list(tools[:2])
    offered = list(tools[:3])
    rng.shuffle(offered)
    return offered, used


def draw_demonstrations(
    tools: Sequence[Tool], answer: Sequence[Call], count: int, rng: random.Random
) -> list[Demonstration]:
    """`count` solved queries about the given tools in turn; none of them holds a call of `answer`."""
    taken = {call.key() for call in answer}
    shown: list[Demonstration] = []
    different = list(dict.fromkeys(tools))
    for number in range(count):
        for _ in range(20):
            query, call = different[number % len(different)].use(rng)
            if call.key() not in taken:
                taken.add(call.key())
                shown.append(Demonstration(query, (call,), "drawn"))
                break
    rng.shuffle(shown)
    return shown
