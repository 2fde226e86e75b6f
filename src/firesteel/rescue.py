"""Rescues: what becomes of a group in which every leaf failed, so that it has no gradient.

`few_shot` shows examples (ToolExpander, within a step), `hints` climbs tiers of hints (Scaf-GRPO) or longer and longer
beginnings of the solution (GHPO), `resample` draws other tasks (DAPO), `none` leaves it. A leaf that grew under help
is trained under the prompt that it was sampled with and belongs to the raw task's group (`Tree.group`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from firesteel.environments.tool_calls.formats import FORMATS, CallFormat, call_format
from firesteel.environments.tool_calls.tasks import Call, shortened, tool_task
from firesteel.errors import ConfigError, TaskError
from firesteel.fewshot import EXAMPLE_OPTIONS, ExampleIndex, Reader, guided, is_guided, reader_of
from firesteel.plugin_options import make_part, option_names, refuse_unknown, require, require_whole
from firesteel.plugins import load, nearest
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

    Other tasks are those that the step has not played yet; what is drawn beside them is passed over. After `max_rounds`
    rounds, or where there are no others, the first dead groups fill what is missing, so that the size of a step stays
    what it was. `rescue/undrawn` is for how many trees no other task was found.
    """

    max_rounds: int = 3
    metrics: dict[str, float] = field(default_factory=dict)

    def __call__(self, trees: Sequence[Tree], context: RescueContext) -> list[Tree]:
        if context.draw is None:
            raise ConfigError("the rescue 'resample' draws other tasks, and there is no curriculum to draw from")
        dead = set(dead_groups(trees))
        kept = [tree for tree in trees if tree.group not in dead]
        played = {tree.group for tree in trees}
        tokens, undrawn = 0, 0
        for number in range(self.max_rounds):
            missing = len(trees) - len(kept)
            if missing == 0 or undrawn:
                break
            drawn = draw_others(context.draw, missing, played)
            undrawn = missing - len(drawn)
            if not drawn:
                break
            played |= {task.id for task in drawn}
            grown = context.regrow(drawn, f"resample-{number}")
            tokens += sum(tree.generated_tokens() for tree in grown)
            dead_again = set(dead_groups(grown))
            kept += [tree for tree in grown if tree.group not in dead_again]
        filled = [tree for tree in trees if tree.group in dead][: len(trees) - len(kept)]
        self.metrics = _metrics(trees, [*kept, *filled], failed_groups(trees), tokens)
        self.metrics["rescue/resampled"] = float(len(dead) - len(filled))
        self.metrics["rescue/undrawn"] = float(undrawn)
        return [*kept, *filled]


def draw_others(draw: Callable[[int], list[Task]], count: int, played: Collection[str]) -> list[Task]:
    """Draws until there are `count` tasks whose ids are not `played`; fewer where there seem to be no more.

    Each once, but for a task whose raw and guided versions are both drawn: they make up one group. A curriculum that
    takes every task once per pass meets what was played at most once in each of two passes before it has shown all, so
    that four times as many tasks are enough.
    """
    others: dict[tuple[str, bool], Task] = {}
    left = 4 * (len(played) + count)
    while len(others) < count and left > 0:
        drawn = draw(min(count - len(others), left))
        left -= max(1, len(drawn))
        for task in drawn:
            if task.id not in played:
                others.setdefault((task.id, is_guided(task)), task)
    return list(others.values())


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


TIERS = ("knowledge", "planning", "solution")
JOINS = ("replace", "add", "one")


def beginnings(calls: Sequence[Call], call_format: CallFormat, fractions: Sequence[float]) -> list[str]:
    """How an answer begins, a text for each fraction; none where the format cannot hold the answer."""
    try:
        text = call_format.write(calls)
    except ConfigError:
        return []
    return [f"The answer begins: {solution_prefix(text, fraction)}" for fraction in fractions]


