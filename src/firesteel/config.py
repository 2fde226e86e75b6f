"""Every setting, in one place. The text under a field is its help and its documentation.

Defaults are ours, with the reason beside them; a paper's values are a preset of the same fields (`PRESETS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from firesteel.config_base import Section as Section
from firesteel.config_evaluation import EvaluationConfig as EvaluationConfig
from firesteel.config_ppo import CriticConfig as CriticConfig
from firesteel.config_ppo import PpoConfig as PpoConfig
from firesteel.config_stability import RescueConfig as RescueConfig
from firesteel.config_stability import StabilityConfig as StabilityConfig
from firesteel.errors import ConfigError
from firesteel.overrides import in_full, merge, read_yaml
from firesteel.overrides import parse_overrides as parse_overrides
from firesteel.plugins import nearest
from firesteel.presets import PRESETS as PRESETS

Decay = Annotated[float, Field(ge=0, lt=1)]


class TinyConfig(Section):
    """A small model made from a config, for runs without pretrained weights."""

    architecture: Literal["llama", "qwen2", "qwen3"] = "llama"
    """Which stock transformers architecture."""
    hidden: int = Field(default=128, ge=1)
    """Width of the residual stream."""
    layers: int = Field(default=4, ge=1)
    """Decoder layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads."""
    kv_heads: int = Field(default=2, ge=1)
    """Key/value heads."""
    intermediate: int | None = Field(default=None, ge=1)
    """Width of the MLP; None leaves it to the model builder."""
    max_context: int = Field(default=2048, ge=1)
    """Longest context in tokens."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the random weights."""
    vocab_size: int = Field(default=1024, ge=1)
    """Size of the tokenizer that is trained on the data's text."""
    single_digits: bool = False
    """Whether each digit is a token of its own, so that long numbers can be copied; else up to three are one."""


class LoraConfig(Section):
    """Low-rank adapters by peft."""

    rank: int = Field(default=8, ge=1)
    """Rank of every adapter matrix."""
    alpha: int = 16
    """Scale: the adapter's output counts alpha / rank."""
    dropout: float = 0.0
    """Dropout in front of the adapter. Above 0 the generator and the learner would disagree."""
    target_modules: str | list[str] = "all-linear"
    """Which modules get an adapter (peft's names)."""
    adapter: str | None = None
    """Directory of an adapter to continue from."""


class ModelConfig(Section):
    """The policy."""

    path: str | None = None
    """Hub name or local directory of a decoder-only model with its tokenizer. Give this or `tiny`."""
    tiny: TinyConfig | None = None
    """A small model from random weights (cold starts only)."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations."""
    device: str = "auto"
    """"cpu", "cuda", or "auto": cuda where there is one."""
    quantization: Literal["none", "nf4"] = "none"
    """"nf4": frozen weights in four bits under `lora` (QLoRA); needs bitsandbytes and a GPU."""
    trust_remote_code: bool = False
    """Let the Hub model run its own Python code."""
    kv_cache_mb: int | None = Field(default=None, ge=1)
    """Most memory for keys and values, in megabytes of 10^6 bytes; None: no limit. Where it is reached, fewer episodes
    are decoded at once, and contexts are dropped and computed again. A quarter of it must hold the longest context."""


class PoolConfig(Section):
    """Worker processes for environments."""

    workers: int = Field(default=0, ge=0)
    """How many processes; 0: none, environments run in the training process. Results do not depend on it."""
    start_timeout_s: float = Field(default=120.0, gt=0)
    """Longest time until a new worker has made its first environment."""
    queue_limit: int = Field(default=1024, ge=1)
    """Calls that may wait for a worker at once; a rollout that has more waits for room."""
    retries: int = Field(default=1, ge=0)
    """How often a call is tried again after a worker died under it. One that ran out of time is never tried again."""


