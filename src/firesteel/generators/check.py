"""One call that checks a generator against the contract of `firesteel.types.Generator`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from firesteel.errors import ModelError
from firesteel.types import Completion, Generator, Request, SamplingParams

LOGPROB_TOLERANCE = 1e-3


def check_generator(
    generator: Generator, prompts: Sequence[Sequence[int]], *, max_new_tokens: int = 8, seed: int = 0
) -> None:
    """Generates from `prompts` in several ways and compares; a generator that passes can be used by a rollout.

    Checked: one value per token in every list, ranges, finish reasons, policy version, the order of
    completions, that a request gives the same tokens again, alone, and in a reversed batch, that another seed gives
    others, that temperature 0 ignores the seed, and that passing a cache back changes nothing.

    Batch composition may change rounding, which in half precision can change a token: check in float32.

    Args:
        generator: The generator; its weights stay as they are.
        prompts: At least two different contexts, with room for `2 * max_new_tokens` more tokens.
        max_new_tokens: Length of the completions.
        seed: Of the first request; the others count up from it.

    Raises:
        ModelError: The contract is broken; the message says how.
    """
    if not isinstance(generator, Generator):
        raise ModelError(f"{type(generator).__name__} is no generator: it needs version, generate and load_weights")
    sampling = SamplingParams(max_new_tokens)
    requests = [Request(tuple(prompt), seed + index, sampling) for index, prompt in enumerate(prompts)]
    if len(set(map(str, prompts))) < 2:
        raise ModelError("check_generator needs at least two different prompts, to see the order of completions")
    _expect(generator, list(generator.generate([])) == [], "an empty list of requests must give an empty list")
    completions = _generate(generator, requests)
    _same(generator, completions, _generate(generator, requests), "the same requests a second time")
    _same(generator, completions, _generate(generator, requests[::-1])[::-1], "the requests in reversed order")
    alone = [_generate(generator, [request])[0] for request in requests]
    _same(generator, completions, alone, "each request alone")
    _check_seeds(generator, requests)
    _check_cache(generator, requests, completions)


def _check_seeds(generator: Generator, requests: Sequence[Request]) -> None:
    first = requests[0]
    greedy = SamplingParams(first.sampling.max_new_tokens, temperature=0.0)
    seeds = range(first.seed, first.seed + 16)
    sampled = _generate(generator, [Request(first.token_ids, seed, first.sampling) for seed in seeds])
    # A generator that always answers the same, such as a scripted one, is certain of its tokens.
    is_certain = all(math.isclose(value, 0.0, abs_tol=1e-6) for value in sampled[0].sampling_logprobs)
    answers = {tuple(completion.token_ids) for completion in sampled}
    _expect(generator, is_certain or len(answers) > 1, "16 different seeds gave the same tokens 16 times")
    best = _generate(generator, [Request(first.token_ids, seed, greedy) for seed in seeds])
    _expect(
        generator,
        all(value == 0.0 for completion in best for value in completion.sampling_logprobs),
        "at temperature 0 sampling_logprobs must be 0.0",
    )


def _check_cache(generator: Generator, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
    extended = [(*request.token_ids, *done.token_ids) for request, done in zip(requests, completions, strict=True)]
    pairs = list(zip(requests, extended, completions, strict=True))
    kept = [Request(ids, request.seed, request.sampling, done.cache) for request, ids, done in pairs]
    again = [Request(ids, request.seed, request.sampling) for request, ids, _ in pairs]
    _same(
        generator, _generate(generator, again), _generate(generator, kept), "the next turn with its cache passed back"
    )


def _generate(generator: Generator, requests: Sequence[Request]) -> list[Completion]:
    completions = generator.generate(requests)
    _expect(
        generator, len(completions) == len(requests), f"{len(requests)} requests gave {len(completions)} completions"
    )
    for index, (request, completion) in enumerate(zip(requests, completions, strict=True)):
        _check_completion(generator, index, request, completion)
    return completions


def _check_completion(generator: Generator, index: int, request: Request, completion: Completion) -> None:
    name, limit = f"completion {index}", request.sampling.max_new_tokens
    count = len(completion.token_ids)
    lists = {
        "logprobs": completion.logprobs,
        "sampling_logprobs": completion.sampling_logprobs,
        "entropies": completion.entropies,
    }
    for what, values in lists.items():
        _expect(generator, len(values) == count, f"{name}: {len(values)} {what} for {count} tokens")
        _expect(generator, all(map(math.isfinite, values)), f"{name}: {what} are not all finite")
    _expect(generator, 1 <= count <= limit, f"{name}: {count} tokens, wanted 1 to {limit} (max_new_tokens)")
    reason = completion.finish_reason
    _expect(generator, reason in ("stop", "length"), f"{name}: finish_reason '{reason}', wanted 'stop' or 'length'")
    _expect(
        generator, reason == "stop" or count == limit, f"{name}: finish_reason 'length' after {count} of {limit} tokens"
    )
    for what in ("logprobs", "sampling_logprobs"):
        _expect(generator, max(lists[what]) <= LOGPROB_TOLERANCE, f"{name}: {what} above 0")
    _expect(generator, min(completion.entropies) >= -LOGPROB_TOLERANCE, f"{name}: entropies below 0")
    version = completion.policy_version
    _expect(
        generator,
        version == generator.version,
        f"{name}: policy_version {version}, the generator's is {generator.version}",
    )


def _same(generator: Generator, wanted: Sequence[Completion], got: Sequence[Completion], what: str) -> None:
    for index, (one, other) in enumerate(zip(wanted, got, strict=True)):
        _expect(
            generator,
            one.token_ids == other.token_ids,
            f"{what}: completion {index} has tokens {other.token_ids}, wanted {one.token_ids}",
        )
        difference = max(abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True))
        _expect(
            generator,
            difference <= LOGPROB_TOLERANCE,
            f"{what}: logprobs of completion {index} differ by {difference:.3g}",
        )


def _expect(generator: Generator, is_met: bool, problem: str) -> None:
    if not is_met:
        raise ModelError(f"{type(generator).__name__} breaks the generator contract: {problem}")
