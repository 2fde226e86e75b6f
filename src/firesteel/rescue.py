"""Rescues: what becomes of a group in which every leaf failed, so that it has no gradient.

`few_shot` shows examples (ToolExpander, within a step), `hints` climbs tiers of hints (Scaf-GRPO) or longer and longer
beginnings of the solution (GHPO), `resample` draws other tasks (DAPO), `none` leaves it. A leaf that grew under help
is trained under the prompt that it was sampled with and belongs to the raw task's group (`Tree.group`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from firesteel.environments.tool_calls.formats import FORMATS, CallFormat
from firesteel.environments.tool_calls.tasks import tool_task
from firesteel.errors import ConfigError
from firesteel.fewshot import ExampleIndex, guided, is_guided
from firesteel.plugins import load
from firesteel.tree import Leaf, Tree
from firesteel.types import Task

Regrow = Callable[[Sequence[Task], str], list[Tree]]
"""Grows and scores one tree a task; the name goes into the seeds."""


@dataclass(slots=True)
class RescueContext:
    """What a rescue may use: the step's number, `regrow`, and `draw(count)` for other tasks of the curriculum."""

    step: int
    regrow: Regrow
    draw: Callable[[int], list[Task]] | None = None


class Rescue(Protocol):
    """Takes the scored trees of a step and returns those to learn from. `metrics` are of the last call."""

    metrics: dict[str, float]

    def __call__(self, trees: Sequence[Tree], context: RescueContext) -> list[Tree]: ...


def failed_groups(trees: Sequence[Tree]) -> list[str]:
    """The groups with counting leaves of which none succeeded, in order."""
    succeeded: dict[str, bool] = {}
    for tree in trees:
        for leaf in tree.counting_leaves():
            succeeded[tree.group] = succeeded.get(tree.group, False) or leaf.success
    return [group for group, any_success in succeeded.items() if not any_success]


def dead_groups(trees: Sequence[Tree]) -> list[str]:
    """The groups whose counting leaves all have the same reward, in order: those that DAPO samples again."""
    rewards: dict[str, set[float | None]] = {}
    for tree in trees:
        for leaf in tree.counting_leaves():
            rewards.setdefault(tree.group, set()).add(leaf.reward)
    return [group for group, values in rewards.items() if len(values) == 1]


def guided_share(trees: Sequence[Tree]) -> float:
    """The share of counting leaves that were sampled under help."""
    leaves = [is_guided(tree.task) for tree in trees for _ in tree.counting_leaves()]
    return sum(leaves) / len(leaves) if leaves else 0.0


def solving_leaf(tree: Tree) -> Leaf | None:
    """The first counting leaf that succeeded."""
    return next((leaf for leaf in tree.counting_leaves() if leaf.success), None)


def merge_one(raw: Tree, helped: Tree) -> None:
    """Lets one successful leaf of `helped` take the place of the last counting leaf of `raw` (Scaf-GRPO).

    All other leaves of `helped`, and the replaced one, are masked; both trees then make up the group.
    """
    winner = solving_leaf(helped)
    assert winner is not None, "merge_one wants a tree with a success"
    for leaf in helped.leaves:
        leaf.masked = leaf.masked or leaf is not winner
    counting = raw.counting_leaves()
    if counting:
        counting[-1].masked = True


@dataclass(slots=True)
class NoRescue:
    """Leaves every group as it is."""

    metrics: dict[str, float] = field(default_factory=dict)

    def __call__(self, trees: Sequence[Tree], context: RescueContext) -> list[Tree]:
        del context
        self.metrics = _metrics(trees, trees, failed_groups(trees), 0)
        return list(trees)


