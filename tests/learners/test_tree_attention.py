"""Packed trees against the same rows one by one: kernels, model families, what is refused, and what a run does then."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gpt2 import GPT2Config
from transformers.models.gpt_neox import GPTNeoXConfig
from transformers.models.granite import GraniteConfig
from transformers.models.llama import LlamaConfig
from transformers.models.mamba import MambaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.olmo2 import Olmo2Config
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config
from trees import finish, respond
from updates import branched, chains, gradient, learner, off_policy, relative, tiny

from firesteel.advantages import estimate_advantages
from firesteel.config import AdvantageConfig
from firesteel.errors import ModelError
from firesteel.layout import lay_out, trie_order
from firesteel.learners import passes, tree_attention
from firesteel.learners.lora import add_lora
from firesteel.learners.tree_attention import KERNELS, TreeStream, reason_against_packing
from firesteel.packing import Batch, Row, pack
from firesteel.tree import Node, Tree
from firesteel.types import Task

V = 40
SIZES: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 2,
}  # fmt: skip
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(num_key_value_heads=2, **SIZES),
    "qwen2": Qwen2Config(num_key_value_heads=1, **SIZES),
    "qwen3": Qwen3Config(num_key_value_heads=2, head_dim=8, **SIZES),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "olmo2": Olmo2Config(num_key_value_heads=2, **SIZES),
    "mistral without a window": MistralConfig(num_key_value_heads=2, sliding_window=None, **SIZES),
    "granite, whose logits are scaled": GraniteConfig(num_key_value_heads=2, logits_scaling=4.0, **SIZES),
}
REFUSED: dict[str, tuple[PretrainedConfig, str]] = {
    "mistral": (MistralConfig(num_key_value_heads=2, sliding_window=16, **SIZES), "sliding window of 16 tokens"),
    "gemma2": (Gemma2Config(num_key_value_heads=2, head_dim=8, **SIZES), "layers of type sliding_attention"),
    "dropout": (LlamaConfig(attention_dropout=0.1, **SIZES), "attention_dropout = 0.1"),
    "dropout of GPT-2": (GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1,
                                    eos_token_id=0), "attn_pdrop = 0.1"),
    "mamba": (MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, state_size=4), "a recurrent state"),
    "longest row": (
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, **SIZES), "dynamic"
    ),
}  # fmt: skip


@lru_cache(maxsize=16)
def built(name: str) -> Any:
    """One model a family, whose weights nobody changes; larger weights than usual make distributions less flat."""
    config = FAMILIES[name] if name in FAMILIES else REFUSED[name][0]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


@st.composite
def random_trees(draw: st.DrawFn) -> Tree:
    """Any depth up to 4 steps, width up to 3, lengths up to 5, few distinct tokens, either context mode."""
    is_window = draw(st.booleans())
    segment = st.lists(st.integers(0, 3), min_size=1, max_size=5)
    tree = Tree(task=Task("random"), group="random")
    fed: list[tuple[Node, int, int]] = []
    opening = tree.add(-1, "prompt", 0, draw(segment), restart=True, width=draw(st.integers(1, 3)))
    fed += [(opening, 0, root) for root in range(opening.width)]
    while fed:
        parent, turn, root = fed.pop()
        tokens = draw(segment)
        logprobs = draw(st.lists(st.floats(-4.0, -0.5, width=32), min_size=len(tokens), max_size=len(tokens)))
        node = respond(tree, parent.index, turn, tokens, logprobs)
        if turn == 3 or draw(st.booleans()):
            finish(tree, node, root, draw(st.sampled_from([0.0, 0.5, 1.0])))
            continue
        width = draw(st.integers(1, 3)) if len(tree.leaves) + len(fed) < 8 else 1
        following = tree.add(node.index, "prompt", turn + 1, draw(segment), restart=is_window, width=width)
        fed += [(following, turn + 1, root)] * width
    return tree


def compared(model: Any, trees: list[Tree], **settings: Any) -> tuple[float, float]:
    """(largest difference of log-probabilities, relative difference of gradients) of packed trees and rows."""
    found: list[tuple[Tensor, np.ndarray]] = []
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for packing in ("rows", "tree"):
        training = learner(model, packing=packing, lr=1e-6, **settings)
        batch = pack(trees)
        rows = [row for row in batch.rows if row.loss_mask.any()]
        values = np.concatenate(training.logprobs(rows))
        metrics = training.update(batch)
        assert metrics["pack/is_tree"] == float(packing == "tree")
        found.append((gradient(model), values))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
    (one, logprobs), (other, packed) = found
    # a gradient that is clipped away is 0 in both
    return float(np.abs(packed - logprobs).max()), float((other - one).norm() / one.norm().clamp(min=1e-9))


@pytest.mark.parametrize("name", sorted(FAMILIES))
@settings(max_examples=5, deadline=None)
@given(tree=random_trees(), other=random_trees(), most=st.sampled_from([16384, 20, 1]))
def test_packed_trees_equal_rows(name: str, tree: Tree, other: Tree, most: int) -> None:
    trees = [tree, other]
    estimate_advantages(trees, AdvantageConfig(baseline="none"))
    # advantages of 0 alone would give a gradient of 0
    trees[0].leaves[0].advantages = [1.0] * len(tree.responses(tree.leaves[0]))
    logprobs, gradients = compared(built(name), trees, micro_batch_tokens=most)
    assert logprobs < 5e-6 and gradients < 5e-6


@pytest.mark.parametrize("mode", ["full", "window"])
@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"minibatches": 2, "deal": "trees"}])
def test_packed_trees_equal_rows_under_other_settings(settings: dict[str, Any], mode: str) -> None:
    model = tiny()
    trees = [branched(mode), chains()]
    for tree in trees:
        off_policy(tree, model)
    estimate_advantages(trees, AdvantageConfig())
    logprobs, gradients = compared(model, trees, loss={"kl_coef": 0.1, "entropy_coef": 0.01}, **settings)
    assert logprobs < 5e-6 and gradients < 5e-6


def test_cut_streams_only_split_the_sum() -> None:
    gradients, reports = [], []
    # 48 + 54 tokens; cutting each tree between its roots repeats the prompts of 5 and 6
    for most_tokens, tokens in ((16384, 102.0), (60, 102.0), (40, 113.0)):
        model = tiny()
        trees = [branched(), chains()]
        for tree in trees:
            off_policy(tree, model)
        estimate_advantages(trees, AdvantageConfig())
        training = learner(model, loss={"kl_coef": 0.1}, micro_batch_tokens=most_tokens, packing="tree")
        report = training.update(pack(trees))
        assert report.pop("pack/forward_tokens") == tokens
        reports.append({key: value for key, value in report.items() if key != "pack/forward_ratio"})
        gradients.append(gradient(model))
    for other, report in zip(gradients[1:], reports[1:], strict=True):
        assert relative(other, gradients[0]) < 5e-6 and report == pytest.approx(reports[0], rel=1e-4, abs=1e-6)


def test_adapters_train_on_packed_trees() -> None:
    model = add_lora(tiny(), rank=4, seed=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    trees = [branched(), chains()]
    estimate_advantages(trees, AdvantageConfig())
    logprobs, gradients = compared(model, trees)
    assert logprobs < 5e-6 and gradients < 5e-6


def test_a_repeated_update_has_the_same_bits() -> None:
    gradients = []
    for _ in range(2):
        model = tiny()
        trees = [branched(), branched("window")]
        estimate_advantages(trees, AdvantageConfig())
        learner(model, packing="tree", micro_batch_tokens=60).update(pack(trees))
        gradients.append(gradient(model))
    assert torch.equal(*gradients) and float(gradients[0].norm()) > 0


def stream(kernel: str) -> TreeStream:
    order, shared = trie_order([row.token_ids for row in pack([branched(), chains()]).rows])
    rows = [pack([branched(), chains()]).rows[index].token_ids for index in order]
    return TreeStream(lay_out(rows, shared), torch.device("cpu"), kernel)


def heads(size: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries of 4 heads, keys and values of 2, and a gradient, in the memory order in which models make them."""
    random = torch.Generator().manual_seed(0)
    made = [torch.randn(1, size, count, 8, generator=random, dtype=torch.float64) for count in (4, 2, 2)]
    weights = torch.randn(1, size, 4, 8, generator=random, dtype=torch.float64)
    return [*(each.to(dtype).transpose(1, 2).requires_grad_() for each in made), weights.to(dtype)]


