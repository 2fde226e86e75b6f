"""A generator without a model, for tests of environments, rollouts and recipes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from firesteel.errors import ConfigError
from firesteel.types import Completion, Request

Reply = Callable[[Request, np.random.Generator], Sequence[int]]


class MockGenerator:
    """Answers with given token ids. Implements `Generator`; the same request gives the same answer in any batch.

    Every token has the log-probability -log(V) and the entropy log(V) of a uniform policy (at temperature 0 the
    `sampling_logprobs` are 0.0, as for any generator). A reply that is longer than `max_new_tokens` is cut and
    ends with "length"; otherwise it ends with "stop". Stop strings, top-k and top-p are ignored, and `cache`
    is always None.

    Args:
        reply: A function of the request and a random generator seeded by the request's seed; or a list of
            replies, of which the seed draws one; or None: uniformly random tokens until `end_token_id`.
        vocab_size: V, at least 1.
        end_token_id: Where a random reply ends; None never ends it before `max_new_tokens`.

    Attributes:
        version: The policy version, from 0; `load_weights` sets it.
        requests: All requests so far, in order.
        weights: What `load_weights` was given last.
    """

    def __init__(
        self,
        reply: Reply | Sequence[Sequence[int]] | None = None,
        *,
        vocab_size: int = 256,
        end_token_id: int | None = None,
    ) -> None:
        if vocab_size < 1:
            raise ConfigError(f"MockGenerator: vocab_size must be at least 1; got {vocab_size}")
        if reply is not None and not callable(reply) and len(reply) == 0:
            raise ConfigError("MockGenerator: the list of replies is empty; give at least one, or None for random ones")
        self.vocab_size = vocab_size
        self.end_token_id = end_token_id
        self.version = 0
        self.requests: list[Request] = []
        self.weights: Mapping[str, Any] = {}
        self._reply = reply

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answers every request, in order."""
        self.requests.extend(requests)
        return [self._complete(request) for request in requests]

    def load_weights(self, weights: Mapping[str, Any], *, version: int) -> None:
        """Remembers the weights and takes the version."""
        self.weights = weights
        self.version = version

    def _complete(self, request: Request) -> Completion:
        limit = request.sampling.max_new_tokens
        rng = np.random.Generator(np.random.Philox(key=request.seed % 2**128))
        full, is_whole = self._full_reply(request, rng)
        token_ids = full[:limit]
        outside = [token for token in token_ids if not 0 <= token < self.vocab_size]
        if outside or not token_ids:
            problem = f"holds token {outside[0]}" if outside else "is empty"
            raise ConfigError(
                f"MockGenerator: a reply {problem}; give at least one token, all from 0 to {self.vocab_size - 1}, "
                "or raise vocab_size"
            )
        logprobs = [-math.log(self.vocab_size)] * len(token_ids)
        return Completion(
            token_ids=token_ids,
            logprobs=logprobs,
            sampling_logprobs=[0.0] * len(token_ids) if request.sampling.temperature == 0 else list(logprobs),
            entropies=[math.log(self.vocab_size)] * len(token_ids),
            finish_reason="stop" if is_whole and len(full) <= limit else "length",
            policy_version=self.version,
        )

    def _full_reply(self, request: Request, rng: np.random.Generator) -> tuple[list[int], bool]:
        """The reply before it is cut, and whether it is all that there is."""
        if callable(self._reply):
            return [int(token) for token in self._reply(request, rng)], True
        if self._reply is not None:
            return [int(token) for token in self._reply[int(rng.integers(len(self._reply)))]], True
        token_ids = rng.integers(self.vocab_size, size=request.sampling.max_new_tokens).tolist()
        if self.end_token_id in token_ids:
            return token_ids[: token_ids.index(self.end_token_id) + 1], True
        return token_ids, False