@dataclass(slots=True)
class Ladder:
    """Help in rungs: failed groups are grown again under the first rung, those that still fail under the next.

    `rungs(task)` gives the versions of a raw task, from little help to much; a task has as many chances as it has
    versions. `join`: "replace" puts the helped tree in the place of the raw one (GHPO, ToolExpander), "add" beside it,
    "one" a single successful leaf in the place of one raw leaf (Scaf-GRPO). A group that no rung saves stays raw.
    Nothing happens before `start_step`.
    """

    rungs: Callable[[Task], list[Task]]
    name: str
    join: str = "replace"
    start_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def __call__(self, trees: Sequence[Tree], context: RescueContext) -> list[Tree]:
        failed = failed_groups(trees)
        if context.step < self.start_step:
            self.metrics = _metrics(trees, trees, failed, 0)
            return list(trees)
        helped, tokens = self._climb(trees, failed, context)
        result: list[Tree] = []
        joined: set[str] = set()
        for tree in trees:
            version = helped.get(tree.group)
            if version is None:
                result.append(tree)
                continue
            is_first = tree.group not in joined
            joined.add(tree.group)
            if self.join == "one" and is_first:
                merge_one(tree, version)
            if self.join != "replace":
                result.append(tree)
            if is_first:
                result.append(version)
        self.metrics = _metrics(trees, result, failed, tokens)
        return result

    def _climb(
        self, trees: Sequence[Tree], failed: Sequence[str], context: RescueContext
    ) -> tuple[dict[str, Tree], int]:
        """The helped tree of each group that a rung saved, and the tokens that all of them cost."""
        raw = {tree.group: tree.task for tree in reversed(trees) if tree.group in set(failed)}
        ladders = {group: self.rungs(raw[group]) for group in failed if not is_guided(raw[group])}
        helped: dict[str, Tree] = {}
        tokens = 0
        for rung in range(max(map(len, ladders.values()), default=0)):
            open_groups = [group for group, steps in ladders.items() if group not in helped and rung < len(steps)]
            if not open_groups:
                break
            grown = context.regrow([ladders[group][rung] for group in open_groups], f"{self.name}-{rung}")
            for group, tree in zip(open_groups, grown, strict=True):
                tree.group = group
                tokens += tree.generated_tokens()
                if solving_leaf(tree) is not None:
                    helped[group] = tree
        return helped, tokens


@dataclass(slots=True)
class Resample:
    """Gives up dead groups, all failed or all alike, and grows other tasks until the step is full (DAPO).

    After `max_rounds` rounds of other tasks, the first dead groups fill what is missing, so that the size of a step
    stays what it was.
    """

    max_rounds: int = 3
    metrics: dict[str, float] = field(default_factory=dict)

    def __call__(self, trees: Sequence[Tree], context: RescueContext) -> list[Tree]:
        if context.draw is None:
            raise ConfigError("the rescue 'resample' draws other tasks, and there is no curriculum to draw from")
        dead = set(dead_groups(trees))
        kept = [tree for tree in trees if tree.group not in dead]
        tokens = 0
        for number in range(self.max_rounds):
            missing = len(trees) - len(kept)
            if missing == 0:
                break
            grown = context.regrow(context.draw(missing), f"resample-{number}")
            tokens += sum(tree.generated_tokens() for tree in grown)
            dead_again = set(dead_groups(grown))
            kept += [tree for tree in grown if tree.group not in dead_again]
        filled = [tree for tree in trees if tree.group in dead][: len(trees) - len(kept)]
        self.metrics = _metrics(trees, [*kept, *filled], failed_groups(trees), tokens)
        self.metrics["rescue/resampled"] = float(len(dead) - len(filled))
        return [*kept, *filled]


def _metrics(before: Sequence[Tree], after: Sequence[Tree], failed: Sequence[str], tokens: int) -> dict[str, float]:
    still = set(failed_groups(after))
    groups = {tree.group for tree in before}
    return {
        "rescue/failed_groups": len(failed) / max(1, len(groups)),
        "rescue/rescued": sum(group not in still for group in failed) / max(1, len(failed)),
        "rescue/guided_leaves": guided_share(after),
        "rescue/tokens": float(tokens),
    }


# hints


def solution_prefix(text: str, fraction: float) -> str:
    """The first `fraction` of a solution's characters, rounded down; GHPO uses 0.25, 0.5, 0.75."""
    return text[: int(len(text) * fraction)]


def derived_hints(task: Task, call_format: CallFormat) -> dict[str, list[str]]:
    """Scaf-GRPO's three tiers for a tool-calling task: which tools, which parameters, how the answer begins.

    A task's own `data["hints"]`, lists of texts by tier, goes before.
    """
    if isinstance(task.data.get("hints"), Mapping):
        return {str(tier): list(map(str, texts)) for tier, texts in task.data["hints"].items()}
    calls = tool_task(task).reference
    names = ", ".join(dict.fromkeys(call.name for call in calls))
    plan = "; ".join(f"{call.name}({', '.join(call.arguments)})" for call in calls)
    text = call_format.write(calls)
    return {
        "knowledge": [f"{len(calls)} calls are right.", f"These tools are right: {names}."],
        "planning": [f"Set these parameters: {plan}."],
        "solution": [f"The answer begins: {solution_prefix(text, share)}" for share in (0.25, 0.5, 0.75)],
    }


TIERS = ("knowledge", "planning", "solution")
JOINS = ("replace", "add", "one")


