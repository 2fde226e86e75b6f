"""Drawing tokens: counter-based uniforms, truncation, and the inverse of the cumulative distribution.

Letters: `B` rows, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from firesteel.errors import ConfigError
from firesteel.types import SamplingParams

MIN_TEMPERATURE = 1e-6
"""Logits divided by less may overflow; the distribution is that of temperature 0 long before."""


class Draw(NamedTuple):
    """One sampled token per row; every tensor has shape [B]. Entropies are in nats."""

    tokens: Tensor
    logprobs: Tensor
    sampling_logprobs: Tensor
    entropies: Tensor


def check_sampling(params: SamplingParams, owner: str) -> None:
    """Raises `ConfigError` naming `owner` where a sampling setting is of the wrong type or out of its range."""
    is_list = isinstance(params.stop, tuple | list)
    problems = {
        "max_new_tokens must be an integer": not is_whole(params.max_new_tokens),
        "temperature must be a number": not _is_number(params.temperature),
        "top_k must be an integer": not is_whole(params.top_k),
        "top_p must be a number": not _is_number(params.top_p),
        "stop must be a tuple of strings": not is_list or not all(isinstance(each, str) for each in params.stop),
    }
    if not any(problems.values()):
        problems = {
            "max_new_tokens must be at least 1": params.max_new_tokens < 1,
            f"temperature must be 0 (greedy) or at least {MIN_TEMPERATURE:g}, and finite": params.temperature != 0
            and not MIN_TEMPERATURE <= params.temperature < float("inf"),
            "top_k must be 0 (off) or more, and below 2**63": not 0 <= params.top_k < 2**63,
            "top_p must be in (0, 1]": not 0.0 < params.top_p <= 1.0,
            "stop must not hold an empty string": "" in params.stop,
        }
    wrong = [text for text, is_wrong in problems.items() if is_wrong]
    if wrong:
        raise ConfigError(f"{owner}: {'; '.join(wrong)}; got {params}")


def is_whole(value: object) -> bool:
    """Whether a value counts as an integer: Python's or NumPy's, but no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def uniforms(seed: int, count: int) -> np.ndarray:
    """The first `count` numbers in [0, 1) of the stream that belongs to `seed`, shape [count], float64.

    Number t depends on `seed` and t alone (Philox, keyed by the seed), so that what a request draws does
    not depend on the batch that it is in, and a longer request starts with the draws of a shorter one.
    """
    return np.random.Generator(np.random.Philox(key=int(seed) % 2**128)).random(count)


def truncate(probabilities: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zeroes what top-k and then top-p leave out, and renormalises.

    Args:
        probabilities: [B, V], each row sums to 1.
        top_k: [B] integers, 0 is off. Exactly k tokens stay; of equal ones those with the lower ids.
        top_p: [B] in (0, 1], 1 is off. Of what top-k left, renormalised, the fewest tokens whose sum
            reaches top_p stay; always at least one.
    """
    ordered, indices = probabilities.sort(dim=-1, descending=True, stable=True)
    vocabulary = probabilities.shape[-1]
    ranks = torch.arange(vocabulary, device=probabilities.device)
    kept_count = torch.where(top_k > 0, top_k, vocabulary)[:, None]
    ordered = torch.where(ranks < kept_count, ordered, 0.0)
    ordered = ordered / ordered.sum(-1, keepdim=True)
    sum_before = ordered.cumsum(-1) - ordered
    is_kept = (sum_before < top_p[:, None]) | (top_p[:, None] >= 1.0) | (ranks == 0)
    ordered = torch.where(is_kept, ordered, 0.0)
    ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(ordered).scatter_(-1, indices, ordered)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds `uniform` times the total.

    Args:
        probabilities: [B, V], not negative; rows need not sum to 1 exactly.
        uniform: [B] float64 in [0, 1).

    Returns:
        [B] token ids, each with a probability above 0: a float64 below 1 is at most 1 - 2**-53, and so much of the
        total is below the total, also when it is rounded. The last id where probabilities are NaN.
    """
    # float64: in a float32 sum the tail of a large vocabulary is lost to rounding.
    cumulative = probabilities.to(torch.float64, copy=True).cumsum_(-1)
    tokens = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True).squeeze(-1)
    return tokens.clamp_max_(probabilities.shape[-1] - 1)


class Sampler:
    """Draws one token per row, every row with its own settings.

    `logprobs` and `entropies` of a draw are of the raw distribution (temperature 1, whole vocabulary, in
    float32). `sampling_logprobs` are of the distribution that was drawn from: tempered, truncated and
    renormalised. Temperature 0 takes the most probable token (of equal ones the lowest id) with
    `sampling_logprobs` 0.0, because nothing else could have been drawn; top-k and top-p then change nothing.
    """

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        is_greedy = [each.temperature == 0 for each in params]
        temperatures = [each.temperature or 1.0 for each in params]
        self._device = device
        self._memory: Tensor | None = None
        self._all_greedy, self._any_greedy = all(is_greedy), any(is_greedy)
        self._is_tempered = any(value != 1.0 for value in temperatures)
        self._is_truncated = any(each.temperature > 0 and (each.top_k or each.top_p < 1) for each in params)
        self._is_greedy = torch.tensor(is_greedy, device=device)
        self._temperatures = torch.tensor(temperatures, device=device)[:, None]
        self._top_k = torch.tensor([each.top_k for each in params], device=device)
        self._top_p = torch.tensor([each.top_p for each in params], device=device)

    def draw(self, logits: Tensor, uniforms: Sequence[float]) -> Draw:
        """One token for every row; `logits` is [B, V] in any float type, `uniforms` has a number in [0, 1) a row."""
        logits = logits.float()
        if self._memory is None or self._memory.shape[1:] != logits.shape:
            # Kept: with many logits, new pages from the operating system take longer than what is written to them.
            self._memory = logits.new_empty((2, *logits.shape))
        raw, probabilities = self._memory
        # A forbidden token has logit -inf, and 0 * -inf is NaN.
        torch.log_softmax(logits, dim=-1, out=raw).clamp_min_(torch.finfo(torch.float32).min)
        torch.exp(raw, out=probabilities)
        entropies = torch.linalg.vecdot(probabilities, raw).neg_()
        if self._all_greedy:
            tokens = raw.argmax(-1)
            chosen = raw.gather(-1, tokens[:, None]).squeeze(-1)
            return Draw(tokens, chosen, torch.zeros_like(chosen), entropies)
        source = probabilities
        if self._is_tempered:
            source = torch.softmax(logits / self._temperatures, dim=-1)
        if self._is_truncated:
            source = truncate(source, self._top_k, self._top_p)
        numbers = torch.tensor(uniforms, dtype=torch.float64, device=self._device)
        tokens = inverse_cdf(source, numbers)
        if self._any_greedy:
            tokens = torch.where(self._is_greedy, raw.argmax(-1), tokens)
        chosen = raw.gather(-1, tokens[:, None]).squeeze(-1)
        is_raw = source is probabilities
        sampling = chosen if is_raw else source.gather(-1, tokens[:, None]).squeeze(-1).log()
        if self._any_greedy:
            sampling = torch.where(self._is_greedy, 0.0, sampling)
        return Draw(tokens, chosen, sampling, entropies)
