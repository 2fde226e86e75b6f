"""ToolExpander's self-exemplifying thinking: the reward, and what shows whether the bonus is honest.

The policy first makes up solved examples inside `<examples>`, then reasons, then calls. It needs no demonstrations,
but a policy that already solves a task now and then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from firesteel.environments.tool_calls.examples import INSTRUCTIONS, Examples, read_examples, write_examples
from firesteel.environments.tool_calls.formats import BASE_FORMATS, FORMATS, CallFormat
from firesteel.environments.tool_calls.parsers import Unreadable, load_json, without_sections
from firesteel.environments.tool_calls.tasks import Call
from firesteel.plugins import load
from firesteel.tree import Episode, Leaf, Tree

__all__ = [
    "INSTRUCTIONS", "Examples", "bonus_only_share", "copied_share", "copies_answer", "read_examples",
    "self_exemplifying_metrics", "self_exemplifying_reward", "self_exemplifying_reward_of", "write_examples",
]  # fmt: skip

BONUS = 0.01


def self_exemplifying_reward_of(is_correct: bool, examples: Examples, *, bonus: float = BONUS) -> float:
    """1 + `bonus` for a right answer with enough examples, 1 for a right answer, else 0 (Section 4.2 of ToolExpander).

    `is_correct` holds the result and the format.
    """
    if not is_correct:
        return 0.0
    return 1.0 + bonus if examples.is_enough else 1.0


def self_exemplifying_reward(episode: Episode) -> float:
    """A reward function for `RewardConfig.name`: 1.01, 1 or 0 for an episode of one response."""
    text = episode.steps[-1].text if episode.steps else ""
    return self_exemplifying_reward_of(episode.success, read_examples(text))


def copies_answer(
    text: str, call_format: str | CallFormat = "hermes", tools: Sequence[Mapping[str, Any]] = ()
) -> bool | None:
    """Whether an example's answer is one of the response's own calls; None where it has no examples or no calls.

    An answer may be a call as JSON or as text of any format, several, or the arguments alone of the example's tool.
    Without the bonus the policy is reported to repeat its answer inside `<examples>`.
    """
    form: CallFormat = load(call_format, FORMATS, kind="call format") if isinstance(call_format, str) else call_format
    examples = read_examples(text)
    calls = {call.key() for call in form.read(without_sections(text), tools).calls}
    if not examples.distinct or not calls:
        return None
    return any(
        call.key() in calls
        for example in examples.distinct
        for call in _calls_of(example["answer"], example["tool"], tools)
    )


def _calls_of(answer: Any, tool: str, tools: Sequence[Mapping[str, Any]]) -> Iterator[Call]:
    """Every call that an example's answer may stand for; none where it is something else."""
    if isinstance(answer, str):
        for form in BASE_FORMATS.values():
            yield from form.read(answer, tools).calls
        try:
            answer = load_json(answer)
        except Unreadable:
            return
    for entry in answer if isinstance(answer, list) else [answer]:
        if not isinstance(entry, Mapping):
            continue
        yield Call(tool, entry)
        for key in ("arguments", "parameters"):
            if isinstance(entry.get("name"), str) and isinstance(entry.get(key), Mapping):
                yield Call(entry["name"], entry[key])


def copied_share(trees: Sequence[Tree], call_format: str | CallFormat = "hermes") -> float | None:
    """Of the responses with examples and calls, the share that copies an answer into its examples; None for none."""
    judged = [
        copied
        for tree in trees
        for episode in tree.episodes()
        for step in episode.steps[-1:]
        if (copied := copies_answer(step.text, call_format, tree.task.data.get("tools", ()))) is not None
    ]
    return sum(judged) / len(judged) if judged else None


def bonus_only_share(trees: Sequence[Tree]) -> float:
    """The share of groups whose leaves all succeed with different rewards: the bonus alone decides their advantages.

    A group of rewards [1.01, 1, 1, 1, 1] divided by its sample standard deviation gives [+1.79, -0.45 x 4], as strong
    as solving; `advantage.std_floor` bounds it.
    """
    groups: dict[str, list[Leaf]] = {}
    for tree in trees:
        groups.setdefault(tree.group, []).extend(tree.counting_leaves())
    live = [leaves for leaves in groups.values() if leaves]
    decided = [all(leaf.success for leaf in leaves) and len({leaf.reward for leaf in leaves}) > 1 for leaves in live]
    return sum(decided) / len(live) if live else 0.0


def self_exemplifying_metrics(trees: Sequence[Tree], call_format: str | CallFormat = "hermes") -> dict[str, float]:
    """What is logged: groups decided by the bonus alone, copied answers, responses with examples enough."""
    episodes = [episode for tree in trees for episode in tree.episodes() if episode.steps]
    enough = [read_examples(episode.steps[-1].text).is_enough for episode in episodes]
    metrics = {
        "explore/bonus_only_groups": bonus_only_share(trees),
        "explore/examples_enough": sum(enough) / len(enough) if enough else 0.0,
    }
    copied = copied_share(trees, call_format)
    return metrics if copied is None else metrics | {"explore/copied_answers": copied}