def hint_rungs(task: Task, call_format: CallFormat, tiers: Sequence[str]) -> list[Task]:
    """One version of a task for each hint, from the weakest; a version shows all hints up to its own (cumulative)."""
    if not tool_task(task).reference and "hints" not in task.data:
        return []
    hints = derived_hints(task, call_format)
    listed = [text for tier in tiers for text in hints.get(tier, ())]
    return [guided(task, "hint", hint="\n".join(listed[: place + 1])) for place in range(len(listed))]


def prefix_rungs(task: Task, call_format: CallFormat, fractions: Sequence[float]) -> list[Task]:
    """One version of a task for each fraction of its solution (GHPO); each shows its own prefix alone."""
    calls = tool_task(task).reference
    if not calls:
        return []
    text = call_format.write(calls)
    prefixes = [solution_prefix(text, fraction) for fraction in fractions]
    return [guided(task, "prefix", hint=f"The answer begins: {prefix}") for prefix in prefixes]


def make_rescue(name: str, tasks: Sequence[Task], *, seed: int, options: Mapping[str, Any]) -> Rescue:
    """Builds a rescue of `RESCUES` by its name, or your own from "package.module:factory" with the same arguments.

    Raises:
        ConfigError: the name or an option is not known.
    """
    factory = load(name, RESCUES, kind="rescue")
    try:
        rescue: Rescue = factory(tasks, seed=seed, **options)
    except TypeError as error:
        raise ConfigError(f"rescue '{name}' does not take the options {sorted(options)}: {error}") from error
    return rescue


def none(tasks: Sequence[Task], *, seed: int) -> NoRescue:
    """`none`: failed groups stay as they are."""
    del tasks, seed
    return NoRescue()


def few_shot(
    tasks: Sequence[Task], *, seed: int, attempts: int = 3, join: str = "replace", start_step: int = 0, **examples: Any
) -> Ladder:
    """`few_shot`: up to `attempts` draws of examples from other samples with the same tools (`ExampleIndex`)."""
    _check(join, start_step)
    index = ExampleIndex(tasks, seed=seed, **examples)

    def rungs(task: Task) -> list[Task]:
        drawn = [index.draw(task, attempt) for attempt in range(attempts)]
        return [index.guide(task, places) for places in dict.fromkeys(drawn) if places]

    return Ladder(rungs, "few-shot", join, start_step)


def hints(
    tasks: Sequence[Task],
    *,
    seed: int,
    tiers: Sequence[str] = TIERS,
    fractions: Sequence[float] = (),
    format: str = "hermes",
    join: str = "replace",
    start_step: int = 0,
) -> Ladder:
    """`hints`: tiers of hints, or with `fractions` beginnings of the solution instead."""
    del tasks, seed
    _check(join, start_step)
    if unknown := [tier for tier in tiers if tier not in TIERS]:
        raise ConfigError(f"rescue 'hints': unknown tiers {unknown}; known: {', '.join(TIERS)}")
    if any(not 0 < fraction <= 1 for fraction in fractions):
        raise ConfigError(f"rescue 'hints': fractions must be above 0 and at most 1, got {list(fractions)}")
    form: CallFormat = load(format, FORMATS, kind="call format")

    def rungs(task: Task) -> list[Task]:
        return prefix_rungs(task, form, fractions) if fractions else hint_rungs(task, form, tiers)

    return Ladder(rungs, "hint", join, start_step)


def resample(tasks: Sequence[Task], *, seed: int, max_rounds: int = 3) -> Resample:
    """`resample`: other tasks take the place of dead groups."""
    del tasks, seed
    if max_rounds < 1:
        raise ConfigError(f"rescue 'resample': max_rounds must be at least 1, got {max_rounds}")
    return Resample(max_rounds)


def _check(join: str, start_step: int) -> None:
    if join not in JOINS or start_step < 0:
        raise ConfigError(
            f"a rescue's join must be one of {', '.join(JOINS)} and start_step at least 0; got {join!r}, {start_step}"
        )


RESCUES: dict[str, Any] = {"none": none, "few_shot": few_shot, "hints": hints, "resample": resample}

RESCUE_PRESETS: dict[str, dict[str, Any]] = {
    "toolexpander": {"name": "few_shot", "options": {"attempts": 3, "join": "replace"}},
    "scaf_grpo": {"name": "hints", "options": {"tiers": list(TIERS), "join": "one", "start_step": 50}},
    "ghpo": {"name": "hints", "options": {"fractions": [0.25, 0.5, 0.75], "join": "replace"}},
    "dapo": {"name": "resample", "options": {"max_rounds": 3}},
}
"""Published settings. Scaf-GRPO warms up for 50 steps and replaces one rollout; GHPO grows the whole group again.
Scaf-GRPO's own hints (levels 1-4, 5-8, 9-12) go into a task's `data["hints"]`."""
