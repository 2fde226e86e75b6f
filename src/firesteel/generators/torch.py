"""The in-process generator: any stock Hugging Face decoder, its keys and values kept between turns and branches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from firesteel.errors import ConfigError, ContextOverflow, ModelError
from firesteel.generators.decode import Decoder, Row, StopStrings
from firesteel.generators.kv import Arena
from firesteel.generators.network import Network
from firesteel.generators.prefill import Job, blocks, plan_jobs, rounds
from firesteel.generators.sampling import check_sampling, is_whole
from firesteel.generators.segments import CachedContext, Segment, Store
from firesteel.generators.support import known_end_tokens
from firesteel.types import Completion, Request

Follow = Callable[[int, Completion], Sequence[Request]]
"""Takes the number of a request (0, 1, ... in the order in which they came) and its completion; returns more."""

Poll = Callable[[], Sequence[Request]]
"""Is asked for more requests before every decoding step, and when nothing is left: then none ends the stream."""

COUNTERS = (
    "calls", "prefilled_tokens", "reused_tokens", "generated_tokens", "evicted_tokens", "steps", "row_steps",
)  # fmt: skip

CACHE_PARTS = 4
"""The memory for keys and values is for contexts kept, for prefill, for rows being decoded, and for moving these to a
larger buffer: a quarter each."""


class TorchGenerator:
    """Generates with a Hugging Face causal language model in this process. Implements `Generator`.

    Keys and values outlive a call: `Completion.cache` refers to those of its context, and a `Request` that
    passes it back has only its new tokens computed. Several requests may pass the same cache (branches);
    identical contexts of one batch, and long beginnings that several of them share, are computed once, kept once, and
    (by Llama-style models) attended to once for all rows. A cache of another policy version or of another generator
    is ignored; of one whose tokens are not a prefix of the context, the common prefix is used.

    On the CPU the weights of a Llama-style model are kept a second time, in a layout that is faster with few rows.
    `load_weights` releases these copies and all caches; so does the next call where a sample of the weights' numbers
    shows that they changed without it, whatever the model.

    One call at a time: a call from `follow` or `poll`, or from another thread before the first has ended, is refused.

    During a call the model is in evaluation mode under `torch.inference_mode`; every module's training flag is
    restored afterwards. Neither the weights nor the config stay changed, and no global random state is used.

    Args:
        model: A `transformers` model with a language-model head, or a PEFT model around one.
        tokenizer: Needed for stop strings; gives the end token.
        max_batch: Most rows that are decoded at once; further requests wait for a row that ends.
        device: Where to move the model; None leaves it where it is.
        max_context: Most tokens of context and response together; None takes the model's limit.
        end_token_ids: Ids that end a completion; None takes the tokenizer's and the generation config's. One that the
            model has no token for ends nothing.
        max_prefill_tokens: Most tokens in one prefill pass, padding included; bounds its memory.
        max_cache_bytes: Most memory for keys and values; None: no limit. Where it is reached, fewer rows are decoded
            at once, and contexts are dropped, least recently used first, and computed again when they are needed.

    Attributes:
        version: The policy version of the weights, from 0.
        stats: Counters since construction: `calls`; `prefilled_tokens` (context tokens computed);
            `reused_tokens` (context tokens taken from a cache or from another context of the same batch; the two sum
            to all context tokens); `generated_tokens`; `evicted_tokens` (dropped for want of memory); `steps` (decoding
            passes) and `row_steps` (rows in them, also such as had ended).

    Raises:
        ModelError: No end token is known, or the model cannot keep its keys and values here (sliding windows,
            recurrent state, prompt-learning adapters, or a model whose cached logits differ from its own).
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        max_batch: int = 256,
        device: str | torch.device | None = None,
        max_context: int | None = None,
        end_token_ids: Sequence[int] | None = None,
        max_prefill_tokens: int = 4096,
        max_cache_bytes: int | None = None,
    ) -> None:
        sizes = {
            "max_batch": max_batch,
            "max_prefill_tokens": max_prefill_tokens,
            "max_context": max_context,
            "max_cache_bytes": max_cache_bytes,
        }
        for name, size in sizes.items():
            if size is not None and not is_whole(size):
                raise ConfigError(f"TorchGenerator: {name} must be an integer; got {size!r}")
            if size is not None and size < 1:
                raise ConfigError(f"TorchGenerator: {name} must be at least 1; got {size}")
        if end_token_ids is not None:
            _check_end_tokens(end_token_ids)
        if device is not None:
            model.to(_known_device(device))
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        self.version = 0
        self.stats = dict.fromkeys(COUNTERS, 0)
        self._max_prefill_tokens = max_prefill_tokens
        self._max_cache_bytes = max_cache_bytes
        self._network = Network(model, max_context)
        ids = known_end_tokens(self._network.inner, tokenizer) if end_token_ids is None else end_token_ids
        self._end_tokens = frozenset(ids)
        self._store = Store(self._network.shape)
        self._is_busy = threading.Lock()
        self._release()

    @property
    def max_context(self) -> int:
        """Most tokens that a context and its response may have together."""
        return self._network.max_context

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continues every request; completions are in the order of the requests.

        Raises:
            ContextOverflow: A context and its `max_new_tokens` exceed `max_context`; nothing was generated.
            ConfigError: A request is empty, has a token outside the vocabulary, impossible settings, or needs more
                memory than `max_cache_bytes`; or this generator is generating already.
            ModelError: The model's logits are not finite.
        """
        completions: dict[int, Completion] = {}

        def take(number: int, completion: Completion) -> Sequence[Request]:
            completions[number] = completion
            return ()

        self.stream(requests, take)
        return [completions[number] for number in range(len(requests))]

    def stream(self, requests: Sequence[Request], follow: Follow, poll: Poll = tuple) -> None:
        """Continues every request and those that `follow` and `poll` return, until none is left.

        `follow` is called for every completion as soon as it ends, while other rows are in the middle of theirs; what
        it returns joins them. Which tokens a request gets does not depend on that, up to float rounding. The model must
        stay as it is until the stream ends.

        Raises what `generate` raises: a request that cannot be served ends the stream.
        """
        with self._alone(), self._network.borrowed():
            if not self._network.refresh():
                self._release()
            _Stream(self, follow, poll).run(requests)

    def release(self) -> None:
        """Makes all caches given out so far invalid and frees their memory."""
        with self._alone():
            self._release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Rows in the middle of their responses hold the memory and need the weights: nothing else may have them."""
        if not self._is_busy.acquire(blocking=False):
            raise ConfigError(
                "TorchGenerator is already generating, and a call may not begin inside another one or beside it in "
                "another thread; return further requests from `follow` or `poll`, wait for the call to end, or make "
                "another TorchGenerator"
            )
        try:
            yield
        finally:
            self._is_busy.release()

    def _release(self) -> None:
        self._store.end()
        shape = self._network.shape
        is_tight = self._max_cache_bytes is not None
        self._store = Store(shape)
        self._arenas = (Arena(shape, is_tight=is_tight), Arena(shape, is_tight=is_tight))

    def load_weights(self, weights: Mapping[str, Any], *, version: int) -> None:
        """Takes new weights by parameter name and releases all caches.

        A tensor that is the model's own (the learner trains the same module) is not copied. Everything is
        checked before anything is copied. Of a PEFT model the trainable parameters are enough.

        Raises:
            ModelError: A name is unknown, a parameter is missing, a shape differs, or a value is no tensor.
            ConfigError: The version is no integer, or this generator is generating.
        """
        if not is_whole(version):
            raise ConfigError(f"TorchGenerator.load_weights: version must be an integer; got {version!r}")
        with self._alone():
            self._load(weights, version)

    def _load(self, weights: Mapping[str, Any], version: int) -> None:
        targets = {**dict(self.model.named_buffers()), **dict(self.model.named_parameters(remove_duplicate=False))}
        self._check_weights(weights, targets)
        with torch.no_grad():
            for name, source in weights.items():
                if not _is_same_tensor(source, targets[name]):
                    targets[name].copy_(source)
        self.version = version
        self._network.forget()
        self._release()

    def _check_weights(self, weights: Mapping[str, Any], targets: Mapping[str, Tensor]) -> None:
        given = {id(targets[name]) for name in weights if name in targets}
        is_partial = hasattr(self.model, "peft_config")
        problems = {
            "unknown names": [name for name in weights if name not in targets],
            "missing parameters": [
                name
                for name, parameter in self.model.named_parameters()
                if id(parameter) not in given and (parameter.requires_grad or not is_partial)
            ],
            "values that are no tensors": [
                f"{name} is a {type(value).__name__}"
                for name, value in weights.items()
                if not isinstance(value, Tensor)
            ],
            "wrong shapes": [
                f"{name} is {tuple(targets[name].shape)}, got {tuple(value.shape)}"
                for name, value in weights.items()
                if name in targets and isinstance(value, Tensor) and targets[name].shape != value.shape
            ],
        }
        text = "; ".join(f"{len(found)} {what}: {', '.join(found[:3])}" for what, found in problems.items() if found)
        if text:
            raise ModelError(
                f"weights do not fit {type(self.model).__name__}: {text}; "
                "give the named_parameters() of a model of the same architecture"
            )

    def _check_request(self, index: int, request: Request) -> None:
        owner = f"request {index}"
        token_ids, sampling = request.token_ids, request.sampling
        if len(token_ids) == 0:
            raise ConfigError(f"{owner} has no token ids; a context needs at least one")
        kinds = set(map(type, token_ids))
        if kinds != {int} and not all(issubclass(kind, Integral) for kind in kinds):
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ConfigError(f"{owner} has token ids of type {names}; give a sequence of integers")
        if not is_whole(request.seed):
            raise ConfigError(f"{owner}: seed must be an integer; got {request.seed!r}")
        if min(token_ids) < 0 or max(token_ids) >= self._network.vocabulary:
            raise ConfigError(
                f"{owner} has token ids from {min(token_ids)} to {max(token_ids)}, but the model's vocabulary is "
                f"{self._network.vocabulary}; is it the tokenizer of this model?"
            )
        check_sampling(sampling, owner)
        if sampling.stop and self.tokenizer is None:
            raise ConfigError(f"{owner} has stop strings, which need a tokenizer; give one to TorchGenerator")
        if len(token_ids) + sampling.max_new_tokens > self.max_context:
            raise ContextOverflow(
                f"{owner}: {len(token_ids)} context tokens and max_new_tokens {sampling.max_new_tokens} exceed the "
                f"{self.max_context} tokens of the model; end or restart the context, or lower max_new_tokens"
            )
        num_tokens = len(token_ids) + sampling.max_new_tokens
        if self._max_cells is not None and num_tokens > self._max_cells:
            token_bytes = self._network.shape.token_bytes
            raise ConfigError(
                f"{owner}: {len(token_ids)} context tokens and max_new_tokens {sampling.max_new_tokens} need "
                f"{CACHE_PARTS * num_tokens * token_bytes} bytes for keys and values ({CACHE_PARTS} x {token_bytes} a "
                f"token), and max_cache_bytes is {self._max_cache_bytes}; raise it, or shorten context or response"
            )

    @property
    def _max_cells(self) -> int | None:
        """How many tokens' keys and values each part of the memory holds."""
        if self._max_cache_bytes is None:
            return None
        return self._max_cache_bytes // (CACHE_PARTS * self._network.shape.token_bytes)


