"""Growing trees: structure, budget, failures, seeds, and the exactness of what is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Ledger, Toy, builder, explore, grower, script, think, tokenizer

from firesteel.advantages import estimate_advantages
from firesteel.annotate import collect_expert_episodes
from firesteel.config import AdvantageConfig, RewardConfig
from firesteel.environments.base import Environment
from firesteel.environments.household import Household
from firesteel.errors import CannotFork, EnvironmentFailed, TaskError
from firesteel.generators.mock import MockGenerator
from firesteel.generators.torch import TorchGenerator
from firesteel.models import build_tiny_model
from firesteel.prompts import format_response
from firesteel.rewards import score_trees
from firesteel.rollout import derive_seed, history, tree_names
from firesteel.tree import Tree
from firesteel.types import Completion, Observation, Request, Task

TASK = Task("t")
MODES = ("full", "window")


def grow(
    lines: dict[tuple[int, ...], str], tasks: Sequence[Task] = (TASK,), **options: Any
) -> tuple[list[Tree], Ledger]:
    """Trees of toy environments that follow a script, and what the environments went through."""
    ledger = Ledger()
    trees = grower(script(lines, tasks), lambda: Toy(ledger), **options).grow(tasks, seed=0)
    for tree in trees:
        tree.validate()
    assert ledger.opened == ledger.closed > 0
    return trees, ledger


def actions(tree: Tree) -> list[list[str]]:
    return [[step.action for step in tree.episode(leaf).steps] for leaf in tree.leaves]


# structure


class Replayed(Household):
    """Forks by playing its actions again."""

    fork_rung = "replay"
    fork = Environment.fork


def test_a_fork_says_on_the_tree_what_it_cost() -> None:
    (task,) = Household.tasks("train", count=1, size="small")
    # leaf 0 explores at its second step: its fork plays both steps again
    lines = {(0, leaf, turn): think("look") for leaf in (0, 1, 2) for turn in (0, 1, 2)} | {(0, 0, 1): explore("look")}
    make = lambda: Replayed(size="small", admissible=False)  # noqa: E731
    growing = grower(script(lines, [task]), make)
    (tree,) = growing.grow([task], seed=0)
    forks = [(node.fork_rung, node.fork_replayed_steps) for node in tree.nodes if node.fork_rung]
    assert forks == [("replay", 2)]
    assert growing.stats.replayed_steps == 2 and growing.stats.fork_s > 0
    assert Tree.from_dict(tree.to_dict()) == tree


@pytest.mark.parametrize("mode", MODES)
def test_the_tree_of_one_branching_by_hand(mode: str) -> None:
    lines = {(0, 0, 0): explore("left"), (0, 2, 1): think("other")}
    (tree,), ledger = grow(lines, mode=mode)
    # roots 0 and 1 (M = 2); leaf 2 continues after leaf 0's first step; K = 3 steps, a prompt before each
    expected = [-1, 0, 1, 0, 3, 2, 5, 4, 7, 2, 9, 6, 8, 10]
    assert [node.parent for node in tree.nodes] == expected
    assert [node.role for node in tree.nodes] == ["prompt"] + ["response", "prompt"] * 5 + ["response"] * 3
    assert [node.width for node in tree.nodes] == [2, 1, 2] + [1] * 11
    assert [node.fork_rung for node in tree.nodes if node.fork_rung] == ["native"]
    assert [(leaf.node, leaf.root, leaf.status) for leaf in tree.leaves] == [
        (11, 0, "truncated"),
        (12, 1, "truncated"),
        (13, 0, "truncated"),
    ]
    assert [tree.path_weight(leaf) for leaf in tree.leaves] == [0.25, 0.5, 0.25]
    assert actions(tree) == [["left", "go", "go"], ["go", "go", "go"], ["left", "other", "go"]]
    # the fork remembers the step before it and nothing of its sibling
    assert tree.nodes[13].step is not None and tree.nodes[13].step.observation == "you did: left other go"
    assert [node.restart for node in tree.nodes if node.role == "prompt"] == [True] + [mode == "window"] * 5
    assert sorted(ledger.played) == sorted(["left", "go", "go", "go", "go", "go", "other", "go"])
    assert (ledger.opened, ledger.resets) == (3, 2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [2, 3, 4])
def test_an_explore_step_runs_once_and_the_next_step_has_b_continuations(mode: str, width: int) -> None:
    (tree,), ledger = grow({(0, 0, 0): explore("left")}, mode=mode, num_leaves=8, num_roots=1, width=width, max_turns=2)
    assert ledger.played.count("left") == 1
    assert [node.parent for node in tree.nodes if node.turn == 1 and node.role == "response"] == [2] * width
    assert actions(tree) == [["left", "go"]] * width


def test_window_siblings_share_one_rendered_prompt() -> None:
    (tree,), _ = grow({(0, 0, 0): explore("left")}, mode="window", num_roots=1, max_turns=2)
    first, second = tree.leaves
    prompt = builder("window").render("Reach the end.", history(tree, 1), Observation("you did: left"))
    assert tree.stream(first.node) == tree.stream(second.node) == prompt + builder().encode_response(think("go"))
    assert [(step.observation, step.action) for step in history(tree, 1)] == [("t: nothing", "left")]


@pytest.mark.parametrize("mode", MODES)
def test_the_stream_of_an_episode_is_what_the_chat_template_says(mode: str) -> None:
    (tree,), _ = grow({(0, 0, 0): think("left"), (0, 0, 1): think("win")}, mode=mode, num_leaves=1, num_roots=1)
    text = tokenizer().decode(tree.stream(tree.leaves[0].node))
    if mode == "full":
        assert text == (
            "<|user|>Reach the end.\nt: nothing<|assistant|><think>go on</think><action>left</action><|eos|>"
            "<|user|>you did: left<|assistant|><think>go on</think><action>win</action><|eos|>"
        )
    else:
        assert text == (
            "<|user|>Reach the end.\n[1]\nt: nothing\n> left\nyou did: left<|assistant|>"
            "<think>go on</think><action>win</action><|eos|>"
        )
    assert tree.leaves[0].status == "finished" and tree.leaves[0].success


def test_what_a_step_records() -> None:
    lines = {(0, 0, 0): "<explore>why</explore>left", (0, 0, 1): think("lose")}
    (tree,), _ = grow(lines, num_leaves=1, num_roots=1)
    first, last = (node.step for node in tree.responses(tree.leaves[0]))
    assert first is not None and last is not None
    assert (first.action, first.tag, first.explore, first.valid) == (
        "<explore>why</explore>left",
        "explore",
        True,
        False,
    )
    assert (last.action, last.tag, last.explore, last.valid, last.reasoning) == ("lose", "think", False, True, "go on")
    assert (tree.leaves[0].status, tree.leaves[0].success, tree.leaves[0].score) == ("finished", False, 0.0)
    assert last.entropy == pytest.approx(5.77, abs=0.01)  # log 320


# budget


@settings(max_examples=60, deadline=None)
@given(
    num_leaves=st.integers(1, 9),
    num_roots=st.integers(1, 5),
    width=st.integers(1, 4),
    mode=st.sampled_from(MODES),
    fill=st.booleans(),
    tags=st.lists(st.sampled_from(["explore", "think", "win", "cut", "fork-raise", "raise"]), min_size=1, max_size=7),
    seed=st.integers(0, 3),
)
def test_no_pattern_of_tags_overspends_the_budget(
    num_leaves: int, num_roots: int, width: int, mode: str, fill: bool, tags: list[str], seed: int
) -> None:
    num_roots = min(num_roots, num_leaves)
    ledger = Ledger()

    def reply(request: Request, rng: Any) -> list[int]:
        tag = tags[int(rng.integers(len(tags)))]
        texts = {"explore": explore("left"), "think": think("go"), "fork-raise": explore("fork-raise")}
        return builder().encode_response(texts.get(tag, think(tag)))

    growing = grower(
        MockGenerator(reply, vocab_size=len(tokenizer())), lambda: Toy(ledger), mode=mode, num_leaves=num_leaves,
        num_roots=num_roots, width=width, max_turns=4, fill_with_roots=fill,
    )  # fmt: skip
    (tree,) = growing.grow([TASK], seed=seed)
    tree.validate()
    assert len(tree.leaves) == tree.nodes[0].width + sum(node.width - 1 for node in tree.nodes[1:])
    assert len(tree.leaves) == num_leaves if fill else num_roots <= len(tree.leaves) <= num_leaves
    assert sum(tree.path_weight(leaf) for leaf in tree.leaves) == pytest.approx(1.0, abs=1e-12)
    assert all(leaf.status in ("finished", "truncated", "failed") for leaf in tree.leaves)
    assert all(1 <= node.width <= width and node.role == "prompt" for node in tree.nodes[1:] if node.width > 1)
    assert all(len(tree.responses(leaf)) <= 4 for leaf in tree.leaves)
    assert ledger.opened == ledger.closed == num_roots * (not fill) + fill * tree.nodes[0].width + growing.stats.forks
    assert len(ledger.played) == sum(node.role == "response" for node in tree.nodes)


@pytest.mark.parametrize("last", ["win", "lose", "cut"])
def test_nothing_branches_after_an_end(last: str) -> None:
    (tree,), ledger = grow({}, max_turns=3)
    assert len(tree.leaves) == 2
    (tree,), ledger = grow({(0, leaf, 1): explore(last) for leaf in (0, 1)})
    assert len(tree.leaves) == 2 and ledger.opened == 2
    assert [leaf.status for leaf in tree.leaves] == ["truncated" if last == "cut" else "finished"] * 2


def test_nothing_branches_at_the_last_step() -> None:
    (tree,), _ = grow({(0, leaf, 2): explore("left") for leaf in (0, 1)})
    assert len(tree.leaves) == 2
    (tree,), _ = grow({(0, leaf, 1): explore("left") for leaf in (0, 1)})
    assert len(tree.leaves) == 4


def test_a_scarce_budget_goes_to_competing_points_in_seeded_order() -> None:
    """Four tagged roots and one leaf to spend: the seed decides which root gets it, and not always the same one."""

    def winner(seed: int) -> int:
        ledger = Ledger()
        generator = MockGenerator([builder().encode_response(explore("left"))], vocab_size=len(tokenizer()))
        growing = grower(generator, lambda: Toy(ledger), num_leaves=5, num_roots=4, max_turns=2)
        (tree,) = growing.grow([TASK], seed=seed)
        (point,) = (node for node in tree.nodes[1:] if node.width > 1)
        return point.index

    winners = [winner(seed) for seed in range(12)]
    assert winners == [winner(seed) for seed in range(12)]
    assert len(set(winners)) > 1


def test_fill_with_roots_tops_up_with_roots_that_do_not_branch() -> None:
    lines = {(0, 0, 0): explore("left"), (0, 4, 0): explore("right")}
    (tree,), _ = grow(lines, num_leaves=5, fill_with_roots=True)
    # two roots, one branch, two further roots of which one tags in vain
    assert [leaf.root for leaf in tree.leaves] == [0, 1, 0, 2, 3]
    assert tree.nodes[0].width == 4
    assert [tree.path_weight(leaf) for leaf in tree.leaves] == [0.125, 0.25, 0.125, 0.25, 0.25]


# votes


def test_a_vote_plays_the_most_frequent_action_and_forks_nothing() -> None:
    lines = {(0, 0, 0): explore("left"), (0, 0, 1): think("a"), (0, 0, 1, 1): think("b"), (0, 0, 1, 2): explore("b")}
    ledger = Ledger()
    generator = script(lines, [TASK])
    growing = grower(
        generator, lambda: Toy(ledger), criterion="chain", vote=True, width=3, num_leaves=1, num_roots=1, max_turns=4
    )
    (tree,) = growing.grow([TASK], seed=0)
    # "b" wins by two votes; its first completion is played, a think, so that step 2 is not voted on
    assert actions(tree) == [["left", "b", "go", "go"]]
    assert len(tree.leaves) == 1 and ledger.opened == 1
    assert [node.token_ids for node in tree.nodes if node.turn == 1 and node.role == "response"] == [
        builder().encode_response(think("b"))
    ]
    assert (len(generator.requests), growing.stats.voted, growing.stats.forks) == (6, 1, 0)
    outvoted = [builder().encode_response(text) for text in (think("a"), explore("b"))]
    assert growing.stats.outvoted_tokens == sum(map(len, outvoted))


def test_a_fork_votes_on_its_first_step_like_its_parent() -> None:
    ledger = Ledger()
    generator = script({(0, 0, 0): explore("left")}, [TASK])
    growing = grower(generator, lambda: Toy(ledger), vote=True, num_leaves=2, num_roots=1, max_turns=2)
    growing.grow([TASK], seed=0)
    # one request for the first step, then two draws (B = 2) for each of the two leaves
    assert (len(generator.requests), growing.stats.voted, growing.stats.forks) == (5, 2, 1)


def test_a_tied_vote_plays_the_first_draw() -> None:
    lines = {(0, 0, 0): explore("left"), (0, 0, 1): think("a"), (0, 0, 1, 1): think("b")}
    (tree,), _ = grow(lines, criterion="chain", vote=True, num_leaves=1, num_roots=1, max_turns=2)
    assert actions(tree) == [["left", "a"]]


# failures


def failed(tree: Tree) -> dict[int, str | None]:
    return {leaf.index: leaf.failure for leaf in tree.leaves if leaf.status == "failed"}


@pytest.mark.parametrize("mode", MODES)
def test_a_step_that_raises_fails_its_leaf_alone(mode: str) -> None:
    lines = {(0, 0, 1): think("raise"), (0, 1, 2): think("win")}
    (tree, other), _ = grow(lines, [TASK, Task("u")], mode=mode)
    assert failed(tree) == {0: "step 'raise' of task 't' at turn 1: ValueError: no such lever"}
    assert tree.leaves[0].node == tree.responses(tree.leaves[0])[-1].index
    assert tree.leaves[1].success and failed(other) == {}


def test_failed_leaves_are_out_of_rewards_baselines_and_rows() -> None:
    lines = {(0, 0, 1): think("raise"), (0, 1, 2): think("win")}
    (tree,), _ = grow(lines, num_leaves=3, num_roots=3)
    score_trees([tree], RewardConfig())
    estimate_advantages([tree], AdvantageConfig(weighting="leaf", baseline="group_mean"))
    # rewards 1 and 0 of leaves 1 and 2: mean .5; the failed leaf has neither reward nor advantage
    assert [leaf.reward for leaf in tree.leaves] == [None, 1.0, 0.0]
    assert [leaf.advantages for leaf in tree.leaves] == [None, [0.5] * 3, [-0.5] * 3]


def test_a_busy_loop_is_a_time_out() -> None:
    (tree,), _ = grow({(0, 0, 0): think("hang")}, step_timeout_s=0.1)
    reason = (
        "step 'hang' of task 't' at turn 0: no answer after 0.1 s; raise environment.step_timeout_s if it is just slow"
    )
    assert failed(tree) == {0: reason}
    assert actions(tree)[1] == ["go"] * 3


def test_a_fork_that_raises_costs_its_leaf_and_keeps_its_weight() -> None:
    (tree,), ledger = grow({(0, 0, 0): explore("fork-raise")})
    assert failed(tree) == {2: "fork of task 't' at turn 1: OSError: cannot copy"}
    assert [tree.path_weight(leaf) for leaf in tree.leaves] == [0.25, 0.5, 0.25]
    assert actions(tree)[2] == ["fork-raise"] and ledger.opened == 2


def test_a_reset_that_drifts_is_named() -> None:
    task = Task("t", seed=7, data={"drifting_resets": (2,)})
    (tree,), _ = grow({}, [task], num_leaves=3, num_roots=3)
    (reason,) = failed(tree).values()
    assert reason is not None and "task 't' starts differently after two resets with seed 7" in reason
    assert list(failed(tree)) == [1] and tree.nodes[0].width == 3


def test_a_first_reset_that_fails_leaves_the_other_roots_alone() -> None:
    (tree,), _ = grow({}, [Task("t", data={"failing_resets": (1,)})], num_leaves=3, num_roots=3)
    assert failed(tree) == {0: "reset of task 't': OSError: no more handles"}
    assert tree.observation == "t: nothing" and actions(tree) == [[], ["go"] * 3, ["go"] * 3]


def test_a_task_whose_resets_all_fail_is_recorded() -> None:
    (tree, other), _ = grow({}, [Task("t", data={"failing_resets": (1, 2)}), Task("u")])
    assert sorted(failed(tree)) == [0, 1] and failed(other) == {}
    score_trees([tree], RewardConfig())
    estimate_advantages([tree], AdvantageConfig())
    assert tree.generated_tokens() == 0


def test_a_constructor_that_fails_is_recorded() -> None:
    def broken() -> Environment:
        raise EnvironmentFailed("the server did not start")

    (tree,) = grower(script({}, [TASK]), broken).grow([TASK], seed=0)
    assert failed(tree) == {0: "the server did not start", 1: "the server did not start"}


def test_a_close_that_raises_is_noted_and_changes_nothing_else() -> None:
    (tree,), _ = grow({(0, 0, 0): think("close-raise")})
    assert [leaf.status for leaf in tree.leaves] == ["truncated"] * 2
    assert tree.leaves[0].failure == "close after leaf 0: OSError: stuck"


class NoFork(Toy):
    def fork(self) -> Toy:
        raise CannotFork("NoFork cannot fork")


class WrongTask(Toy):
    def reset(self, task: Task, *, seed: int) -> Any:
        raise TaskError(f"task '{task.id}' is not mine")


@pytest.mark.parametrize(("cls", "error"), [(NoFork, CannotFork), (WrongTask, TaskError)])
def test_a_mistake_in_the_setup_stops_the_run_and_closes_all_environments(
    cls: type[Toy], error: type[Exception]
) -> None:
    ledger = Ledger()
    with pytest.raises(error):
        grower(script({(0, 0, 0): explore("left")}, [TASK]), lambda: cls(ledger)).grow([TASK], seed=0)
    assert ledger.opened == ledger.closed > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_context_that_grows_too_long_is_an_overflow(mode: str) -> None:
    (tree,), _ = grow({}, mode=mode, num_leaves=1, num_roots=1, max_turns=50, max_context=150)
    leaf = tree.leaves[0]
    fits = [len(tree.stream(node.parent)) + 60 <= 150 for node in tree.responses(leaf)]
    assert leaf.status == "overflow" and fits and all(fits)
    assert len(tree.stream(leaf.node)) + 60 > 150
    assert leaf.failure is not None and "the model takes 150" in leaf.failure


def test_an_opening_that_is_too_long_overflows_every_root() -> None:
    (tree,), ledger = grow({}, [Task("t" * 300)], max_context=100)
    assert [leaf.status for leaf in tree.leaves] == ["overflow"] * 2 and not ledger.played
    score_trees([tree], RewardConfig())
    estimate_advantages([tree], AdvantageConfig())
    assert [leaf.advantages for leaf in tree.leaves] == [[], []]


# seeds and exactness


def test_seeds_follow_from_names() -> None:
    assert derive_seed(0, 1, "t") == derive_seed("0/1/t") != derive_seed(0, 11, "t")
    assert all(0 <= derive_seed(number) < 2**63 for number in range(50))
    assert tree_names([TASK, Task("u"), TASK]) == ["t", "u", "t#1"]


@pytest.fixture(scope="module")
def tiny() -> TorchGenerator:
    model = build_tiny_model(tokenizer(), hidden=32, layers=2, heads=2, kv_heads=1, max_context=1024, seed=3)
    return TorchGenerator(model, tokenizer())


@pytest.mark.parametrize("mode", MODES)
def test_a_tree_is_the_same_whatever_grows_beside_it(tiny: TorchGenerator, mode: str) -> None:
    tasks = Household.tasks("train", count=3, size="small")

    def grown(chosen: Sequence[Task]) -> list[Tree]:
        options = {"criterion": "fixed_probability", "criterion_options": {"probability": 0.7}, "num_leaves": 3}
        growing = grower(
            tiny, lambda: Household(size="small", admissible=False), mode=mode, max_response_tokens=10, **options
        )
        return growing.grow(chosen, seed=4, iteration=2)

    def shape(tree: Tree) -> list[Any]:
        nodes = [(node.parent, node.width, node.token_ids, node.step) for node in tree.nodes]
        for *_, step in nodes:
            if step is not None:
                step.entropy = None  # a mean of float32 numbers, equal to rounding only
        return [nodes, tree.leaves]

    alone, together, turned = grown(tasks[:1])[0], grown(tasks), grown(tasks[::-1])
    assert len(alone.leaves) == 3 and shape(alone) == shape(together[0]) == shape(turned[2])
    assert shape(together[1]) == shape(turned[1]) != shape(alone)
    twice = grown([tasks[0], tasks[0]])
    assert shape(twice[0]) == shape(alone) != shape(twice[1])
    assert twice[0].nodes[1].token_ids != twice[1].nodes[1].token_ids


class Recording:
    """A generator that keeps what it was asked and what it gave."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.version = inner, 0
        self.pairs: list[tuple[list[int], Completion]] = []

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        completions: list[Completion] = self.inner.generate(requests)
        self.pairs += [(list(one.token_ids), two) for one, two in zip(requests, completions, strict=True)]
        return completions

    def load_weights(self, weights: Any, *, version: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("mode", MODES)
def test_nodes_hold_exactly_the_sampled_ids(mode: str) -> None:
    """Responses are spelled character by character, so that tokenising their text again would give other ids."""

    def spell(request: Request, rng: Any) -> list[int]:
        text = (explore if rng.random() < 0.5 else think)(("left", "right")[int(rng.integers(2))])
        ids = [token for character in text for token in tokenizer().encode(character, add_special_tokens=False)]
        assert ids != tokenizer().encode(text, add_special_tokens=False)
        return [*ids, builder().end_token_id]

    ledger = Ledger()
    generator = Recording(MockGenerator(spell, vocab_size=len(tokenizer())))
    (tree,) = grower(generator, lambda: Toy(ledger), mode=mode, num_leaves=6, max_response_tokens=80).grow(
        [TASK], seed=1
    )
    nodes = [node for node in tree.nodes if node.role == "response"]
    assert len(tree.leaves) > 2 and len(nodes) == len(generator.pairs)
    asked_and_given = sorted((context, completion.token_ids) for context, completion in generator.pairs)
    assert sorted((tree.stream(node.parent), node.token_ids) for node in nodes) == asked_and_given
    assert sorted(tree.stream(node.index) for node in nodes) == sorted(one + two for one, two in asked_and_given)
    assert {step.action for node in nodes if (step := node.step)} == {"left", "right"}
    assert all(node.logprobs is not None and len(node.logprobs) == len(node.token_ids) for node in nodes)


def test_a_response_that_is_cut_off_is_closed_by_the_next_prompt() -> None:
    (tree,), _ = grow({}, num_leaves=1, num_roots=1, max_turns=2, max_response_tokens=4)
    first, _ = tree.responses(tree.leaves[0])
    assert len(first.token_ids) == 4 and first.step is not None and first.step.truncated_response
    assert tree.nodes[2].token_ids[0] == builder().end_token_id != first.token_ids[-1]


# the real environment


@pytest.mark.parametrize("mode", MODES)
def test_the_household_expert_played_by_a_generator_succeeds(mode: str) -> None:
    (task,) = Household.tasks("train", count=1, size="small")
    options = {"size": "small", "admissible": False}
    (episode,) = collect_expert_episodes(Household, [task], options)
    lines = {(0, 0, turn): format_response(step.expert_step) for turn, step in enumerate(episode.steps)}
    # a second leaf continues after the first explore step, and repeats what the first one did
    branch = episode.explore_flags.index(True)
    lines |= {(0, 1, turn): text for (_, _, turn), text in list(lines.items()) if turn > branch}
    growing = grower(
        script(lines, [task]), lambda: Household(**options), mode=mode, num_leaves=2, num_roots=1, max_turns=30
    )
    (tree,) = growing.grow([task], seed=0)
    assert [(leaf.status, leaf.success, leaf.score) for leaf in tree.leaves] == [("finished", True, 1.0)] * 2
    assert actions(tree) == [[step.action for step in episode.steps]] * 2
    seen = [step.observation for step in tree.episode(tree.leaves[1]).steps]
    assert seen == [*(step.observation for step in episode.steps[1:]), episode.final_observation]
    assert tree.goal == episode.goal and growing.stats.forks == 1
    assert growing.stats.environment_steps == 2 * len(episode.steps) - branch - 1