class EnvironmentConfig(Section):
    """Where the policy acts."""

    name: str = "household"
    """A name from `ENVIRONMENTS` or "package.module:Class"."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the environment's constructor and of `tasks`."""
    split: str = "train"
    """Split that training tasks come from."""
    num_tasks: int | None = None
    """Use only the first so many training tasks; None: all."""
    step_timeout_s: float = Field(default=60.0, gt=0)
    """Longest time for one reset, step or fork; then the episode is recorded as failed."""
    pool: PoolConfig = Field(default_factory=PoolConfig)
    """Worker processes, which can be killed: they hold the time limit also against native code."""


class ContextConfig(Section):
    """What the policy sees of an episode."""

    mode: Literal["full", "window"] = "full"
    """"full": history is appended and the KV cache kept. "window": each step re-renders its prompt (SPARK)."""
    prompts: str = "spark"
    """Wording: a name from `PROMPTS`. "compact" is for small models trained from scratch."""
    history_length: int = Field(default=5, ge=0)
    """`window` only: how many last (observation, action) pairs are shown."""
    history_reasoning: bool = False
    """`window` only: whether the pairs keep their reasoning. SPARK's code drops it."""
    show_admissible: bool = False
    """Whether prompts list the admissible actions (long; SPARK does)."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Longest prompt; `window` drops its oldest pairs first. None: whatever the model's context leaves."""
    template_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the model's chat template, such as `{enable_thinking: false}` for Qwen3."""


class RolloutConfig(Section):
    """How trees grow: Section 2.2 of SPARK."""

    criterion: str = "explore_tag"
    """When to branch: a name from `CRITERIA` or "package.module:Class"."""
    criterion_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the criterion, such as `probability`."""
    num_leaves: int = Field(default=8, ge=1)
    """N: most leaves (finished episodes) a task."""
    num_roots: int = Field(default=4, ge=1)
    """M: episodes that start from the task's first state."""
    width: int = 2
    """B: continuations of a branching step."""
    max_turns: int = Field(default=30, ge=1)
    """K: longest episode in steps."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature. SPARK's paper says 0.4, its code trains at 1.0; 1.0 keeps the gradient on-policy."""
    top_k: int = Field(default=0, ge=0)
    """Sample among the k most likely tokens; 0: all. Refused for training."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample within this probability mass; 1: all. Refused for training."""
    max_response_tokens: int = Field(default=512, ge=1)
    """Longest response of one step."""
    overlap: bool = False
    """Trees do not wait for each other's turns: while the environments of some step, others decode. Pays where they
    work in other processes (`environment.pool.workers`). Results are repeatable, but not those of common turns to the
    last bit: other batches round differently, and `random_tag` counts its rate in another order."""
    processes: int = Field(default=1, ge=1)
    """In how many processes the trees of a step are grown, one core each; evaluations, too. On Linux without an
    accelerator; elsewhere it is one, and so it is for environments that hold processes or connections, with
    `environment.pool` and with `random_tag`. They are forks: an environment may not need a thread, or a lock that one
    holds. The results depend on it to the last bit: other batches round differently."""
    fill_with_roots: bool = False
    """Top up a task that used less than N leaves with further roots (ARPO does, SPARK does not)."""
    pad_groups: bool = False
    """Copy random leaves until a task has N (SPARK's code does)."""
    vote: bool = False
    """Evaluation only: after an explore step sample B next steps and execute the most frequent action."""
    candidates: int = Field(default=1, ge=1)
    """Responses sampled for every step, of which `selector` executes one. Above 1 the environment must rate actions."""
    selector: str = "rarity_first"
    """Which rated candidate is executed: a name from `SELECTORS` or "package.module:Class". SPaRK: `rarity_first`."""
    selector_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the selector, such as `threshold`."""

    @model_validator(mode="after")
    def _budget(self) -> RolloutConfig:
        if self.width < 1:
            raise ValueError(f"width (B) must be at least 1, got {self.width}; 1 never branches")
        if self.num_roots > self.num_leaves:
            raise ValueError(
                f"num_roots (M = {self.num_roots}) must not exceed num_leaves (N = {self.num_leaves}): "
                "every root is a leaf to begin with; raise num_leaves or lower num_roots"
            )
        return self


class RewardConfig(Section):
    """What an episode is worth."""

    name: str = "outcome"
    """A name from `REWARDS` or "package.module:function" taking a finished `Episode`."""
    success: float = 1.0
    """Reward of a success (of a full score for "score"). SPARK: 10."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """What each step after the first multiplies the outcome by: below 1, of two successes the shorter is worth more, so
    that groups in which every leaf succeeds teach too. SPARK: 1. For the rewards "outcome" and "score"."""
    invalid_penalty: float = Field(default=0.01, ge=0)
    """Taken off the step whose response is invalid: 1% of a success, as in SPARK (0.1 of 10)."""
    invalid_when: Literal["format", "either"] = "format"
    """"format": the response broke the format (SPARK). "either": or the environment did not understand the action."""
    truncated_response: Literal["as_is", "zero", "mask"] = "as_is"
    """What an episode with a cut-off response counts as."""
    overflow: Literal["as_is", "zero", "mask"] = "as_is"
    """What an episode that outgrew the model's context counts as."""


