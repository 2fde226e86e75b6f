"""The in-process generator: any stock Hugging Face decoder, its keys and values kept between turns and branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from firesteel.errors import ConfigError, ContextOverflow, ModelError
from firesteel.generators.decode import Decoder, StopStrings, completion
from firesteel.generators.kv import Epoch, KVBuffer
from firesteel.generators.network import Network
from firesteel.generators.prefill import Job, blocks, plan_jobs
from firesteel.generators.sampling import check_sampling
from firesteel.generators.support import known_end_tokens
from firesteel.types import Completion, Request


class TorchGenerator:
    """Generates with a Hugging Face causal language model in this process. Implements `Generator`.

    Keys and values outlive a call: `Completion.cache` refers to those of its context, and a `Request` that
    passes it back has only its new tokens computed. Several requests may pass the same cache (branches), and
    identical contexts of one batch are computed once. A cache of another policy version or of another generator
    is ignored; of one whose tokens are not a prefix of the context, the common prefix is used.

    During a call the model is in evaluation mode under `torch.inference_mode`; every module's training flag is
    restored afterwards. Neither the weights nor the config stay changed, and no global random state is used.

    Args:
        model: A `transformers` model with a language-model head, or a PEFT model around one.
        tokenizer: Needed for stop strings; gives the end token.
        max_batch: Most requests in one batch; a longer list is split, sorted by length.
        device: Where to move the model; None leaves it where it is.
        max_context: Most tokens of context and response together; None takes the model's limit.
        end_token_ids: Ids that end a completion; None takes the tokenizer's and the generation config's.
        max_prefill_tokens: Most tokens in one prefill pass, padding included; bounds its memory.

    Attributes:
        version: The policy version of the weights, from 0.
        stats: Counters since construction: `calls`; `prefilled_tokens` (context tokens computed);
            `reused_tokens` (context tokens copied from a cache or from an identical context of the same
            batch; the two sum to all context tokens); `generated_tokens`.

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
    ) -> None:
        sizes = {"max_batch": max_batch, "max_prefill_tokens": max_prefill_tokens, "max_context": max_context}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ConfigError(f"TorchGenerator: {name} must be at least 1; got {size}")
        if device is not None:
            model.to(device)
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        self.version = 0
        self.stats = {"calls": 0, "prefilled_tokens": 0, "reused_tokens": 0, "generated_tokens": 0}
        self._max_prefill_tokens = max_prefill_tokens
        self._network = Network(model, max_context)
        ids = known_end_tokens(self._network.inner, tokenizer) if end_token_ids is None else end_token_ids
        self._end_tokens = torch.tensor(list(ids), dtype=torch.long, device=self._network.device)
        self._epoch = Epoch()

    @property
    def max_context(self) -> int:
        """Most tokens that a context and its response may have together."""
        return self._network.max_context

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Continues every request; completions are in the order of the requests.

        Raises:
            ContextOverflow: A context and its `max_new_tokens` exceed `max_context`; nothing was generated.
            ConfigError: A request is empty, has a token outside the vocabulary, or impossible settings.
        """
        for index, request in enumerate(requests):
            self._check_request(index, request)
        self.stats["calls"] += 1
        order = sorted(
            range(len(requests)),
            key=lambda index: (len(requests[index].token_ids), requests[index].sampling.max_new_tokens),
        )
        completions: dict[int, Completion] = {}
        with self._network.borrowed():
            for first in range(0, len(order), self.max_batch):
                chunk = order[first : first + self.max_batch]
                completions.update(zip(chunk, self._generate_batch([requests[i] for i in chunk]), strict=True))
        return [completions[index] for index in range(len(requests))]

    def release(self) -> None:
        """Makes all caches given out so far invalid and frees their memory."""
        self._epoch.end()
        self._epoch = Epoch()

    def load_weights(self, weights: Mapping[str, Any], *, version: int) -> None:
        """Takes new weights by parameter name and releases all caches.

        A tensor that is the model's own (the learner trains the same module) is not copied. Everything is
        checked before anything is copied. Of a PEFT model the trainable parameters are enough.

        Raises:
            ModelError: A name is unknown, a parameter is missing, or a shape differs.
        """
        targets = {**dict(self.model.named_buffers()), **dict(self.model.named_parameters(remove_duplicate=False))}
        self._check_weights(weights, targets)
        with torch.no_grad():
            for name, source in weights.items():
                if not _is_same_tensor(source, targets[name]):
                    targets[name].copy_(source)
        self.version = version
        self.release()

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
            "wrong shapes": [
                f"{name} is {tuple(targets[name].shape)}, got {tuple(value.shape)}"
                for name, value in weights.items()
                if name in targets and targets[name].shape != value.shape
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

    def _generate_batch(self, requests: Sequence[Request]) -> list[Completion]:
        jobs = plan_jobs(requests, self._epoch)
        self._count_context(requests, jobs)
        end = max(len(job.token_ids) for job in jobs)
        room = max(each.sampling.max_new_tokens for each in requests) - 1
        buffer = KVBuffer.zeros(self._network.shape, len(requests), end + room)
        order, logits = self._prefill(jobs, buffer, end)
        ordered = [requests[index] for index in order]
        decoder = Decoder(
            self._network.decoding_forward(buffer.num_columns),
            buffer,
            end,
            [end - len(each.token_ids) for each in ordered],
            ordered,
            self._end_tokens,
            StopStrings(self.tokenizer, [each.sampling.stop for each in ordered]),
        )
        outcomes = dict(zip(order, decoder.run(logits), strict=True))
        self.stats["generated_tokens"] += sum(len(outcome.tokens) for outcome in outcomes.values())
        return [
            completion(outcomes[index], request, self._epoch, self.version) for index, request in enumerate(requests)
        ]

    def _count_context(self, requests: Sequence[Request], jobs: Sequence[Job]) -> None:
        prefilled = sum(job.num_uncached for job in jobs)
        self.stats["prefilled_tokens"] += prefilled
        self.stats["reused_tokens"] += sum(len(each.token_ids) for each in requests) - prefilled

    def _prefill(self, jobs: Sequence[Job], buffer: KVBuffer, end: int) -> tuple[list[int], Tensor]:
        """Fills the buffer up to column `end`; returns each row's request index and next-token logits [B, V].

        The first rows are one per job, block by block, so that each block computes in place; behind them
        come the copies for the other requests of a job.
        """
        placed: list[Job] = []
        parts = []
        for block in blocks(jobs, self._max_prefill_tokens):
            rows = slice(len(placed), len(placed) + len(block))
            width = max(len(job.token_ids) for job in block)
            parts.append(self._network.fill(block, buffer.part(rows, slice(end - width, end))))
            placed += block
        order = [job.requests[0] for job in placed]
        sources = list(range(len(placed)))
        for row, job in enumerate(placed):
            copies = job.requests[1:]
            if copies:
                columns = slice(end - len(job.token_ids), end)
                target = buffer.part(slice(len(order), len(order) + len(copies)), columns)
                target.write(buffer.part(slice(row, row + 1), columns))
                order += copies
                sources += [row] * len(copies)
        logits = torch.cat(parts)
        return order, logits if len(order) == len(placed) else logits[sources]


def _is_same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether both are the same numbers in the same memory; the shapes are known to be equal."""
    is_same_memory = one.device == other.device and one.data_ptr() == other.data_ptr()
    return is_same_memory and one.dtype == other.dtype and one.stride() == other.stride()