class _Stream:
    """One call: requests that wait, rows that are decoded."""

    def __init__(self, owner: TorchGenerator, follow: Follow, poll: Poll) -> None:
        self._owner = owner
        self._follow, self._poll = follow, poll
        self._network, self._store, self._stats = owner._network, owner._store, owner.stats
        self._prefill_arena, decoding_arena = owner._arenas
        self._max_cells = owner._max_cells
        self._decoder = Decoder(
            self._network.best_forward,
            self._network.shape,
            owner._end_tokens,
            decoding_arena,
            version=owner.version,
            is_sharing=self._network.is_sharing,
            max_cells=self._max_cells,
        )
        self._waiting: deque[tuple[int, Request]] = deque()
        self._num_requests = 0

    def run(self, requests: Sequence[Request]) -> None:
        self._submit(requests)
        self._stats["calls"] += 1
        while True:
            self._submit(self._poll())
            if not self._waiting and not self._decoder.live:
                return
            ended = self._admit()
            if self._decoder.live:
                ended += self._decoder.step()
                self._stats["steps"] += 1
                self._stats["row_steps"] += self._decoder.num_slots
            # All are kept before any is answered: an answer may bring rows that take their places.
            for row, completion in [(row, self._complete(row)) for row in ended]:
                self._submit(self._follow(row.number, completion))

    def _submit(self, requests: Sequence[Request]) -> None:
        for index, request in enumerate(requests, self._num_requests):
            self._owner._check_request(index, request)
        numbered = list(enumerate(requests, self._num_requests))
        self._num_requests += len(requests)
        # Similar lengths side by side need less padding.
        numbered.sort(key=lambda each: (len(each[1].token_ids), each[1].sampling.max_new_tokens))
        self._waiting.extend(numbered)

    def _admit(self) -> list[Row]:
        """Computes the contexts of as many waiting requests as there is room for, and starts their rows."""
        live = self._decoder.live
        count = min(len(self._waiting), self._owner.max_batch - len(live))
        if self._max_cells is not None:
            count = self._num_fitting(live, count)
        if count == 0:
            return []
        chosen = [self._waiting.popleft() for _ in range(count)]
        self._prefill_arena.reset()
        jobs = plan_jobs([request for _, request in chosen], self._store)
        rows, logits = self._prefill(jobs, chosen)
        return self._decoder.admit(rows, logits)

    def _num_fitting(self, live: Sequence[Row], most: int) -> int:
        """How many of the first waiting requests have room beside the live rows; one always has, if it is alone."""
        assert self._max_cells is not None
        pasts = [len(row.request.token_ids) + len(row.tokens) for row in live]
        futures = [row.num_missing for row in live]
        for count in range(most):
            request = self._waiting[count][1]
            pasts.append(len(request.token_ids))
            futures.append(request.sampling.max_new_tokens)
            if len(pasts) > 1 and len(pasts) * (max(pasts) + max(futures)) > self._max_cells:
                return count
        return most

    def _prefill(self, jobs: Sequence[Job], chosen: Sequence[tuple[int, Request]]) -> tuple[list[Row], Tensor]:
        """Rows for the requests, with their next-token logits, [B, V]."""
        rows: list[Row] = []
        parts: list[Tensor] = []
        num_computed = 0
        for wave in rounds(jobs):
            for job in wave:
                if job.beginning is not None:
                    job.last = job.beginning.last
            for block in blocks(wave, self._owner._max_prefill_tokens, self._max_cells):
                num_new = sum(job.num_uncached for job in block)
                num_computed += num_new
                self._make_room([job.last for job in jobs], num_new)
                logits = self._network.fill(block, self._prefill_arena)
                for job in block:
                    self._keep(job.last)
                sources = [place for place, job in enumerate(block) for _ in job.requests]
                if sources:
                    parts.append(logits[sources])
                rows += [self._row(job, *chosen[index]) for job in block for index in job.requests]
        self._stats["prefilled_tokens"] += num_computed
        self._stats["reused_tokens"] += sum(len(request.token_ids) for _, request in chosen) - num_computed
        return rows, torch.cat(parts)

    def _row(self, job: Job, number: int, request: Request) -> Row:
        assert job.last is not None
        stops = StopStrings(self._owner.tokenizer, request.sampling.stop, int(request.token_ids[-1]))
        return Row(number, request, job.last, job.filled, stops)

    def _complete(self, row: Row) -> Completion:
        self._make_room([row.context], len(row.tokens))
        last = self._decoder.keep(row)
        self._keep(last)
        # Short segments before it may have become part of it.
        self._make_room([last])
        self._stats["generated_tokens"] += len(row.tokens)
        version = self._owner.version
        return Completion(
            token_ids=row.tokens,
            logprobs=row.logprobs,
            sampling_logprobs=row.sampling_logprobs,
            entropies=row.entropies,
            finish_reason=row.finish_reason,
            policy_version=version,
            cache=CachedContext(self._store, version, last),
        )

    def _keep(self, last: Segment | None) -> None:
        if last is not None:
            self._store.add(last)
            if self._max_cells is not None:
                self._store.touch(last)

    def _make_room(self, needed: Sequence[Segment | None], coming: int = 0) -> None:
        """Drops contexts that take more than their part of the memory, but not these and not those of rows.

        `coming` is the number of tokens about to be kept.
        """
        if self._max_cells is None:
            return
        contexts = [row.context for row in self._decoder.live] + [each for each in needed if each is not None]
        before = self._store.evicted_tokens
        self._store.make_room(self._max_cells * self._network.shape.token_bytes, contexts, coming)
        self._stats["evicted_tokens"] += self._store.evicted_tokens - before


def _check_end_tokens(ids: object) -> None:
    if not isinstance(ids, Collection) or not all(map(is_whole, ids)):
        raise ConfigError(
            f"TorchGenerator: end_token_ids must be a sequence of integers, for example (2,), or None; got {ids!r}"
        )


def _known_device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"TorchGenerator: device must name one that torch knows, for example 'cpu' or 'cuda:0'; got {device!r}"
        ) from error


def _is_same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same numbers in the same memory; the shapes are known to be equal."""
    is_same_memory = one.device == other.device and one.data_ptr() == other.data_ptr()
    return is_same_memory and one.dtype == other.dtype and one.stride() == other.stride()
