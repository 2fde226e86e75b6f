"""How rows go through the model: which of them together, side by side or packed, and what comes out.

A pass runs some rows side by side, or as one stream in which what they share stands once (`layout`). Either way it
ends in the same trained tokens with the same weights, so the two differ in time and memory alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from firesteel.errors import ModelError
from firesteel.generators.support import decoder_config, inner_model
from firesteel.layout import Ints, cut, lay_out, num_slots, trie_order
from firesteel.learners.tree_attention import TreeStream, reason_against_packing, tree_attention_active
from firesteel.losses import selected_logprobs
from firesteel.packing import Row

LOGIT_CHANGES = (
    "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "logit_scale", "logits_scaling",
    "lm_head_multiplier",
)  # fmt: skip
"""Config fields of models that change the logits after the head. A cap may not show in the small logits of new weights,
so that `has_plain_head` alone would not find it."""

LEAST_TOKEN_RATIO = 1.1
"""`packing: auto` packs where rows would be at least so many times the tokens. At 1.28 times the tokens an update took
1.24 times as long (`benchmarks/results/tree_packed.json`); nothing below that was measured, 1.1 is a guess."""

LOGITS_PER_CHUNK = {"cpu": 2**21, "cuda": 2**26}
"""How many logits live at once, by device: enough for full speed of the head's products, and no more."""

LEAST_TOKENS_PER_CHUNK = 256
"""Each chunk adds to the gradient of the whole head, which costs as much as the products of some 20 tokens."""

CHECKED_ROWS = 4
"""How many neighbouring rows the first packed step is compared on."""

CHECK_ROUNDINGS = 32
"""By how many roundings of the largest log-probability the two may differ there."""


@dataclass(slots=True)
class TokenBatch:
    """The T trained tokens of one micro-batch, all shape [T]; see `packing.Row` for the weights."""

    token_ids_T: Tensor
    old_logprobs_T: Tensor
    temperature_T: Tensor
    weight_T: Tensor
    positive_T: Tensor
    negative_T: Tensor
    reference_logprobs_T: Tensor | None = None

    def part(self, chosen: slice) -> TokenBatch:
        """Some of the tokens."""
        reference_T = self.reference_logprobs_T
        return TokenBatch(
            self.token_ids_T[chosen], self.old_logprobs_T[chosen], self.temperature_T[chosen], self.weight_T[chosen],
            self.positive_T[chosen], self.negative_T[chosen], None if reference_T is None else reference_T[chosen],
        )  # fmt: skip


@dataclass(slots=True)
class Pass:
    """One forward pass: the places of its rows in the optimiser step, and where it packs them what each shares.

    `shared` has one entry per row, as from `layout.trie_order`; None runs the rows side by side, padded.
    """

    rows: list[int]
    shared: Ints | None = None


Head = Callable[[Tensor], Tensor]
"""From hidden states [T, D] to logits [T, V]."""


