"""Updates: what is cut up how, rates and norms, what is skipped, and logits where they are wanted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import tokenizer
from transformers.models.bert import BertConfig, BertLMHeadModel
from transformers.models.cohere import CohereConfig, CohereForCausalLM
from transformers.models.gpt_neox import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.granite import GraniteConfig, GraniteForCausalLM
from transformers.models.modernbert_decoder import ModernBertDecoderConfig, ModernBertDecoderForCausalLM
from transformers.models.qwen2 import Qwen2Config, Qwen2ForCausalLM
from transformers.models.recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from updates import branched, chains, gradient, learner, off_policy, relative, rolled_out, sft_row, tiny

from firesteel.advantages import estimate_advantages
from firesteel.config import AdvantageConfig, LearnerConfig, LossConfig
from firesteel.errors import ModelError, TreeError
from firesteel.learners import OBJECTIVES
from firesteel.learners import passes as passes_module
from firesteel.learners.learner import Learner
from firesteel.learners.lora import add_lora
from firesteel.learners.passes import TokenBatch, logits_at, micro_batches
from firesteel.learners.sft import SupervisedObjective
from firesteel.models import build_tiny_model
from firesteel.packing import Batch, pack
from firesteel.plugins import load


def test_micro_batches_only_split_the_sum() -> None:
    gradients, reports = [], []
    for most_tokens in (16384, 45, 1):
        model = tiny()
        trees = [chains(), branched()]
        for tree in trees:
            off_policy(tree, model)
            estimate_advantages([tree], AdvantageConfig())
        training = learner(model, loss={"kl_coef": 0.1, "entropy_coef": 0.01}, micro_batch_tokens=most_tokens)
        report = training.update(pack(trees))
        reports.append({key: value for key, value in report.items() if not key.startswith("pack/forward")})
        gradients.append(gradient(model))
    assert relative(gradients[1], gradients[0]) < 1e-6 and relative(gradients[2], gradients[0]) < 1e-6
    assert reports[1] == pytest.approx(reports[0], rel=1e-5) and reports[2] == pytest.approx(reports[0], rel=1e-5)


def test_rows_without_an_advantage_are_left_out_and_change_nothing() -> None:
    live, dead = chains(), branched()
    for leaf in dead.leaves:
        leaf.reward = 1.0
    tokens, gradients = {}, {}
    for kind, loss in (("skipped", {}), ("kept", {}), ("kl", {"kl_coef": 0.1}), ("entropy", {"entropy_coef": 0.01})):
        model = tiny()
        for tree in (live, dead):
            off_policy(tree, model)
            estimate_advantages([tree], AdvantageConfig())
        training = learner(model, loss=loss, skip_dead_rows=kind != "kept")
        tokens[kind] = training.update(pack([live, dead]))["pack/forward_tokens"]
        gradients[kind] = gradient(model)
    assert tokens["skipped"] == training.update(pack([live]))["pack/forward_tokens"] < tokens["kept"]
    assert tokens["kept"] == tokens["kl"] == tokens["entropy"]  # every token has a gradient there
    assert relative(gradients["skipped"], gradients["kept"]) < 1e-6


def test_an_update_of_dead_rows_alone_has_a_zero_gradient_and_reports() -> None:
    tree = chains()
    for leaf in tree.leaves:
        leaf.reward = 1.0
    estimate_advantages([tree], AdvantageConfig())
    report = learner(tiny()).update(pack([tree]))
    assert report["learner/grad_norm"] == 0.0 and report["losses/entropy"] > 0


def test_micro_batches_by_hand() -> None:
    # sorted 7, 5, 3, 3, 2: 7 + 5 would be 2 * 7 > 12; [5, 3] is 10, a third row 15 > 12; [3, 2] is 6
    assert micro_batches([3, 7, 2, 5, 3], 12) == [[1], [3, 0], [4, 2]]
    assert micro_batches([9, 9], 5) == [[0], [1]]
    assert micro_batches([], 5) == []


def test_sequence_mean_and_constant_denominators() -> None:
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    plain = learner(tiny()).update(pack([tree]))
    # path weights are 1/4 a leaf, spread over its tokens: the sum over everything is 1
    report = learner(tiny(), loss={"aggregation": "sequence_mean"}).update(pack([tree], aggregation="sequence_mean"))
    assert report["learner/denominator"] == pytest.approx(1.0)
    report = learner(tiny(), loss={"aggregation": "constant", "constant": 7.0}).update(pack([tree]))
    assert report["learner/denominator"] == 7.0
    # 32 sampled tokens of weight 1/4
    assert report["learner/grad_norm"] == pytest.approx(plain["learner/grad_norm"] * 8 / 7, rel=1e-4)
    assert report["losses/policy"] == pytest.approx(plain["losses/policy"] * 8 / 7, rel=1e-4)


@pytest.mark.parametrize(("rows", "steps"), [(1, 4), (3, 2), (4, 1), (100, 1)])
def test_minibatch_rows_decide_the_number_of_steps(rows: int, steps: int) -> None:
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    assert learner(tiny(), minibatch_rows=rows).update(pack([tree]))["learner/optimizer_steps"] == steps


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"schedule": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        (
            {"schedule": "cosine", "warmup_steps": 2},
            [0.5, 1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2],
        ),
    ],
)
def test_the_learning_rate_by_hand(settings: dict[str, Any], rates: list[float]) -> None:
    training = learner(tiny(), lr=2e-3, total_steps=6, **settings)
    found = []
    for _ in rates:
        metrics = training.update(Batch([]))
        found.append(metrics["learner/lr"] / 2e-3)
        assert training.optimizer.param_groups[0]["lr"] == metrics["learner/lr"]
    assert found == pytest.approx(rates)


def test_the_learning_rate_follows_the_budget_where_that_ends_the_run_sooner() -> None:
    training = learner(tiny(), lr=2e-3, total_steps=4, schedule="linear")
    rates = [training.update(Batch([]), progress=progress)["learner/lr"] / 2e-3 for progress in (0.0, 0.1, 0.9, 1.5)]
    assert rates == pytest.approx([1.0, 3 / 4, 0.1, 0.0])  # 1/4 of the steps is more than 0.1 of the budget


def test_gradients_are_scaled_down_to_the_norm() -> None:
    model = tiny()
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    metrics = learner(model, max_grad_norm=1e-3).update(pack([tree]))
    assert metrics["learner/grad_norm"] > 1e-2
    assert float(gradient(model).norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_skips_the_step(broken: float) -> None:
    model = tiny()
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    batch = pack([tree])
    training = learner(model, weight_decay=0.1)
    training.update(batch)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    moments = training.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    good = batch.rows[0].positive.copy()
    batch.rows[0].positive[batch.rows[0].loss_mask] = broken
    assert training.update(batch)["learner/skipped_steps"] == 1.0
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())
    assert torch.equal(training.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    batch.rows[0].positive = good
    assert training.update(batch)["learner/skipped_steps"] == 0.0
    assert not torch.equal(before["model.norm.weight"], model.model.norm.weight)


class Noting(SupervisedObjective):
    """Notes which tokens each pass of the model was for."""

    def __init__(self) -> None:
        super().__init__(LossConfig())
        self.parts: list[list[int]] = []

    def __call__(self, logits_TV: Tensor, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.parts.append(sorted(batch.token_ids_T.tolist()))
        return super().__call__(logits_TV, batch)


def test_minibatches_deal_all_rows_anew_in_every_pass() -> None:
    def parts(seed: int) -> list[list[int]]:
        objective = Noting()
        config = LearnerConfig(minibatches=2, epochs_per_rollout=3)
        training = Learner(tiny(), objective, config, LossConfig(), total_steps=1, seed=seed)
        training.update(Batch([sft_row([7, 10 + number], [1], [1.0]) for number in range(6)]))
        return objective.parts

    dealt = parts(0)
    assert len(dealt) == 6 and all(len(part) == 3 for part in dealt)
    assert all(sorted(dealt[epoch] + dealt[epoch + 1]) == list(range(10, 16)) for epoch in (0, 2, 4))
    assert len({tuple(part) for part in dealt[::2]}) > 1
    assert parts(0) == dealt != parts(1)


def test_trees_are_dealt_whole() -> None:
    def parts(minibatches: int) -> list[list[int]]:
        objective = Noting()
        config = LearnerConfig(minibatches=minibatches, epochs_per_rollout=3, deal="trees")
        rows = [sft_row([7, 10 + number], [1], [1.0]) for number in range(6)]
        for number, row in enumerate(rows):
            row.tree = number % 3
        Learner(tiny(), objective, config, LossConfig(), total_steps=1).update(Batch(rows))
        return objective.parts

    # rows 0 and 3 are of one tree, 1 and 4, 2 and 5
    dealt = parts(3)
    assert all(sorted(dealt[start : start + 3]) == [[10, 13], [11, 14], [12, 15]] for start in (0, 3, 6))
    assert len({tuple(part) for part in dealt[::3]}) > 1
    # two equal parts of three trees cut one of them
    assert all(len(part) == 3 for part in parts(2))


def test_an_update_without_rows_changes_nothing() -> None:
    model = tiny()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    metrics = learner(model, weight_decay=0.1).update(Batch([]))
    assert metrics["learner/optimizer_steps"] == 0.0
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_lora_trains_adapters_alone() -> None:
    model = add_lora(tiny(), rank=4, seed=2)
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    training = learner(model, lr=1e-2)
    assert len(training.trainable) == 2 * 7 * 2
    for _ in range(2):
        training.update(pack([tree]))
    changed = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    assert changed == {name for name in before if "lora_" in name}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable parameters"):
        learner(model)


def test_gradient_checkpointing_computes_the_same_and_does_act() -> None:
    gradients, passes = [], []
    for checkpointing in (False, True):
        model, calls = tiny(), []
        tree = chains()
        estimate_advantages([tree], AdvantageConfig())
        training = learner(model, gradient_checkpointing=checkpointing)
        training.logprobs(pack([tree]).rows)  # the head is compared with the model on the first pass
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *arguments, calls=calls: calls.append(1))
        training.update(pack([tree]))
        passes.append(len(calls))
        gradients.append(gradient(model))
        assert rolled_out(model, "full")[0].generated_tokens() > 0
    assert passes == [1, 2]  # recomputed in the backward pass
    assert relative(gradients[1], gradients[0]) < 1e-6


def test_weights_are_the_parameters_themselves() -> None:
    model = tiny()
    weights = learner(model).weights()
    assert weights["model.norm.weight"].data_ptr() == model.model.norm.weight.data_ptr()
    assert not any(value.requires_grad for value in weights.values())


def test_gradient_checkpointing_reaches_adapters() -> None:
    model = add_lora(tiny(), rank=4, seed=2)
    tree = chains()
    estimate_advantages([tree], AdvantageConfig())
    metrics = learner(model, gradient_checkpointing=True).update(pack([tree]))
    plain = learner(add_lora(tiny(), rank=4, seed=2)).update(pack([tree]))
    assert metrics["learner/grad_norm"] == pytest.approx(plain["learner/grad_norm"], rel=1e-5) != 0.0


@pytest.mark.parametrize("name", sorted(OBJECTIVES.keys() - {"ppo"}))
def test_every_objective_loads_and_updates(name: str) -> None:
    objective = load(name, OBJECTIVES, kind="learner")(LossConfig())
    training = Learner(tiny(), objective, LearnerConfig(), LossConfig(), total_steps=1)
    assert training.update(pack([chains()]))["learner/optimizer_steps"] == 1.0


SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 0, "pad_token_id": 2,
}  # fmt: skip


PLAIN: dict[str, Callable[[], Any]] = {
    "llama": lambda: build_tiny_model(tokenizer(), hidden=16, layers=2, heads=2, kv_heads=1),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=1, **SMALL)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "lora": lambda: add_lora(build_tiny_model(tokenizer(), hidden=16, layers=2, heads=2, kv_heads=1)),
}


SCALED: dict[str, Callable[[], Any]] = {
    "cohere": lambda: CohereForCausalLM(CohereConfig(num_key_value_heads=1, logit_scale=0.25, **SMALL)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(num_key_value_heads=1, logits_scaling=8.0, **SMALL)),
}


def chosen_and_full(model: Any) -> tuple[Tensor, Tensor]:
    ids = torch.arange(24).reshape(3, 8) % 50
    rows, columns = torch.tensor([0, 0, 2, 1]), torch.tensor([0, 7, 3, 5])
    with torch.no_grad():
        return logits_at(model.eval(), ids, rows, columns), model(input_ids=ids, use_cache=False).logits[rows, columns]


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_logits_at_equal_those_of_the_whole_pass(name: str) -> None:
    model = PLAIN[name]()
    sizes: list[int] = []
    head = (model.get_base_model() if name == "lora" else model).get_output_embeddings()
    handle = head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[:-1].numel()))
    chosen, full = chosen_and_full(model)
    handle.remove()
    assert torch.allclose(chosen, full, atol=1e-6) and full.abs().max() > 1e-3
    assert sizes[-2:] == [4, 24]  # the head saw four positions, then all of them


@pytest.mark.parametrize("name", sorted(SCALED))
def test_logits_that_the_model_scales_go_through_its_own_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SCALED[name]()
    chosen, full = chosen_and_full(model)
    assert torch.equal(chosen, full) and full.abs().max() > 1e-4
    monkeypatch.setattr(passes_module, "has_plain_head", lambda model: True)
    assert not torch.allclose(chosen_and_full(model)[0], full, atol=1e-5)


OWN_HEADS: dict[str, Callable[[], Any]] = {
    "a prediction head": lambda: ModernBertDecoderForCausalLM(
        ModernBertDecoderConfig(cls_token_id=1, sep_token_id=0, **SMALL)
    ),
    "a transform": lambda: BertLMHeadModel(BertConfig(is_decoder=True, **SMALL)),
    "a cap": lambda: RecurrentGemmaForCausalLM(RecurrentGemmaConfig(lru_width=16, logits_soft_cap=3.0, **SMALL)),
}


@pytest.mark.parametrize("name", sorted(OWN_HEADS))
@pytest.mark.filterwarnings("ignore:.*cannot be trained on packed trees:RuntimeWarning")
def test_logprobs_are_the_models_own_whatever_stands_before_its_head(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OWN_HEADS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    row = sft_row(list(range(3, 15)), [4, 7, 11], [1.0, 1.0, 1.0])
    found = learner(model, kind="sft", packing="auto").logprobs([row])[0]
    ids = torch.from_numpy(row.token_ids)
    with torch.no_grad():
        logprobs = model.eval()(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
    wanted = logprobs[:-1].gather(1, ids[1:, None])[:, 0][torch.from_numpy(row.loss_mask[1:])]
    assert found == pytest.approx(wanted.numpy(), abs=1e-5)


def test_scaling_is_found_by_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes_module, "LOGIT_CHANGES", ())
    assert not any(passes_module.has_plain_head(make()) for make in SCALED.values())
    assert all(passes_module.has_plain_head(make()) for make in PLAIN.values())


def test_a_response_without_sampling_logprobs_trains_no_policy_gradient() -> None:
    tree = branched()
    node = next(node for node in tree.nodes if node.role == "response")
    node.sampling_logprobs = None
    estimate_advantages([tree], AdvantageConfig())
    batch = pack([tree])
    with pytest.raises(TreeError, match="tree 0 of the update holds a response without sampling_logprobs.*kind=sft"):
        learner(tiny()).update(batch)
    assert math.isfinite(learner(tiny(), kind="sft").update(batch)["losses/sft"])