def attended(kernel: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    tree = stream(kernel)
    query, key, value, weights = heads(len(stream("dense").layout), dtype)
    out = KERNELS[kernel](query, key, value, 0.3, tree)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), weights)]


@pytest.mark.parametrize("strip", [1, 3, tree_attention.STRIP])
def test_grouped_attention_is_dense_attention(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "STRIP", strip)
    tree = stream("grouped")
    strips, parts = tree.pieces(2, torch.float64)
    every_slot = list(range(len(tree.layout)))
    assert [slot for piece in strips for slot in every_slot[piece.rows]] == every_slot and len(parts) > 3
    # the longest chain has more than 3 slots, and less than the strips of real streams
    assert (len(strips) > len(tree.layout.chains)) == (strip <= 3)
    for one, other in zip(attended("grouped"), attended("dense"), strict=True):
        assert torch.allclose(one, other, atol=1e-12) and float(other.abs().max()) > 0.1


def test_bfloat16_is_rounded_once_at_the_end() -> None:
    for one, other in zip(attended("grouped", torch.bfloat16), attended("dense"), strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one - other).norm() / other.norm()) < 0.02


def test_the_block_mask_lets_through_what_the_dense_one_does() -> None:
    tree = stream("flex")
    size = len(tree.layout)
    assert size % 128 == 0
    dense = TreeStream(tree.layout, torch.device("cpu"), "dense").dense_mask()
    sees = tree.block_mask().mask_mod
    slots = torch.arange(size)
    none = torch.zeros((), dtype=torch.long)
    assert torch.equal(sees(none, none, slots[:, None].expand(size, size), slots.expand(size, size)), dense)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_packed_trees_equal_rows_on_cuda() -> None:
    model = tiny(hidden=64).cuda()
    trees = [branched(), branched("window"), chains()]
    estimate_advantages(trees, AdvantageConfig())
    logprobs, gradients = compared(model, trees)
    assert logprobs < 1e-4 and gradients < 1e-3


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_models_that_cannot_be_packed_are_named_and_train_on_rows(name: str) -> None:
    model = built(name)
    reason = REFUSED[name][1]
    assert reason in reason_against_packing(model)
    batch = small_batch()
    kind = type(model).__name__
    training = learner(model, packing="auto")
    with pytest.warns(RuntimeWarning, match=f"{kind} cannot be trained on packed trees: .*{reason}.* one by one"):
        metrics = training.update(batch)
    assert metrics["pack/is_tree"] == 0.0 and metrics["learner/grad_norm"] > 0
    assert training.update(batch)["pack/is_tree"] == 0.0  # said once
    with pytest.raises(ModelError, match=f"{kind} cannot be trained .*{reason}.*; set learner.packing=rows"):
        learner(model, packing="tree").update(batch)