class Passes:
    """Plans and runs the passes of one model.

    Args:
        packing: "rows" never packs; "tree" always, or fails; "auto" where the model allows it and enough is shared.
        most_tokens: of one pass, padding included.
    """

    def __init__(self, model: Any, packing: Literal["auto", "tree", "rows"], most_tokens: int) -> None:
        self.model = model
        self.packing = packing
        self.most_tokens = most_tokens
        self._packs: bool | None = None
        self._has_plain_head: bool | None = None
        self._is_checked = False

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def plan(self, rows: Sequence[Row]) -> tuple[list[Pass], dict[str, float]]:
        """The passes of one optimiser step, packed where that is possible, wanted and pays; and what they amount to.

        `pack/forward_tokens` go through the model; `pack/forward_ratio` is how many tokens of rows stand for each.
        """
        lengths = [len(row) for row in rows]
        groups = micro_batches(lengths, self.most_tokens)
        passes, tokens = [Pass(group) for group in groups], sum(len(group) * lengths[group[0]] for group in groups)
        if self.may_pack:
            order, shared = trie_order([row.token_ids for row in rows])
            in_order = [lengths[index] for index in order]
            parts = cut(in_order, shared, self.most_tokens)
            slots = num_slots(in_order, shared, parts)
            pays = self.packing == "tree" or tokens >= LEAST_TOKEN_RATIO * slots
            if pays and self._is_exact([rows[index] for index in order], shared):
                passes = [Pass(order[part.start : part.stop], shared[part.start : part.stop]) for part in parts]
                tokens = slots
        return passes, {
            "pack/is_tree": float(passes[0].shared is not None),
            "pack/forward_tokens": float(tokens),
            "pack/forward_ratio": sum(lengths) / tokens,
        }

    @property
    def may_pack(self) -> bool:
        """Whether trees may be packed, as far as the setting and the model say.

        Raises:
            ModelError: the setting is "tree" and the model cannot.
        """
        if self._packs is None:
            self._packs = self.packing != "rows"
            reason = reason_against_packing(self.model) if self._packs else ""
            if reason:
                self._refuse(reason)
        return self._packs

    def _is_exact(self, rows: Sequence[Row], shared: Ints) -> bool:
        """Compares packed log-probabilities with those of single rows, once, and refuses the model if they differ.

        `rows` are in trie order; what is compared are neighbours around the place where most is shared.
        """
        if not self._is_checked:
            self._is_checked = bool(shared.any())
            first = max(0, min(int(shared.argmax()) - 1, len(rows) - CHECKED_ROWS))
            problem = self._difference(rows[first : first + CHECKED_ROWS], shared[first : first + CHECKED_ROWS])
            if problem:
                self._refuse(problem)
        return self.may_pack

    def _difference(self, rows: Sequence[Row], shared: Ints) -> str:
        """What is wrong with the packed log-probabilities of some rows in trie order; "" if nothing is."""
        was_training = self.model.training
        self.model.eval()
        try:
            packed = self.logprobs(Pass(list(range(len(rows))), shared), rows)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
            return f"its forward pass over a packed tree fails: {error}"
        finally:
            self.model.train(was_training)
        self.model.eval()
        alone = np.concatenate([self.logprobs(Pass([0]), [row]) for row in rows])
        self.model.train(was_training)
        difference = float(np.abs(packed - alone).max())
        rounding = max(torch.finfo(next(self.model.parameters()).dtype).eps, torch.finfo(torch.float32).eps)
        allowed = CHECK_ROUNDINGS * rounding * max(1.0, float(np.abs(alone).max()))
        if difference <= allowed:
            return ""
        return (
            f"on the first step its packed log-probabilities differ by {difference:.2g} from those of single rows "
            f"(allowed {allowed:.2g}), so something in it sees more than a token's own past"
        )

    def _refuse(self, reason: str) -> None:
        """Goes on with rows, or fails where packing was demanded."""
        self._packs = False
        message = f"{type(inner_model(self.model)).__name__} cannot be trained on packed trees: {reason}"
        if self.packing == "tree":
            raise ModelError(f"{message}; set learner.packing=rows")
        warnings.warn(f"{message}; its rows are trained one by one", RuntimeWarning, stacklevel=2)

    def attention(self, each: Pass) -> AbstractContextManager[None]:
        """Forward and backward pass belong inside: layers that are recomputed attend anew in the backward pass."""
        if self._has_plain_head is None:  # found out here because inside only packed trees go through the model
            self._has_plain_head = has_plain_head(self.model)
        return nullcontext() if each.shared is None else tree_attention_active(self.model)

    def tokens(self, rows: Sequence[Row]) -> TokenBatch:
        """The trained tokens of some rows, row by row."""

        def field(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(row, name)[row.loss_mask] for row in rows])).to(self.device)

        return TokenBatch(
            field("token_ids"), field("old_logprobs"), field("temperature"), field("weight"),
            field("positive"), field("negative"),
        )  # fmt: skip

    def states(self, each: Pass, rows: Sequence[Row]) -> tuple[Tensor, Head]:
        """What the head turns into the logits of every trained token, [T, D], and the head."""
        device = self.device
        columns = [np.flatnonzero(row.loss_mask) - 1 for row in rows]
        if each.shared is not None:
            layout = lay_out([row.token_ids for row in rows], each.shared)
            stream = TreeStream(layout, device)
            column_T = np.concatenate([slots[before] for slots, before in zip(layout.slots, columns, strict=True)])
            return states_at(
                self.model, stream.token_ids, torch.zeros(len(column_T), dtype=torch.long, device=device),
                torch.from_numpy(column_T).to(device), is_plain=bool(self._has_plain_head),
                position_ids=stream.positions, tree_stream=stream,
            )  # fmt: skip
        longest = max(len(row) for row in rows)
        ids_BT = np.zeros((len(rows), longest), dtype=np.int64)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row)] = row.token_ids
        row_T = np.concatenate([np.full(len(before), number) for number, before in enumerate(columns)])
        # Rows are padded on the right and attention is causal, so no trained token sees padding: without a mask the
        # fast causal kernel serves.
        return states_at(
            self.model, torch.from_numpy(ids_BT).to(device),
            torch.from_numpy(row_T).to(device), torch.from_numpy(np.concatenate(columns)).to(device),
            is_plain=bool(self._has_plain_head),
        )  # fmt: skip

    def chunks(self, count: int) -> Iterator[slice]:
        """Pieces of `count` tokens whose logits stay within `LOGITS_PER_CHUNK`, where these are tokens enough."""
        vocabulary: int = decoder_config(inner_model(self.model)).vocab_size
        logits = LOGITS_PER_CHUNK.get(self.device.type, LOGITS_PER_CHUNK["cpu"])
        most = max(LEAST_TOKENS_PER_CHUNK, logits // vocabulary)
        return (slice(start, min(start + most, count)) for start in range(0, count, most))

    @torch.no_grad()
    def logprobs(self, each: Pass, rows: Sequence[Row]) -> np.ndarray:
        """Raw log-probabilities of the trained tokens, row by row."""
        ids_T = self.tokens(rows).token_ids_T
        with self.attention(each):
            states_TD, head = self.states(each, rows)
        parts = [selected_logprobs(head(states_TD[chunk]), ids_T[chunk]) for chunk in self.chunks(len(states_TD))]
        values: np.ndarray = torch.cat(parts).cpu().numpy()
        return values


def micro_batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Row indices in groups whose padded size (rows times longest row) stays within `most_tokens`.

    Similar lengths come together; a row longer than `most_tokens` gets a group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= most_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def has_plain_head(model: Any) -> bool:
    """Whether the model's logits are what its output embeddings make of its decoder's last hidden states.

    Compared on a few tokens. Soft-capping, scaling, or a layer between the two make the answer no.
    """
    causal: Any = inner_model(model)
    decoder, head = _decoder_and_head(causal)
    if decoder is None or head is None or any(getattr(causal.config, name, None) for name in LOGIT_CHANGES):
        return False
    ids_1T = torch.arange(8, device=model.device)[None] % decoder_config(causal).vocab_size
    was_training = model.training
    model.eval()
    with torch.no_grad():
        own = causal(input_ids=ids_1T, use_cache=False).logits
        made = head(decoder(input_ids=ids_1T, use_cache=False).last_hidden_state)
    model.train(was_training)
    if made.shape != own.shape:
        return False
    allowed = CHECK_ROUNDINGS * torch.finfo(made.dtype).eps * max(1.0, float(own.abs().max()))
    return float((own - made).abs().max()) <= allowed


def _decoder_and_head(causal: Any) -> tuple[Any, Any]:
    """What makes hidden states, None where it has no name of its own, and the output embeddings."""
    decoder = getattr(causal, getattr(causal, "base_model_prefix", ""), None)
    return None if decoder is causal else decoder, causal.get_output_embeddings()


def states_at(
    model: Any, ids_BT: Tensor, row_T: Tensor, column_T: Tensor, *, is_plain: bool, **inputs: Any
) -> tuple[Tensor, Head]:
    """The last hidden states at chosen positions, [T, D], and the head that turns them into logits.

    The head never sees the other positions, which is most of the memory at large V. Models without a plain head
    (`has_plain_head`) go through their own forward pass; their "states" are the logits.
    """
    if not is_plain:
        logits = model(input_ids=ids_BT, use_cache=False, **inputs).logits
        return logits[row_T, column_T], lambda logits_TV: logits_TV
    decoder, head = _decoder_and_head(inner_model(model))
    hidden = decoder(input_ids=ids_BT, use_cache=False, **inputs).last_hidden_state
    return hidden[row_T, column_T], head


def logits_at(model: Any, ids_BT: Tensor, row_T: Tensor, column_T: Tensor) -> Tensor:
    """Logits at chosen positions, [T, V]."""
    states_TD, head = states_at(model, ids_BT, row_T, column_T, is_plain=has_plain_head(model))
    return head(states_TD)
