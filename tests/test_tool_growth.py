"""Probes, hard sampling and rescues with real trees: a scripted policy in the tool-calling environment."""

from __future__ import annotations

import re

import pytest

from firesteel.branching import make_criterion
from firesteel.config import RewardConfig, RolloutConfig
from firesteel.context import ContextBuilder
from firesteel.environments.tool_calls import ToolCalls
from firesteel.environments.tool_calls.formats import FORMATS
from firesteel.environments.tool_calls.prompts import TOOL_CALLS
from firesteel.environments.tool_calls.tasks import tool_task
from firesteel.fewshot import is_guided
from firesteel.generators.mock import MockGenerator
from firesteel.hard_sampling import HardSampling
from firesteel.models import train_tokenizer
from firesteel.probing import GrowerPlay
from firesteel.rescue import RescueContext, make_rescue
from firesteel.rewards import score_trees
from firesteel.rollout import Grower

TASKS = [task for task in ToolCalls.tasks("train", count=60, num_tools=8) if task.kind == "simple"]


@pytest.fixture(scope="module")
def grower() -> Grower:
    """Grows trees of a policy that answers right when it is shown an example, and else says nothing useful."""
    answers = {tool_task(task).query: FORMATS["hermes"].write(tool_task(task).answers[0]) for task in TASKS}
    tokenizer = train_tokenizer([*answers, *answers.values(), "Tools: Example: Query: think hm action"], vocab_size=400)
    context = ContextBuilder(tokenizer, TOOL_CALLS)

    def reply(request, rng):
        prompt = tokenizer.decode(request.token_ids)
        query = re.search(r"Query: ([^\n<]*)", prompt)[1].strip()
        text = answers[query] if "Example:" in prompt else "no"
        return context.encode_response(text)

    return Grower(
        config=RolloutConfig(criterion="chain", num_leaves=4, num_roots=4, max_turns=1),
        generator=MockGenerator(reply, vocab_size=len(tokenizer)),
        context=context,
        criterion=make_criterion("chain", 2, {}),
        make_environment=lambda: ToolCalls(schemas="signature", terse=True),
        vocabulary_size=len(tokenizer),
        max_context=4096,
    )


def test_a_round_guides_what_examples_help(grower: Grower):
    curriculum = HardSampling(TASKS, seed=0)
    play = GrowerPlay(grower, seed=0)
    metrics = curriculum.prepare(0, play)
    # Every task is hard. One with examples is solved by its first rollout; the probe of raw tasks took all ten.
    shown = [task for place, task in enumerate(TASKS) if curriculum.index.draw(task, 0)]
    assert len(shown) > 5
    assert (metrics["hard/no_raw"], metrics["hard/guided"]) == (len(TASKS), len(shown))
    assert metrics["hard/probe_rollouts"] == 10 * len(TASKS) + len(shown)
    assert metrics["hard/probe_tokens"] == play.generated_tokens
    assert metrics["hard/probe_overhead"] == 1.0
    drawn = curriculum.sample(len(TASKS))
    assert sum(map(is_guided, drawn)) == len(shown)


def test_a_rescue_grows_failed_groups_again(grower: Grower):
    trees = grower.grow(TASKS[:6], seed=0)
    score_trees(trees, RewardConfig())
    assert not any(leaf.success for tree in trees for leaf in tree.leaves)

    def regrow(tasks, name):
        grown = grower.grow(tasks, seed=0, iteration=f"0/{name}")
        score_trees(grown, RewardConfig())
        return grown

    rescue = make_rescue("few_shot", TASKS, seed=0, options={"attempts": 2})
    result = rescue(trees, RescueContext(0, regrow))
    assert [tree.group for tree in result] == [task.id for task in TASKS[:6]]
    saved = [tree for tree in result if is_guided(tree.task)]
    assert saved
    assert all(leaf.success and leaf.reward == 1.0 for tree in saved for leaf in tree.leaves)
    assert rescue.metrics["rescue/rescued"] == len(saved) / 6
