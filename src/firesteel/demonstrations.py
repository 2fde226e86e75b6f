"""Stored episodes as trees of one leaf: what supervised learning reads in place of growing trees."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from firesteel.annotate import EpisodeStep, ExpertEpisode, load_episodes
from firesteel.context import ContextBuilder, HistoryStep
from firesteel.errors import StoreError
from firesteel.prompts import format_response
from firesteel.tree import Leaf, Step, Tree
from firesteel.types import ExpertStep, Observation, Task

Write = Callable[[ExpertStep], str]
"""How a prompt set writes an expert's step (`PromptSet.write`)."""


def episode_tree(episode: ExpertEpisode, context: ContextBuilder) -> Tree:
    """The token stream that a policy would have seen and written, had it played the episode.

    In `full` contexts it is one row, in `window` contexts one row a step (as SPARK's cold start trains). Drawn actions
    that follow a thought are fed, not said: they count as prompts.
    """
    task = Task(episode.task_id, kind=episode.kind, split=episode.split, seed=episode.seed)
    tree = Tree(task=task, goal=episode.goal, group=episode.task_id)
    tree.observation = episode.steps[0].observation if episode.steps else ""
    past: list[HistoryStep] = []
    last = -1
    answers = [*(step.observation for step in episode.steps[1:]), episode.final_observation]
    for turn, (step, answer) in enumerate(zip(episode.steps, answers, strict=True)):
        seen = Observation(step.observation, step.admissible)
        fed = _prompt(context, episode.goal, past, seen, turn)
        prompt = tree.add(last, "prompt", turn, fed, restart=turn == 0 or context.mode == "window")
        text, tag = response_text(step, context.prompts.write), _tag(step)
        record = Step(text, step.action, tag, bool(step.explore), tag is not None, step.reason, observation=answer)
        said, drawn = _parts(step, text, context)
        last = tree.add(prompt.index, "response", turn, said, step=record).index
        if drawn:
            last = tree.add(last, "prompt", turn, drawn).index
        past.append(HistoryStep(step.observation, step.action, step.reason, tag))
    status, score = ("finished", 1.0) if episode.success else ("truncated", 0.0)
    tree.leaves.append(Leaf(index=0, node=last, root=0, status=status, success=episode.success, score=score))
    return tree


def _parts(step: EpisodeStep, text: str, context: ContextBuilder) -> tuple[list[int], list[int]]:
    """The response's tokens, and after its thought those of an action that nobody should imitate."""
    whole = context.encode_response(text)
    thought = text.partition("<action>")[0]
    if not step.drawn or not thought:
        return whole, []
    alone = context.encode_response(thought)
    shared = next(
        (place for place, pair in enumerate(zip(whole, alone, strict=False)) if pair[0] != pair[1]), len(alone)
    )
    return whole[:shared], whole[shared:]


def response_text(step: EpisodeStep, write: Write = format_response) -> str:
    """The response that plays a step, or the bare action where nobody annotated it (random play)."""
    return f"<action>{step.action}</action>" if step.explore is None else write(step.expert_step)


def _prompt(
    context: ContextBuilder, goal: str, past: Sequence[HistoryStep], observation: Observation, turn: int
) -> list[int]:
    if context.mode == "window":
        return context.render(goal, past, observation)
    return context.first(goal, observation) if turn == 0 else context.next_turn(True, goal, observation)


def _tag(step: EpisodeStep) -> Any:
    return None if step.explore is None else "explore" if step.explore else "think"


def read_texts(paths: Iterable[str], write: Write = format_response) -> list[str]:
    """All text of some files of episodes: what a small model's tokenizer is trained on."""
    return [text for path in paths for episode in load_episodes(path) for text in episode_texts(episode, write)]


def episode_texts(episode: ExpertEpisode, write: Write = format_response) -> Iterable[str]:
    """Goal, observations and responses of one episode."""
    yield episode.goal
    for entry in episode.steps:
        yield entry.observation
        yield response_text(entry, write)


@lru_cache(maxsize=2)
def shuffled(count: int, seed: str) -> tuple[int, ...]:
    """0 to `count` - 1 in an order that `seed` decides."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return tuple(order)


class StoredTrees:
    """Episodes of some files in a new seeded order each pass; trees are built when they are first drawn."""

    def __init__(self, paths: Iterable[str], context: ContextBuilder, *, seed: int) -> None:
        files = list(paths)
        self.episodes = [episode for path in files for episode in load_episodes(path) if episode.steps]
        if not self.episodes:
            raise StoreError(f"{', '.join(files)}: no episode with a step; collect some with `firesteel collect`")
        self.context = context
        self.seed = seed
        self.drawn = 0
        self._trees: dict[int, Tree] = {}

    def sample(self, count: int) -> list[Tree]:
        """The next `count` trees."""
        chosen = [self._tree(self._index(self.drawn + offset)) for offset in range(count)]
        self.drawn += count
        return chosen

    def _index(self, position: int) -> int:
        turn, place = divmod(position, len(self.episodes))
        return shuffled(len(self.episodes), f"{self.seed}/{turn}")[place]

    def _tree(self, index: int) -> Tree:
        if index not in self._trees:
            self._trees[index] = episode_tree(self.episodes[index], self.context)
        return self._trees[index]

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = int(state["drawn"])
