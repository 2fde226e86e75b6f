"""Settings of learning from stored, judged trajectories: SPaRK's reward, its offline PPO and its critic."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from firesteel.config_base import Section

RowFilter = Literal["none", "process_ok", "correct", "process_ok_and_correct", "all_process_ok"]


class PpoConfig(Section):
    """What a judged step is worth, which steps are learnt from, and how far the policy may move."""

    rho: float = Field(default=0.5, ge=0, le=1)
    """Weight of the score gap against process_ok: R = rho (best - chosen) - (1 - rho)(1 - process_ok). SPaRK does not
    report its value."""
    reward: Literal["gap", "score"] = "gap"
    """"gap": SPaRK's reward. "score": chosen_score / 10, the judge's opinion of the action (SWiRL)."""
    reward_scale: Literal["raw", "unit"] = "raw"
    """Scale of best - chosen: "raw" 0 to 10 as scored, "unit" divided by 10, as large as the process term at most.
    SPaRK does not say."""
    outcome_weight: float = Field(default=0.0, ge=0)
    """Added to R of every step of a trajectory whose answer is right. Above 0 the answer is trained, too."""
    filter: RowFilter = "none"
    """Steps that PPO learns from; the others are context. `all_process_ok` keeps trajectories in which every step is
    sound (SWiRL). Filtered to sound steps, the process term of the reward is 0 everywhere; SPaRK filters."""
    sft_filter: RowFilter = "process_ok_and_correct"
    """Steps that learner.kind `sft` learns from."""
    action: Literal["thought_and_call", "call"] = "thought_and_call"
    """What an action consists of: all that was written in a step, or the call alone, with the thought as context."""
    answer: Literal["letter", "words"] = "letter"
    """What the answers of trajectories are learnt as: the option's letter, or its words. Environments take both."""
    ratio_level: Literal["token", "action"] = "token"
    """Whether the clipped ratio is one for each token, or one for each action."""
    kl_coef: float = Field(default=1.0, ge=0)
    """Weight of the squared KL, the mean over steps of KL(old || policy)^2. SPaRK does not report its value."""
    kl_target: float = Field(default=0.2, gt=0)
    """What the mean KL of a step (nats per token, not squared) is held to. SPaRK: 0.2."""
    on_target: Literal["stop", "adapt", "report"] = "stop"
    """"stop": an optimiser step whose KL is above the target is not taken. "adapt": kl_coef is multiplied by 1.5 after
    an update above 1.5 times the target, and divided by it below two thirds of it. "report": the KL is only logged."""


class CriticConfig(Section):
    """The critic of offline PPO: adapters on the model that training starts from, and a value head."""

    folds: int = Field(default=5, ge=0)
    """Cross-fitting: a step's value comes from a critic that saw no step of its question. 0: no critic, A = R."""
    epochs: int = Field(default=1, ge=1)
    """Passes over its folds at the start of each epoch of the policy; then the values are frozen for that epoch."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW."""
    batch_rows: int = Field(default=16, ge=1)
    """Token streams of one optimiser step."""
    rank: int = Field(default=8, ge=1)
    """Rank of the adapters. SPaRK: 8."""
    alpha: int = 16
    """Scale of the adapters: their output counts alpha / rank."""
    hidden: int = Field(default=256, ge=1)
    """Width of the value head's hidden layer."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