class AdvantageConfig(Section):
    """From rewards to advantages."""

    weighting: Literal["path", "leaf", "node"] = "path"
    """How much each (leaf, node) counts. `path` is unbiased whatever decides to branch; SPARK: `leaf`."""
    baseline: Literal["leave_one_root_out", "group_mean", "none"] = "leave_one_root_out"
    """`leave_one_root_out` is unbiased; `group_mean` (GRPO, SPARK) contains the leaf itself and shrinks."""
    over: Literal["leaf", "step"] = "leaf"
    """Statistics over leaves, or over all step samples of the task (SPARK's code)."""
    std: Literal["none", "population", "sample"] = "none"
    """Which standard deviation divides. SPARK: `sample`."""
    eps: float = Field(default=1e-6, ge=0)
    """Added to the standard deviation."""
    std_floor: float = Field(default=0.0, ge=0)
    """The standard deviation counts at least this much."""
    anchor_weight: float = Field(default=0.0, ge=0)
    """Weight of the advantage of a step among all visits of its group to the same state. 0: off; GiGPO: 1."""
    anchor_discount: float = Field(default=0.95, gt=0, le=1)
    """How much less a later step's reward counts in those. GiGPO: 0.95."""
    permute: bool = False
    """Control arm: rewards are handed to random leaves of the same tree."""


