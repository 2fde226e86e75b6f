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
from functools import partial
from typing import Any

import numpy as np

from firesteel.branching import BranchCriterion, FinishedStep, LeafBudget
from firesteel.candidates import Candidates
from firesteel.config import RolloutConfig
from firesteel.context import ContextBuilder, HistoryStep
from firesteel.environments.base import Environment
from firesteel.environments.blame import blamed
from firesteel.environments.contract import checked_observation, checked_result, checked_text
from firesteel.environments.fork import timed_fork
from firesteel.errors import ConfigError, ContextOverflow, EnvironmentFailed
from firesteel.guard import guarded, text_of
from firesteel.overlap import Overlap
from firesteel.processes import Named, grow_apart
from firesteel.responses import ParsedResponse
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
    label: str = ""
    candidates: dict[str, float] | None = None


@dataclass(slots=True)
class RolloutStats:
    """What growing cost, summed over trees. `outvoted_tokens` (of votes and of candidates) are in no tree.

    `fork_s` is the wall time of all forks in seconds, `replayed_steps` how many steps they played again.
    """

    environment_steps: int = 0
    forks: int = 0
    fork_s: float = 0.0
    replayed_steps: int = 0
    voted: int = 0
    outvoted_tokens: int = 0


@dataclass(slots=True)
class Grower:
    """Grows trees for one configuration. `max_context` is the model's longest context in tokens.

    `step_timeout_s` 0 leaves the limit to the environments (those of a pool keep their own). Every environment is told
    by `expect` what comes next before the first of them is asked for a result, so that those of a pool work at once.
    With several `processes` each grows the trees of some tasks (`firesteel.processes`).
    """

    config: RolloutConfig
    generator: Generator
    context: ContextBuilder
    criterion: BranchCriterion
    make_environment: Callable[[], Environment]
    vocabulary_size: int
    max_context: int
    step_timeout_s: float = 60.0
    processes: int = 1
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
        named = list(zip(tree_names(tasks), tasks, strict=True))
        grow = partial(Grower._grow, seed=seed, iteration=iteration, on_progress=on_progress)
        return grow(self, named) if self.processes == 1 else grow_apart(self, named, self.processes, grow)

    def _grow(
        self, named: Named, seed: int, iteration: int | str, on_progress: Callable[[int, int], None] | None
    ) -> list[Tree]:
        """The trees of some tasks, in this process."""
        names = [name for name, _ in named]
        trees = [Tree(task=task, group=task.id) for _, task in named]
        try:
            lanes = self._start(names, trees)
            while lanes:
                if self.config.overlap:
                    Overlap(self, seed, iteration).run(lanes)
                    lanes = []
                else:
                    lanes = self._turn(lanes, seed, iteration)
                if not lanes and self.config.fill_with_roots:
                    lanes = self._fill(names, trees)
                if on_progress is not None:
                    finished = sum(leaf.status != "active" for tree in trees for leaf in tree.leaves)
                    on_progress(len(lanes), finished)
        finally:
            while self._open:
                self._open.popitem()[1].close()
        return trees

    # --- starting -------------------------------------------------------------------------------------------

    def _start(self, names: Sequence[str], trees: Sequence[Tree]) -> list[Lane]:
        num_roots = self.config.num_roots
        roots = []
        for name, tree in zip(names, trees, strict=True):
            tree.add(-1, "prompt", 0, [], restart=True, width=num_roots)
            budget = LeafBudget(self.config.num_leaves, num_roots)
            roots += [self._open_root(name, tree, budget, root) for root in range(num_roots)]
        return self._begin(roots)

    def _fill(self, names: Sequence[str], trees: Sequence[Tree]) -> list[Lane]:
        """Further roots for trees that used less than their budget; they spend all of it, so none of them branches."""
        roots = []
        for name, tree in zip(names, trees, strict=True):
            first = tree.nodes[0].width
            missing = self.config.num_leaves - len(tree.leaves)
            tree.nodes[0].width = first + missing
            budget = LeafBudget(self.config.num_leaves, self.config.num_leaves)
            roots += [self._open_root(name, tree, budget, first + extra) for extra in range(missing)]
        return self._begin(roots)

    def _open_root(self, name: str, tree: Tree, budget: LeafBudget, root: int) -> Lane | None:
        """One more root's leaf with its environment, not yet reset; None where there is no environment."""
        leaf = Leaf(index=len(tree.leaves), node=0, root=root)
        tree.leaves.append(leaf)
        try:
            advice = "give the options that it takes as environment.options.NAME=VALUE"
            with blamed("the environment's constructor", advice=advice, error_class=ConfigError):
                environment = self.make_environment()
        except EnvironmentFailed as error:
            self._end(leaf, None, "failed", text_of(error))
            return None
        self._open[id(environment)] = environment
        return Lane(name, tree, budget, leaf, environment, Observation(""))

    def _begin(self, roots: Sequence[Lane | None]) -> list[Lane]:
        """The roots that were reset and shown their first prompt; the others have ended there."""
        lanes = [lane for lane in roots if lane is not None]
        for lane in lanes:
            lane.environment.expect("reset", lane.tree.task, lane.tree.task.seed)
        return [lane for lane in lanes if self._reset(lane)]

    def _reset(self, lane: Lane) -> bool:
        task = lane.tree.task
        try:
            what = f"reset of task '{task.id}'"
            with guarded(what, self.step_timeout_s):
                lane.observation = checked_observation(lane.environment.reset(task, seed=task.seed), what)
                goal = checked_text(lane.environment.goal, f"goal after {what}")
            self._show_opening(lane.tree, goal, lane.observation)
        except (EnvironmentFailed, ContextOverflow) as error:
            status = "failed" if isinstance(error, EnvironmentFailed) else "overflow"
            self._end(lane.leaf, lane.environment, status, text_of(error))
            return False
        return True

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
        requests, counts = self._requests(lanes, seed, iteration)
        answers = self.generator.generate(requests) if requests else []
        completions = self._completions(lanes, counts, answers, seed, iteration)
        return self._play(lanes, completions, self._announce(lanes, completions), seed, iteration)

    def _announce(self, lanes: list[Lane], completions: list[Completion]) -> list[tuple[str, ParsedResponse]]:
        """What the responses say; the environments are told, so that those elsewhere begin."""
        texts = [self.context.decode_response(completion.token_ids) for completion in completions]
        responses = [self.context.parse(text) for text in texts]
        for lane, response in zip(lanes, responses, strict=True):
            lane.environment.expect("step", response.action or "")
        return list(zip(texts, responses, strict=True))

    def _play(
        self,
        lanes: list[Lane],
        completions: list[Completion],
        said: list[tuple[str, ParsedResponse]],
        seed: int,
        iteration: int | str,
    ) -> list[Lane]:
        """Plays one step in every lane and branches; the lanes that go on."""
        alive: list[Lane] = []
        branching: dict[str, list[tuple[Lane, int]]] = {}
        for lane, completion, (text, response) in zip(lanes, completions, said, strict=True):
            step = self._act(lane, completion, text, response)
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

    def _requests(self, lanes: list[Lane], seed: int, iteration: int | str) -> tuple[list[Request], list[int]]:
        """What the generator is asked for these lanes, and how many requests belong to each."""
        sampling = SamplingParams(
            self.config.max_response_tokens, self.config.temperature, self.config.top_k, self.config.top_p
        )
        requests: list[Request] = []
        counts: list[int] = []
        for lane in lanes:
            draws = self.config.width if self.config.vote and lane.exploring else self.config.candidates
            tokens = lane.tree.stream(lane.leaf.node)
            for draw in range(draws):
                parts = (seed, iteration, lane.name, lane.leaf.index, lane.turn, *([draw] if draw else []))
                requests.append(Request(tokens, derive_seed(*parts), sampling, lane.cache))
            counts.append(draws)
        return requests, counts

    def _completions(
        self, lanes: list[Lane], counts: list[int], answers: Sequence[Completion], seed: int, iteration: int | str
    ) -> list[Completion]:
        """One completion a lane: of several, the most frequent action's first (a vote), or a selector's choice."""
        each_answer = iter(answers)
        drawn = [[next(each_answer) for _ in range(count)] for count in counts]
        if self.config.candidates == 1:
            return [self._vote(completions) for completions in drawn]
        chooser = Candidates(self.config)
        seeds = [derive_seed(seed, iteration, lane.name, lane.leaf.index, lane.turn, "choice") for lane in lanes]
        return [self._choose(chooser, *each) for each in zip(lanes, drawn, seeds, strict=True)]

    def _choose(self, chooser: Candidates, lane: Lane, completions: list[Completion], seed: int) -> Completion:
        """The candidate that the selector executes; what it was chosen from is kept for its step."""
        actions = [self.context.parse(self.context.decode_response(each.token_ids)).action for each in completions]
        choice = chooser.choose([each or "" for each in actions], lane.environment, lane.tree, seed)
        lane.label, lane.candidates = choice.label, choice.scores
        chosen = completions[choice.number]
        self.stats.outvoted_tokens += sum(len(each.token_ids) for each in completions) - len(chosen.token_ids)
        return chosen

    def _vote(self, completions: list[Completion]) -> Completion:
        if len(completions) == 1:
            return completions[0]
        texts = [self.context.decode_response(completion.token_ids) for completion in completions]
        actions = [self.context.parse(text).action for text in texts]
        winner = completions[actions.index(Counter(actions).most_common(1)[0][0])]
        self.stats.voted += 1
        self.stats.outvoted_tokens += sum(len(one.token_ids) for one in completions) - len(winner.token_ids)
        return winner

    def _act(self, lane: Lane, completion: Completion, text: str, parsed: ParsedResponse) -> Step | None:
        """Records a response and plays its action; None when the episode is over."""
        tree, leaf = lane.tree, lane.leaf
        step = Step(
            text=text,
            action=parsed.action or "",
            tag=parsed.tag,
            explore=parsed.explore,
            valid=parsed.valid,
            reasoning=parsed.reasoning,
            truncated_response=completion.finish_reason == "length",
            entropy=float(np.mean(completion.entropies)) if completion.entropies else None,
            label=lane.label,
            candidates=lane.candidates,
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
            what = f"step '{step.action}' of task '{tree.task.id}' at turn {lane.turn}"
            with guarded(what, self.step_timeout_s):
                result = checked_result(lane.environment.step(step.action), what)
        except EnvironmentFailed as error:
            self._end(leaf, lane.environment, "failed", text_of(error))
            return None
        self.stats.environment_steps += 1
        return self._observe(lane, node, step, result)

    def _observe(self, lane: Lane, node: Node, step: Step, result: StepResult) -> Step | None:
        """Takes in what the environment answered and feeds it; None when the episode is over."""
        leaf = lane.leaf
        lane.observation = result.observation
        step.observation = result.observation.text
        step.reward = result.reward
        step.understood = result.info.get("valid", True)
        leaf.success = result.info.get("success", result.terminated and result.reward > 0)
        leaf.score = result.info.get("score", leaf.score + result.reward)
        last_turn = lane.turn + 1 >= self.config.max_turns
        if result.terminated or result.truncated or last_turn:
            self._end(leaf, lane.environment, "finished" if result.terminated else "truncated", None)
            return None
        try:
            self._feed(lane, node)
        except ContextOverflow as error:
            self._end(leaf, lane.environment, "overflow", text_of(error))
            return None
        return step

    def _feed(self, lane: Lane, node: Node) -> None:
        tree, leaf = lane.tree, lane.leaf
        if self.context.mode == "window":
            tokens = self.context.render(tree.goal, history(tree, node.index), lane.observation)
            lane.cache = None
        else:
            tokens = self.context.next_turn(self.context.ended(node.token_ids), tree.goal, lane.observation)
        fed = tree.add(node.index, "prompt", lane.turn + 1, tokens, restart=self.context.mode == "window")
        leaf.node = fed.index

    # --- branching and ending -------------------------------------------------------------------------------

    def _branch(self, lane: Lane, wanted: int) -> list[Lane]:
        """Grants continuations after the lane's last step and forks its environment for them."""
        granted = lane.budget.grant(wanted)
        point = lane.tree.nodes[lane.leaf.node]
        point.width = granted
        point.fork_rung = lane.environment.fork_rung if granted > 1 else None
        for _ in range(granted - 1):
            lane.environment.expect("fork")
        return [child for _ in range(granted - 1) if (child := self._fork(lane)) is not None]

    def _fork(self, lane: Lane) -> Lane | None:
        leaf = Leaf(index=len(lane.tree.leaves), node=lane.leaf.node, root=lane.leaf.root,
                    success=lane.leaf.success, score=lane.leaf.score)  # fmt: skip
        lane.tree.leaves.append(leaf)
        try:
            with guarded(f"fork of task '{lane.tree.task.id}' at turn {lane.turn}", self.step_timeout_s):
                environment = timed_fork(lane.environment)
                self._open[id(environment)] = environment
        except EnvironmentFailed as error:
            self._end(leaf, None, "failed", text_of(error))
            return None
        self.stats.forks += 1
        if environment.origin is not None:
            point = lane.tree.nodes[lane.leaf.node]
            point.fork_rung = environment.origin.rung
            point.fork_replayed_steps += environment.origin.replayed_steps
            self.stats.fork_s += environment.origin.seconds
            self.stats.replayed_steps += environment.origin.replayed_steps
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
            leaf.failure = failure or text_of(error)


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