def small_batch() -> Batch:
    """Two siblings behind a prompt of four tokens, one of which branches once more."""
    tree = Tree(task=Task("s"), group="s")
    prompt = tree.add(-1, "prompt", 0, [5, 6, 7, 8], restart=True, width=2)
    first = respond(tree, prompt.index, 0, [9, 10, 11])
    for reward, tokens in ((1.0, [12, 13]), (0.0, [14])):
        finish(tree, respond(tree, first.index, 1, tokens), 0, reward)
    finish(tree, respond(tree, prompt.index, 0, [15, 16]), 1, 0.0)
    estimate_advantages([tree], AdvantageConfig())
    return pack([tree])


def test_auto_packs_only_where_it_pays() -> None:
    # rows of 9, 8 and 6 tokens, padded to 27; the tree has 4 + 3 + 2 + 1 + 2 = 12
    rows = [row for row in small_batch().rows if row.loss_mask.any()]
    _, packed = learner(built("llama"), packing="auto").passes.plan(rows)
    assert packed == {"pack/is_tree": 1.0, "pack/forward_tokens": 12.0, "pack/forward_ratio": pytest.approx(23 / 12)}
    alone = Row(*(getattr(rows[0], name) for name in Row.__slots__))
    _, single = learner(built("llama"), packing="auto").passes.plan([alone])
    assert single == {"pack/is_tree": 0.0, "pack/forward_tokens": 9.0, "pack/forward_ratio": 1.0}
    assert learner(built("llama"), packing="tree").passes.plan([alone])[1]["pack/is_tree"] == 1.0
    assert learner(built("llama"), packing="rows").passes.plan(rows)[1]["pack/forward_tokens"] == 27.0