class LossConfig(Section):
    """The policy-gradient loss."""

    clip_low: float = Field(default=0.2, ge=0)
    """Ratios below 1 - clip_low get no gradient (for negative advantages)."""
    clip_high: float = Field(default=0.2, ge=0)
    """Ratios above 1 + clip_high get no gradient (for positive advantages)."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of the ratio for negative advantages. SPARK's code: 3."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL to the reference."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the KL to the start of the run. 0 loads no reference. SPARK: 0.01."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus. SPARK's code: 0.001."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """The denominator D: sampled tokens by weight, episodes by weight, or `constant`."""
    constant: float = Field(default=1.0, gt=0)
    """D for `aggregation: constant`."""


class LearnerConfig(Section):
    """The optimiser (AdamW) and how an update is cut up."""

    kind: Literal["policy_gradient", "sft", "ppo"] = "policy_gradient"
    """Reinforcement learning on grown trees, or on stored judged ones (`ppo`); supervised learning on stored ones."""
    lr: float = Field(default=1e-6, gt=0)
    """Learning rate. Small models from scratch want 1e-4 to 1e-3."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after warm-up, over all steps of the run, or over its `token_budget` where that ends it sooner."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    lr_decay: float = Field(default=1.0, gt=0, le=1)
    """The rate is multiplied by it every `lr_decay_every` steps, on top of the shape: what `hard_sampling` does to its
    rounds (ToolExpander: 0.8), for other curricula."""
    lr_decay_every: int = Field(default=50, ge=1)
    """See `lr_decay`."""
    lr_decay_tokens: int = Field(default=0, ge=0)
    """Above 0: `lr_decay` is applied every so many generated tokens, and `lr_decay_every` does not count. Gives a run
    that makes more updates of the same tokens (one without probes) the same decay."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay. SPARK: 0.01."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's averages."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's epsilon. Parameters whose gradients are smaller move less than `lr` a step: near the size of a gradient
    (its norm over the root of the number of parameters) it keeps noise from moving what has no signal."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser steps a rollout: rows are dealt to so many parts. With 1 clipping cannot act."""
    minibatch_rows: int | None = Field(default=None, ge=1)
    """Rows of one optimiser step; replaces `minibatches` where given. SPARK: 256 step samples."""
    epochs_per_rollout: int = Field(default=1, ge=1)
    """Passes over the rows of one rollout."""
    deal: Literal["rows", "trees"] = "rows"
    """What is shuffled into mini-batches: single rows, or trees with their rows together (at most one tree is cut
    between two mini-batches of equal size). What rows share can be computed once only within a mini-batch."""
    packing: Literal["auto", "tree", "rows"] = "auto"
    """How rows go through the model: one by one, or as trees whose shared tokens go through it once. `auto` packs where
    the model allows it and enough is shared to pay; `tree` fails where it is impossible. The results are the same."""
    skip_dead_rows: bool = True
    """Leave out rows whose advantages are all zero (groups that all won or all failed): they have no gradient where the
    loss has neither KL nor entropy. The weights of the others stay as they are; reports of the loss describe those."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Most tokens (padding included) of one forward pass; changes memory and speed, not the result."""
    gradient_checkpointing: bool = False
    """Trade time for memory."""
    prompt_weight: float = Field(default=0.0, ge=0)
    """`sft` only: weight of prompts and observations (language pre-training); 0 trains responses alone."""


class CurriculumConfig(Section):
    """Which tasks a step trains on."""

    name: str = "uniform"
    """A name from `CURRICULA` or "package.module:Class"."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the curriculum."""


