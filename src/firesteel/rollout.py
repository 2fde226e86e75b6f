"""Growing trees: all active episodes step together, and a step that explores may branch.

Everything random is drawn from seeds that are derived by name (`derive_seed`): a request's tokens depend on the run's
seed, the iteration, the task, the leaf and the turn, and on nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firesteel.branching import BranchCriterion, FinishedStep, LeafBudget
from firesteel.config import RolloutConfig
from firesteel.context import ContextBuilder, HistoryStep, parse_response
from firesteel.environments.base import Environment, observation_hash
from firesteel.errors import ContextOverflow, EnvironmentFailed
from firesteel.guard import guarded
from firesteel.tree import Leaf, Node, Step, Tree
from firesteel.types import Completion, Generator, Observation, Request, SamplingParams, StepResult, Task


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from a name: the same parts always give the same seed, in any process."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(slots=True)
class Lane:
    """One active episode: a leaf that still grows."""

    tree: Tree
    budget: LeafBudget
    leaf: Leaf
    environment: Environment
    observation: Observation
    turn: int = 0
    cache: Any = None
    exploring: bool = False
    first_entropies_T: list[float] = field(default_factory=list)


@dataclass(slots=True)
class RolloutStats:
    """What growing cost, summed over trees; wall-clock figures are kept apart from metrics."""

    environment_steps: int = 0
    forks: int = 0
    voted: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Grower:
    """Grows trees for one configuration. `max_context` is the model's longest context in tokens."""

    config: RolloutConfig
    generator: Generator
    context: ContextBuilder
    criterion: BranchCriterion
    make_environment: Callable[[], Environment]
    vocabulary_size: int
    max_context: int
    step_timeout_s: float = 60.0
    stats: RolloutStats = field(default_factory=RolloutStats)

    def grow(
        self,
        tasks: Sequence[Task],
        *,
        seed: int,
        iteration: int | str = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Tree]:
        """One tree a task, finished. `on_progress(active, finished)` is called after every turn."""
        lanes: list[Lane] = []
        trees: list[Tree] = []
        for task in tasks:
            tree, started = self._start(task, self.config.num_roots)
            trees.append(tree)
            lanes += started
        while lanes:
            lanes = self._turn(lanes, seed, iteration)
            if not lanes and self.config.fill_with_roots:
                lanes = [lane for tree in trees for lane in self._fill(tree)]
            if on_progress is not None:
                finished = sum(leaf.status != "active" for tree in trees for leaf in tree.leaves)
                on_progress(len(lanes), finished)
        return trees

    # --- starting -------------------------------------------------------------------------------------------

    def _start(self, task: Task, num_roots: int) -> tuple[Tree, list[Lane]]:
        tree = Tree(task=task, group=task.id)
        budget = LeafBudget(self.config.num_leaves, num_roots)
        lanes = [lane for root in range(num_roots) if (lane := self._root(tree, budget, root)) is not None]
        if tree.nodes:
            tree.nodes[0].width = num_roots
        return tree, lanes

    def _fill(self, tree: Tree) -> list[Lane]:
        """Further roots for a tree that used less than its budget."""
        missing = self.config.num_leaves - len(tree.leaves)
        if missing <= 0 or not tree.nodes:
            return []
        first = tree.nodes[0].width
        budget = LeafBudget(self.config.num_leaves, self.config.num_leaves)
        lanes = [self._root(tree, budget, first + extra) for extra in range(missing)]
        tree.nodes[0].width = first + missing
        return [lane for lane in lanes if lane is not None]

    def _root(self, tree: Tree, budget: LeafBudget, root: int) -> Lane | None:
        """Resets an environment; every root of a task must see the same first observation."""
        environment = self.make_environment()
        leaf = Leaf(index=len(tree.leaves), node=0, root=root)
        tree.leaves.append(leaf)
        try:
            with guarded(f"reset of task '{tree.task.id}'", self.step_timeout_s):
                observation = environment.reset(tree.task, seed=tree.task.seed)
                goal = environment.goal
            if not tree.nodes:
                tree.goal, tree.observation = goal, observation.text
                tree.add(-1, "prompt", 0, self.context.first(goal, observation), restart=True)
            elif observation.text != tree.observation:
                raise EnvironmentFailed(
                    f"task '{tree.task.id}' starts differently after two resets with seed {tree.task.seed} "
                    f"({observation_hash(observation)}): the members of a group would play different tasks; "
                    "make reset depend on the task and the seed alone (check_environment tests this)"
                )
        except (EnvironmentFailed, ContextOverflow) as error:
            if not tree.nodes:
                tree.add(-1, "prompt", 0, [], restart=True)
            status = "failed" if isinstance(error, EnvironmentFailed) else "overflow"
            self._end(leaf, environment, status, str(error))
            return None
        return Lane(tree, budget, leaf, environment, observation)

    # --- one turn of all lanes ------------------------------------------------------------------------------

    def _turn(self, lanes: list[Lane], seed: int, iteration: int | str) -> list[Lane]:
        lanes = [lane for lane in lanes if self._fits(lane)]
        completions = self._complete(lanes, seed, iteration)
        alive: list[Lane] = []
        branching: list[tuple[Lane, int]] = []
        for lane, completion in zip(lanes, completions, strict=True):
            step = self._act(lane, completion)
            if step is None:
                continue
            alive.append(lane)
            rng = np.random.default_rng(
                derive_seed(seed, iteration, lane.tree.task.id, lane.leaf.index, lane.turn, "branch")
            )
            event = FinishedStep(
                lane.turn, step.explore, completion.entropies, lane.first_entropies_T, math.log(self.vocabulary_size)
            )
            wanted = self.criterion.wanted(event, rng)
            if wanted > 1:
                branching.append((lane, wanted))
            lane.turn += 1
        order = np.random.default_rng(derive_seed(seed, iteration, "order", len(branching), len(alive)))
        for position in order.permutation(len(branching)):
            alive += self._branch(*branching[position])
        return alive

    def _fits(self, lane: Lane) -> bool:
        length = len(lane.tree.stream(lane.leaf.node)) + self.config.max_response_tokens
        if length <= self.max_context:
            return True
        reason = (
            f"the context needs {length} tokens (prompt and response) and the model takes {self.max_context}; "
            "lower rollout.max_turns or rollout.max_response_tokens, or use context.mode=window"
        )
        self._end(lane.leaf, lane.environment, "overflow", reason)
        return False

    def _complete(self, lanes: list[Lane], seed: int, iteration: int | str) -> list[Completion]:
        """One completion a lane; where a vote is taken, the most frequent action's first completion."""
        sampling = SamplingParams(
            self.config.max_response_tokens, self.config.temperature, self.config.top_k, self.config.top_p
        )
        requests: list[Request] = []
        counts: list[int] = []
        for lane in lanes:
            draws = self.config.width if self.config.vote and lane.exploring else 1
            tokens = lane.tree.stream(lane.leaf.node)
            for draw in range(draws):
                name = (seed, iteration, lane.tree.task.id, lane.leaf.index, lane.turn, *([draw] if draw else []))
                requests.append(Request(tokens, derive_seed(*name), sampling, lane.cache))
            counts.append(draws)
        answers = iter(self.generator.generate(requests) if requests else [])
        return [self._vote([next(answers) for _ in range(count)]) for count in counts]

    def _vote(self, completions: list[Completion]) -> Completion:
        if len(completions) == 1:
            return completions[0]
        self.stats.voted += 1
        actions = [parse_response(self.context.decode_response(completion.token_ids)).action for completion in completions]
        winner = Counter(actions).most_common(1)[0][0]
        return completions[actions.index(winner)]

    def _act(self, lane: Lane, completion: Completion) -> Step | None:
        """Records a response and plays its action; None when the episode is over."""
        tree, leaf = lane.tree, lane.leaf
        text = self.context.decode_response(completion.token_ids)
        parsed = parse_response(text)
        step = Step(
            text=text,
            action=parsed.action or "",
            tag=parsed.tag,
            explore=parsed.explore,
            valid=parsed.valid,
            reasoning=parsed.reasoning,
            truncated_response=completion.finish_reason == "length",
            entropy=float(np.mean(completion.entropies)) if completion.entropies else None,
        )
        node = tree.add(
            leaf.node, "response", lane.turn, list(completion.token_ids),
            logprobs=completion.logprobs, sampling_logprobs=completion.sampling_logprobs,
            temperature=self.config.temperature, policy_version=completion.policy_version, step=step,
        )  # fmt: skip
        leaf.node = node.index
        lane.cache = completion.cache
        lane.exploring = step.explore
        lane.first_entropies_T = lane.first_entropies_T or completion.entropies
        try:
            with guarded(f"step '{step.action}' of task '{tree.task.id}' at turn {lane.turn}", self.step_timeout_s):
                result = lane.environment.step(step.action)
        except EnvironmentFailed as error:
            self._end(leaf, lane.environment, "failed", str(error))
            return None
        self.stats.environment_steps += 1
        return self._observe(lane, node, step, result)

    def _observe(self, lane: Lane, node: Node, step: Step, result: StepResult) -> Step | None:
        """Takes in what the environment answered and feeds it; None when the episode is over."""
        tree, leaf = lane.tree, lane.leaf
        lane.observation = result.observation
        step.observation = result.observation.text
        step.reward = float(result.reward)
        step.understood = bool(result.info.get("valid", True))
        leaf.success = bool(result.info.get("success", result.terminated and result.reward > 0))
        leaf.score = float(result.info.get("score", leaf.score + result.reward))
        last_turn = lane.turn + 1 >= self.config.max_turns
        if result.terminated or result.truncated or last_turn:
            self._end(leaf, lane.environment, "finished" if result.terminated else "truncated", None)
            return None
        try:
            self._feed(lane, node)
        except ContextOverflow as error:
            self._end(leaf, lane.environment, "overflow", str(error))
            return None
        return step

    def _feed(self, lane: Lane, node: Node) -> None:
        tree, leaf = lane.tree, lane.leaf
        if self.context.mode == "window":
            tokens = self.context.render(tree.goal, history(tree, node.index), lane.observation)
            lane.cache = None
        else:
            tokens = self.context.next_turn(self.context.ended(node.token_ids), lane.observation)
        fed = tree.add(node.index, "prompt", lane.turn + 1, tokens, restart=self.context.mode == "window")
        leaf.node = fed.index

    # --- branching and ending -------------------------------------------------------------------------------

    def _branch(self, lane: Lane, wanted: int) -> list[Lane]:
        """Grants continuations after the lane's last step and forks its environment for them."""
        granted = lane.budget.grant(wanted)
        point = lane.tree.nodes[lane.leaf.node]
        point.width = granted
        point.fork_rung = lane.environment.fork_rung if granted > 1 else None
        return [child for _ in range(granted - 1) if (child := self._fork(lane)) is not None]

    def _fork(self, lane: Lane) -> Lane | None:
        leaf = Leaf(index=len(lane.tree.leaves), node=lane.leaf.node, root=lane.leaf.root,
                    success=lane.leaf.success, score=lane.leaf.score)  # fmt: skip
        lane.tree.leaves.append(leaf)
        try:
            with guarded(f"fork of task '{lane.tree.task.id}' at turn {lane.turn}", self.step_timeout_s):
                environment = lane.environment.fork()
        except EnvironmentFailed as error:
            self._end(leaf, None, "failed", str(error))
            return None
        self.stats.forks += 1
        return Lane(
            lane.tree, lane.budget, leaf, environment, lane.observation, lane.turn, lane.cache, lane.exploring,
            lane.first_entropies_T,
        )  # fmt: skip

    def _end(self, leaf: Leaf, environment: Environment | None, status: str, failure: str | None) -> None:
        leaf.status = status
        leaf.failure = failure
        if environment is not None:
            environment.close()


def history(tree: Tree, index: int) -> list[HistoryStep]:
    """The steps on the path to node `index`, as a window prompt shows them: what was seen, then what was done."""
    seen = tree.observation
    result = []
    for node in tree.path(index):
        if node.step is not None:
            tag: Any = node.step.tag
            result.append(HistoryStep(seen, node.step.action, node.step.reasoning, tag))
            seen = node.step.observation
    return result