def test_the_first_packed_step_is_compared_with_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(query: Tensor, key: Tensor, value: Tensor, scale: float, tree: TreeStream) -> Tensor:
        layout = lay_out([tree.layout.token_ids_S], np.zeros(1, dtype=np.int64))
        return tree_attention.grouped(query, key, value, scale, TreeStream(layout, tree.device))

    monkeypatch.setitem(KERNELS, "grouped", blind)  # every slot sees all slots before it, other branches included
    training = learner(built("llama"), packing="auto")
    with pytest.warns(RuntimeWarning, match="packed log-probabilities differ by .* from those of single rows"):
        metrics = training.update(small_batch())
    assert metrics["pack/is_tree"] == 0.0
    with pytest.raises(ModelError, match="packed log-probabilities differ"):
        learner(built("llama"), packing="tree").update(small_batch())


def test_attention_that_ignores_the_stream_is_refused() -> None:
    """An attention layer that keeps the keyword arguments of the forward pass to itself."""
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"])
    for layer in model.model.layers:
        plain = layer.self_attn.forward
        layer.self_attn.forward = lambda *inputs, tree_stream=None, plain=plain, **options: plain(*inputs, **options)
    with pytest.raises(ModelError, match="LlamaAttention does not hand the keyword arguments"):
        learner(model, packing="tree").update(small_batch())


def test_options_of_other_attentions_are_refused() -> None:
    query, key, value, _ = heads(len(stream("dense").layout))
    attention = AttentionInterface()[tree_attention.NAME]
    with pytest.raises(ModelError, match="Linear asks its attention for softcap, dropout, which a packed tree"):
        attention(
            torch.nn.Linear(1, 1), query, key, value, None, dropout=0.1, softcap=50.0, tree_stream=stream("grouped")
        )


def test_the_head_sees_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    monkeypatch.setattr(passes, "LEAST_TOKENS_PER_CHUNK", 1)
    for logits in (2**21, 3 * V):
        monkeypatch.setitem(passes.LOGITS_PER_CHUNK, "cpu", logits)
        model = AutoModelForCausalLM.from_config(FAMILIES["llama"])
        model.load_state_dict(built("llama").state_dict())
        sizes: list[int] = []
        model.lm_head.register_forward_hook(lambda module, inputs, output, sizes=sizes: sizes.append(len(output)))
        training = learner(model, packing="rows", skip_dead_rows=False)
        training.update(small_batch())
        gradients.append(gradient(model))
    assert sizes[2:] == [3, 3, 2]  # 3 + 2 + 1 + 2 sampled tokens, after two looks at a few tokens
    assert relative(gradients[1], gradients[0]) < 1e-6
