"""Growing trees: all active episodes step together, and a step that explores may branch.

Everything random is drawn from seeds that are derived by name (`derive_seed`): a request's tokens depend on the run's
seed, the iteration, the task, the leaf and the turn, and on nothing else. So a tree is the same whatever other tasks
grow beside it (but for the criterion `random_tag`, whose rate is counted over all of them).
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
from firesteel.environments.base import Environment
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
    """One active episode: a leaf that still grows. `name` is what its tree is called in seeds."""

    name: str
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
    """What growing cost, summed over trees. `outvoted_tokens` were sampled for votes and are in no tree."""

    environment_steps: int = 0
    forks: int = 0
    voted: int = 0
    outvoted_tokens: int = 0


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
    _open: dict[int, Environment] = field(default_factory=dict, init=False)

    def grow(
        self,
        tasks: Sequence[Task],
        *,
        seed: int,
        iteration: int | str = 0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Tree]:
        """One tree a task, finished. `on_progress(active, finished)` is called after every turn.

        An episode whose environment fails is recorded on its leaf and the others go on. A mistake in the setup (an
        unknown task or option, an environment that cannot fork) propagates; all environments are closed then, too.
        """
        trees = [Tree(task=task, group=task.id) for task in tasks]
        names = tree_names(tasks)
        try:
            lanes = [lane for name, tree in zip(names, trees, strict=True) for lane in self._start(name, tree)]
            while lanes:
                lanes = self._turn(lanes, seed, iteration)
                if not lanes and self.config.fill_with_roots:
                    lanes = [lane for name, tree in zip(names, trees, strict=True) for lane in self._fill(name, tree)]
                if on_progress is not None:
                    finished = sum(leaf.status != "active" for tree in trees for leaf in tree.leaves)
                    on_progress(len(lanes), finished)
        finally:
            while self._open:
                self._open.popitem()[1].close()
        return trees

    # --- starting -------------------------------------------------------------------------------------------

    def _start(self, name: str, tree: Tree) -> list[Lane]:
        num_roots = self.config.num_roots
        tree.add(-1, "prompt", 0, [], restart=True, width=num_roots)
        budget = LeafBudget(self.config.num_leaves, num_roots)
        return [lane for root in range(num_roots) if (lane := self._root(name, tree, budget, root)) is not None]

    def _fill(self, name: str, tree: Tree) -> list[Lane]:
        """Further roots for a tree that used less than its budget; they spend all of it, so none of them branches."""
        first = tree.nodes[0].width
        missing = self.config.num_leaves - len(tree.leaves)
        tree.nodes[0].width = first + missing
        budget = LeafBudget(self.config.num_leaves, self.config.num_leaves)
        lanes = [self._root(name, tree, budget, first + extra) for extra in range(missing)]
        return [lane for lane in lanes if lane is not None]

    def _root(self, name: str, tree: Tree, budget: LeafBudget, root: int) -> Lane | None:
        """One more root's episode up to its first prompt, or None where it ends there."""
        leaf = Leaf(index=len(tree.leaves), node=0, root=root)
        tree.leaves.append(leaf)
        environment: Environment | None = None
        try:
            environment = self.make_environment()
            self._open[id(environment)] = environment
            with guarded(f"reset of task '{tree.task.id}'", self.step_timeout_s):
                observation = environment.reset(tree.task, seed=tree.task.seed)
                goal = environment.goal
            self._show_opening(tree, goal, observation)
        except (EnvironmentFailed, ContextOverflow) as error:
            status = "failed" if isinstance(error, EnvironmentFailed) else "overflow"
            self._end(leaf, environment, status, str(error))
            return None
        return Lane(name, tree, budget, leaf, environment, observation)

    def _show_opening(self, tree: Tree, goal: str, observation: Observation) -> None:
        """The first root writes the opening prompt; every other root must be shown the same one."""
        opening = tree.nodes[0]
        if not opening.token_ids:
            tree.goal, tree.observation = goal, observation.text
            opening.token_ids = self.context.first(goal, observation)
            return
        same = (goal, observation.text) == (tree.goal, tree.observation)
        if not same or self.context.first(goal, observation) != opening.token_ids:
            raise EnvironmentFailed(
                f"task '{tree.task.id}' starts differently after two resets with seed {tree.task.seed}: the members of "
                "a group would play different tasks; make reset depend on the task and the seed alone "
                "(check_environment tests this)"
            )

    # --- one turn of all lanes ------------------------------------------------------------------------------

    def _turn(self, lanes: list[Lane], seed: int, iteration: int | str) -> list[Lane]:
        lanes = [lane for lane in lanes if self._fits(lane)]
        completions = self._complete(lanes, seed, iteration)
        alive: list[Lane] = []
        branching: dict[str, list[tuple[Lane, int]]] = {}
        for lane, completion in zip(lanes, completions, strict=True):
            step = self._act(lane, completion)
            if step is None:
                continue
            alive.append(lane)
            rng = np.random.default_rng(derive_seed(seed, iteration, lane.name, lane.leaf.index, lane.turn, "branch"))
            event = FinishedStep(
                lane.turn, step.explore, completion.entropies, lane.first_entropies_T, math.log(self.vocabulary_size)
            )
            wanted = self.criterion.wanted(event, rng)
            if wanted > 1:
                branching.setdefault(lane.name, []).append((lane, wanted))
            lane.turn += 1
        for name, points in branching.items():
            rng = np.random.default_rng(derive_seed(seed, iteration, name, points[0][0].turn, "order"))
            for position in rng.permutation(len(points)):
                alive += self._branch(*points[position])
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
                parts = (seed, iteration, lane.name, lane.leaf.index, lane.turn, *([draw] if draw else []))
                requests.append(Request(tokens, derive_seed(*parts), sampling, lane.cache))
            counts.append(draws)
        answers = iter(self.generator.generate(requests) if requests else [])
        return [self._vote([next(answers) for _ in range(count)]) for count in counts]

    def _vote(self, completions: list[Completion]) -> Completion:
        if len(completions) == 1:
            return completions[0]
        texts = [self.context.decode_response(completion.token_ids) for completion in completions]
        actions = [parse_response(text).action for text in texts]
        winner = completions[actions.index(Counter(actions).most_common(1)[0][0])]
        self.stats.voted += 1
        self.stats.outvoted_tokens += sum(len(one.token_ids) for one in completions) - len(winner.token_ids)
        return winner

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
        leaf = lane.leaf
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
                self._open[id(environment)] = environment
        except EnvironmentFailed as error:
            self._end(leaf, None, "failed", str(error))
            return None
        self.stats.forks += 1
        return Lane(
            lane.name, lane.tree, lane.budget, leaf, environment, lane.observation, lane.turn, lane.cache,
            lane.exploring, lane.first_entropies_T,
        )  # fmt: skip

    def _end(self, leaf: Leaf, environment: Environment | None, status: str, failure: str | None) -> None:
        leaf.status = status
        leaf.failure = failure
        if environment is None:
            return
        self._open.pop(id(environment), None)
        try:
            with guarded(f"close after leaf {leaf.index}", self.step_timeout_s):
                environment.close()
        except EnvironmentFailed as error:
            leaf.failure = failure or str(error)


def tree_names(tasks: Sequence[Task]) -> list[str]:
    """What the tree of each task is called in seeds: the task's id, and "id#1", "id#2" where a task comes again."""
    seen: Counter[str] = Counter()
    names = []
    for task in tasks:
        names.append(f"{task.id}#{seen[task.id]}" if seen[task.id] else task.id)
        seen[task.id] += 1
    return names


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
