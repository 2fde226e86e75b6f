"""Rollouts in which some trees decode while the environments of others step.

In the common turns of `rollout.py` nothing decodes while environments work, and they wait while anything decodes. Here
every tree has turns of its own, in which its budget is granted as there. About half of the lanes decode at any time:
when fewer do, the oldest tree whose environments were told their actions takes their answers. That rule looks at no
clock: the same seed gives the same trees. What is given up: the batches are other ones, so that the last bits of
log-probabilities differ from those of common turns (and a token, where two are nearly tied), and criteria that count
over all trees (`random_tag`) count in another order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from firesteel.errors import ConfigError
from firesteel.responses import ParsedResponse
from firesteel.types import Completion, Request

if TYPE_CHECKING:
    from firesteel.rollout import Grower, Lane


@dataclass(slots=True)
class Turn:
    """One turn of one tree, from its requests to the answers of its environments."""

    lanes: list[Lane]
    counts: list[int]
    answers: list[Completion | None]
    num_missing: int
    completions: list[Completion]
    said: list[tuple[str, ParsedResponse]]


class Overlap:
    """Grows the trees of some lanes to their ends. The generator must have `stream`, as `TorchGenerator` does."""

    def __init__(self, grower: Grower, seed: int, iteration: int | str) -> None:
        if not hasattr(grower.generator, "stream"):
            raise ConfigError(
                f"rollout.overlap needs a generator that takes requests while it decodes (a method `stream`, as of "
                f"'torch'); {type(grower.generator).__name__} has none; set rollout.overlap=false"
            )
        self._grower = grower
        self._seed, self._iteration = seed, iteration
        self._asked: dict[int, tuple[Turn, int]] = {}
        self._num_asked = 0
        self._stepping: deque[Turn] = deque()

    def run(self, lanes: Sequence[Lane]) -> None:
        """Plays every lane, and those that branch off, to its end."""
        trees: dict[str, list[Lane]] = {}
        for lane in lanes:
            trees.setdefault(lane.name, []).append(lane)
        requests = [request for members in trees.values() for request in self._ask(members)]
        self._grower.generator.stream(requests, self._take, self._more)  # type: ignore[attr-defined]

    def _ask(self, lanes: list[Lane]) -> list[Request]:
        grower = self._grower
        lanes = [lane for lane in lanes if grower._fits(lane)]
        requests, counts = grower._requests(lanes, self._seed, self._iteration)
        turn = Turn(lanes, counts, [None] * len(requests), len(requests), [], [])
        for place in range(len(requests)):
            self._asked[self._num_asked + place] = (turn, place)
        self._num_asked += len(requests)
        return requests

    def _take(self, number: int, completion: Completion) -> Sequence[Request]:
        """An answer of the generator; after a tree's last one its environments begin."""
        turn, place = self._asked.pop(number)
        turn.answers[place] = completion
        turn.num_missing -= 1
        if turn.num_missing == 0:
            answers = [answer for answer in turn.answers if answer is not None]
            grower = self._grower
            turn.completions = grower._completions(turn.lanes, turn.counts, answers, self._seed, self._iteration)
            turn.said = grower._announce(turn.lanes, turn.completions)
            self._stepping.append(turn)
        return ()

    def _more(self) -> list[Request]:
        """The next turns of the trees that have stepped longest, while fewer lanes decode than step."""
        requests: list[Request] = []
        while self._stepping and len(self._asked) <= sum(len(turn.lanes) for turn in self._stepping):
            turn = self._stepping.popleft()
            requests += self._ask(
                self._grower._play(turn.lanes, turn.completions, turn.said, self._seed, self._iteration)
            )
        return requests