def own_hints(task: Task) -> dict[str, list[str]] | None:
    """A task's own `data["hints"]` by tier, a text or a list of texts each; None where it has none.

    Raises:
        TaskError: it is something else.
    """
    given = task.data.get("hints")
    if given is None:
        return None
    where, wanted = f"task '{task.id}': data['hints']", "a text or a list of texts for each tier"
    if not isinstance(given, Mapping):
        raise TaskError(f"{where} must hold {wanted} ({', '.join(TIERS)}), got {shortened(given)}")
    hints: dict[str, list[str]] = {}
    for tier, texts in given.items():
        if tier not in TIERS:
            near = nearest(str(tier), TIERS)
            raise TaskError(f"{where} has the unknown tier {shortened(tier)}{near}; known: {', '.join(TIERS)}")
        listed = [texts] if isinstance(texts, str) else ([] if texts is None else texts)
        if not isinstance(listed, (list, tuple)) or not all(isinstance(text, str) and text for text in listed):
            raise TaskError(f"{where} must hold {wanted}, got {shortened(texts)} for '{tier}'")
        hints[tier] = list(listed)
    return hints


def derived_hints(task: Task, call_format: CallFormat, read: Reader = tool_task) -> dict[str, list[str]]:
    """Scaf-GRPO's three tiers for a tool-calling task: which tools, which parameters, how the answer begins.

    A task's own hints (`own_hints`) go before. There are none where no call is right or no answer is known.
    """
    own = own_hints(task)
    if own is not None:
        return own
    calls = read(task).reference
    if not calls:
        return {}
    names = ", ".join(dict.fromkeys(call.name for call in calls))
    plan = "; ".join(f"{call.name}({', '.join(call.arguments)})" for call in calls)
    return {
        "knowledge": [f"{len(calls)} calls are right.", f"These tools are right: {names}."],
        "planning": [f"Set these parameters: {plan}."],
        "solution": beginnings(calls, call_format, (0.25, 0.5, 0.75)),
    }


def hint_rungs(task: Task, call_format: CallFormat, tiers: Sequence[str], read: Reader = tool_task) -> list[Task]:
    """One version of a task for each hint, from the weakest; a version shows all hints up to its own (cumulative)."""
    hints = derived_hints(task, call_format, read)
    listed = [text for tier in tiers for text in hints.get(tier, ())]
    return [guided(task, "hint", hint="\n".join(listed[: place + 1])) for place in range(len(listed))]


def prefix_rungs(
    task: Task, call_format: CallFormat, fractions: Sequence[float], read: Reader = tool_task
) -> list[Task]:
    """One version of a task for each fraction of its solution (GHPO); each shows its own prefix alone."""
    calls = read(task).reference
    return [guided(task, "prefix", hint=text) for text in beginnings(calls, call_format, fractions)] if calls else []


def hint_format(given: Any, of_environment: Any) -> CallFormat:
    """The format that hints are written in: the one given, or for None and "template" that of the environment.

    An environment that says none is taken to have the default of `tool_calls` and `bfcl`, "hermes".

    Raises:
        ConfigError: there is no such format, or "template" is given and the environment has a format of text.
    """
    what = "rescue 'hints'"
    wanted = f"none (that of the environment) or the name of a call format ({', '.join(FORMATS)})"
    require(what, "format", given, given is None or isinstance(given, (str, CallFormat)), wanted)
    if given is not None and given != "template":
        named = call_format(given)
        require(what, "format", given, isinstance(named, CallFormat), wanted)
        return named
    of_environment = "hermes" if of_environment is None else of_environment
    try:
        form = call_format(of_environment)
    except ConfigError as error:
        advice = "hints take the environment's format unless their option format is set"
        raise ConfigError(f"{what}: {error}; {advice}") from error
    is_format = isinstance(form, CallFormat)
    require(what, "the environment's format", of_environment, is_format, "a call format, or the option format set")
    if given == "template" and not form.is_by_template:
        raise ConfigError(
            f"{what}: format=template goes with environment.options.format=template, and the environment writes calls "
            f"as '{form.name}'; leave the format of hints out"
        )
    return form