class Config(Section):
    """One experiment."""

    name: str = "run"
    """Name of the run; its directory is `runs/<name>`."""
    seed: int = 0
    """Decides everything random."""
    steps: int = Field(default=100, ge=0)
    """Updates."""
    tasks_per_step: int = Field(default=16, ge=1)
    """Tasks (trees) an update; for `sft` stored episodes an update."""
    data: list[str] = Field(default_factory=list)
    """`sft`: files of stored episodes (`firesteel collect`) or judged trajectories; `ppo`: the latter
    (`firesteel trajectories`)."""
    token_budget: int | None = Field(default=None, ge=1)
    """Stop once so many tokens were generated; None: `steps` alone decides."""
    runs_dir: str = "runs"
    """Where runs live."""
    save_every: int = Field(default=10, ge=0)
    """Checkpoint every so many steps; 0: only at the end."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many recent checkpoints stay."""
    save_trees: bool = True
    """Keep the scored trees of every step."""
    deterministic: bool = True
    """Fixed order and shapes: the same seed gives the same bits on the same machine."""
    threads: int = Field(default=1, ge=0)
    """CPU threads of torch; 0 leaves torch's own choice. Results differ in the last bits between counts."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    """The policy."""
    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    """Where it acts."""
    context: ContextConfig = Field(default_factory=ContextConfig)
    """What it sees."""
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """How trees grow."""
    reward: RewardConfig = Field(default_factory=RewardConfig)
    """What an episode is worth."""
    advantage: AdvantageConfig = Field(default_factory=AdvantageConfig)
    """From rewards to advantages."""
    loss: LossConfig = Field(default_factory=LossConfig)
    """The policy-gradient loss."""
    learner: LearnerConfig = Field(default_factory=LearnerConfig)
    """The optimiser, and how an update is cut up."""
    ppo: PpoConfig = Field(default_factory=PpoConfig)
    """Learning from judged trajectories: the reward and its limits."""
    critic: CriticConfig = Field(default_factory=CriticConfig)
    """The critic of `ppo`."""
    curriculum: CurriculumConfig = Field(default_factory=CurriculumConfig)
    """Which tasks a step trains on."""
    rescue: RescueConfig = Field(default_factory=RescueConfig)
    """What becomes of failed groups."""
    stability: StabilityConfig = Field(default_factory=StabilityConfig)
    """When a training counts as collapsed."""
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """How success is measured."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.learner.kind == "policy_gradient" and (self.rollout.top_k > 0 or self.rollout.top_p < 1):
            raise ValueError(
                "rollout.top_k/top_p cut the distribution that training samples from, and the loss cannot see what was "
                "cut: leave top_k = 0 and top_p = 1 for training"
            )
        if self.learner.kind == "policy_gradient" and self.rollout.temperature == 0:
            raise ValueError("rollout.temperature must be above 0 for training: greedy groups are all alike")
        if self.rollout.vote and self.learner.kind == "policy_gradient" and self.steps > 0:
            raise ValueError("rollout.vote is for evaluation; set evaluation.vote instead")
        if self.learner.kind != "sft" and self.learner.prompt_weight > 0:
            raise ValueError(
                "learner.prompt_weight is for learner.kind 'sft': a policy gradient has no weight for prompts"
            )
        if self.stability.on_collapse != "report" and not self.evaluation.looks:
            raise ValueError(
                f"stability.on_collapse '{self.stability.on_collapse}' needs evaluation.every or every_tokens above 0: "
                "collapse is a fall of the success on validation tasks"
            )
        by_tokens = {"evaluation.every_tokens": self.evaluation.every_tokens,
                     "learner.lr_decay_tokens": self.learner.lr_decay_tokens}  # fmt: skip
        if self.learner.kind != "policy_gradient" and any(by_tokens.values()):
            name = next(name for name, tokens in by_tokens.items() if tokens)
            raise ValueError(
                f"{name} counts generated tokens, and learner.kind '{self.learner.kind}' generates none; count steps"
            )
        return self

    @classmethod
    def build(cls, *layers: Mapping[str, Any]) -> Config:
        """Merges nested settings, later layers over earlier ones, and validates the result once.

        A layer that names another environment drops the options of the one before: they were not meant for it.

        Raises:
            ConfigError: an unknown key (with the nearest name), a wrong type, or a contradiction.
        """
        merged: dict[str, Any] = {}
        for layer in map(in_full, layers):
            if _names_another_environment(merged, layer):
                merged["environment"].pop("options", None)
            merged = merge(merged, layer)
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from error

    def updated(self, *layers: Mapping[str, Any]) -> Config:
        """A copy with nested settings replaced."""
        return Config.build(self.model_dump(), *layers)

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """Reads a YAML file, such as the `config.yaml` of a run."""
        try:
            content = read_yaml(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"config file '{path}' does not exist") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"config file '{path}' is not YAML: {error}") from error
        if not isinstance(content, dict):
            raise ConfigError(f"config file '{path}' must hold a mapping of settings, got {type(content).__name__}")
        return cls.build(content)


def _names_another_environment(merged: Mapping[str, Any], layer: Mapping[str, Any]) -> bool:
    before, after = merged.get("environment"), layer.get("environment")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return False
    return bool(before.get("name") and after.get("name") and before["name"] != after["name"])


def explain(error: ValidationError, cls: type[BaseModel]) -> str:
    """All problems, each naming its setting; unknown keys come with the nearest known one."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(cls, problem["loc"][:-1])
            key = str(problem["loc"][-1])
            lines.append(f"unknown setting '{where}'{nearest(key, known)}; known here: {', '.join(known)}")
        elif problem["type"] == "value_error":
            lines.append(": ".join(filter(None, (where, problem["msg"].removeprefix("Value error, ")))))
        else:
            lines.append(f"{where}: {problem['msg']} (got {problem['input']!r})")
    return "; ".join(lines)


def _fields_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        annotation = cls.model_fields[str(part)].annotation
        options = getattr(annotation, "__args__", (annotation,))
        cls = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(cls.model_fields)
