"""One decoding step of a Llama-style model through its own weights, without the cost of its Python modules.

A forward pass of one token per row spends much of its time between the tensor operations. This does the same
operations on the same weights; `Network` compares it with the model before it is used, and everything that is
not exactly such a model (adapters, hooks, quantised layers, other families) takes the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firesteel.generators.kv import BatchCache

MODEL_TYPES = ("llama", "qwen2", "qwen3")
ATTENTION_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_LINEARS = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def is_stock(model: Any) -> bool:
    """Whether every module is what `transformers` builds for one of `MODEL_TYPES`, without hooks or patches."""
    if not type(model).__module__.startswith("transformers.models."):
        return False
    if model.config.model_type not in MODEL_TYPES or model.config.hidden_act != "silu":
        return False
    if any(_is_changed(module) for module in model.modules()):
        return False
    return all(type(linear) is nn.Linear for linear in _linears(model))


def _is_changed(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _linears(model: Any) -> Iterator[nn.Module]:
    yield model.lm_head
    for layer in model.model.layers:
        yield from (getattr(layer.self_attn, name) for name in ATTENTION_LINEARS)
        yield from (getattr(layer.mlp, name) for name in MLP_LINEARS)


class LlamaStep:
    """Computes the logits of one new token per row. Good for one call: it holds the weights as they are now.

    Args:
        model: A model for which `is_stock` holds.
        num_columns: No position reaches this.
    """

    def __init__(self, model: Any, num_columns: int) -> None:
        body, attention = model.model, model.model.layers[0].self_attn
        self._model_type = model.config.model_type
        self._embedding: Tensor = body.embed_tokens.weight
        self._final_norm: Tensor = body.norm.weight
        self._head: Tensor = model.lm_head.weight
        self._layers = [_Weights(layer) for layer in body.layers]
        self._epsilon: float = model.config.rms_norm_eps
        self._num_heads: int = model.config.num_attention_heads
        self._num_groups: int = model.config.num_key_value_heads
        self._head_dim: int = attention.head_dim
        self._scaling: float = attention.scaling
        positions = torch.arange(num_columns, device=self._embedding.device)[None]
        cosines, sines = body.rotary_emb(self._embedding[:1], positions)
        half = self._head_dim // 2
        self._cosines: Tensor = cosines[0]
        # The rotation negates the second half before it swaps the halves; here the sign is in the table.
        self._sines = torch.cat((-sines[0, :, :half], sines[0, :, half:]), dim=-1)

    def __call__(self, tokens: Tensor, positions: Tensor, attention: Tensor | None, cache: BatchCache) -> Tensor:
        """As `Network.forward`, for one new column: tokens and positions [B, 1]; returns logits [B, V]."""
        num_rows = tokens.shape[0]
        cosines, sines = self._cosines[positions], self._sines[positions]
        hidden = F.embedding(tokens[:, 0], self._embedding)
        for index, layer in enumerate(self._layers):
            normed = self._norm(hidden, layer.input_norm)
            queries = F.linear(normed, *layer.query).view(num_rows, self._num_heads, self._head_dim)
            keys = F.linear(normed, *layer.key).view(num_rows, self._num_groups, self._head_dim)
            values = F.linear(normed, *layer.value).view(num_rows, self._num_groups, 1, self._head_dim)
            if layer.query_norm is not None and layer.key_norm is not None:
                queries, keys = self._norm(queries, layer.query_norm), self._norm(keys, layer.key_norm)
            queries, keys = self._rotate(queries, cosines, sines), self._rotate(keys, cosines, sines)
            all_keys, all_values = cache.update(keys[:, :, None], values, index)
            mixed = F.scaled_dot_product_attention(
                # The heads of one group attend to the same keys: they are the queries of one attention.
                queries.view(num_rows, self._num_groups, -1, self._head_dim),
                all_keys,
                all_values,
                attn_mask=attention,
                scale=self._scaling,
            )
            hidden = hidden + F.linear(mixed.reshape(num_rows, -1), *layer.output)
            normed = self._norm(hidden, layer.mlp_norm)
            gated = F.silu(F.linear(normed, *layer.gate)) * F.linear(normed, *layer.up)
            hidden = hidden + F.linear(gated, *layer.down)
        return F.linear(self._norm(hidden, self._final_norm), self._head)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        if hidden.dtype == torch.float32:
            return F.rms_norm(hidden, weight.shape, weight, self._epsilon)
        # Half precision rounds before the weight is applied, as the models do.
        return weight * F.rms_norm(hidden.float(), weight.shape, None, self._epsilon).to(hidden.dtype)

    def _rotate(self, heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        return heads * cosines + heads.roll(self._head_dim // 2, -1) * sines


class _Weights:
    """The tensors of one layer; a linear is its weight and bias."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.input_norm: Tensor = layer.input_layernorm.weight
        self.mlp_norm: Tensor = layer.post_attention_layernorm.weight
        self.query, self.key, self.value, self.output = (
            _weight_and_bias(getattr(attention, name)) for name in ATTENTION_LINEARS
        )
        self.gate, self.up, self.down = (_weight_and_bias(getattr(mlp, name)) for name in MLP_LINEARS)
        self.query_norm: Tensor | None = getattr(getattr(attention, "q_norm", None), "weight", None)
        self.key_norm: Tensor | None = getattr(getattr(attention, "k_norm", None), "weight", None)


def _weight_and_bias(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight, linear.bias