def make_rescue(
    name: str, tasks: Sequence[Task], *, seed: int, options: Mapping[str, Any], call_format: Any = None
) -> Rescue:
    """Builds a rescue of `RESCUES` by its name, or your own from "package.module:factory" with the same arguments.

    A factory that has a parameter `call_format` is also given the environment's (its option `format`).

    Raises:
        ConfigError: the name or an option is not known, an option has no sense, or the tasks are not of a kind that the
            rescue can help with.
    """
    factory = load(name, RESCUES, kind="rescue")
    handed = {"seed": seed, "call_format": call_format}
    rescue: Rescue = make_part(f"rescue '{name}'", factory, tasks, options, **handed)
    return rescue


def none(tasks: Sequence[Task], *, seed: int) -> NoRescue:
    """`none`: failed groups stay as they are."""
    del tasks, seed
    return NoRescue()


def few_shot(
    tasks: Sequence[Task], *, seed: int, attempts: int = 3, join: str = "replace", start_step: int = 0, **examples: Any
) -> Ladder:
    """`few_shot`: up to `attempts` draws of examples from other samples with the same tools (`ExampleIndex`)."""
    what = "rescue 'few_shot'"
    refuse_unknown(what, examples, (*option_names(few_shot), *EXAMPLE_OPTIONS))
    require_whole(what, "attempts", attempts, 1)
    _check(what, join, start_step)
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
    format: str | CallFormat | None = None,
    read: str | Reader = tool_task,
    join: str = "replace",
    start_step: int = 0,
    call_format: Any = None,
) -> Ladder:
    """`hints`: tiers of hints, or with `fractions` beginnings of the solution instead.

    They are written in `format`, which is the environment's unless given. `read` turns a task without hints of its own
    into the `ToolTask` that it is about, as for `ExampleIndex`; all tasks are read once here, so that those of which no
    hints can be made are known before anything is played.
    """
    del seed
    what = "rescue 'hints'"
    _check(what, join, start_step)
    names = f"a list of some of {', '.join(TIERS)}"
    require(what, "tiers", tiers, isinstance(tiers, (list, tuple)) and len(tiers) > 0, names)
    if unknown := [tier for tier in tiers if tier not in TIERS]:
        near = nearest(str(unknown[0]), TIERS)
        raise ConfigError(f"{what}: unknown tiers {unknown}{near}; known: {', '.join(TIERS)}")
    are_shares = isinstance(fractions, (list, tuple)) and all(
        type(fraction) in (int, float) and 0 < fraction <= 1 for fraction in fractions
    )
    require(what, "fractions", fractions, are_shares, "a list of numbers above 0 and at most 1")
    form = hint_format(format, call_format)
    reader = reader_of(read, what, "" if fractions else ", or give the task hints of its own in data['hints']")
    for task in tasks:
        if fractions or own_hints(task) is None:
            reader(task)

    def rungs(task: Task) -> list[Task]:
        if fractions:
            return prefix_rungs(task, form, fractions, reader)
        return hint_rungs(task, form, tiers, reader)

    return Ladder(rungs, "hint", join, start_step)


def resample(tasks: Sequence[Task], *, seed: int, max_rounds: int = 3) -> Resample:
    """`resample`: other tasks take the place of dead groups."""
    del tasks, seed
    require_whole("rescue 'resample'", "max_rounds", max_rounds, 1)
    return Resample(max_rounds)


def _check(what: str, join: Any, start_step: Any) -> None:
    require(what, "join", join, join in JOINS, f"one of {', '.join(JOINS)}")
    require_whole(what, "start_step", start_step, 0)


RESCUES: dict[str, Any] = {"none": none, "few_shot": few_shot, "hints": hints, "resample": resample}

RESCUE_PRESETS: dict[str, dict[str, Any]] = {
    "toolexpander": {"name": "few_shot", "options": {"attempts": 3, "join": "replace"}},
    "scaf_grpo": {"name": "hints", "options": {"tiers": list(TIERS), "join": "one", "start_step": 50}},
    "ghpo": {"name": "hints", "options": {"fractions": [0.25, 0.5, 0.75], "join": "replace"}},
    "dapo": {"name": "resample", "options": {"max_rounds": 3}},
}
"""Published settings. Scaf-GRPO warms up for 50 steps and replaces one rollout; GHPO grows the whole group again.
Scaf-GRPO's own hints (levels 1-4, 5-8, 9-12) go into a task's `data["hints"]`. Hints are written in the environment's
format."""
