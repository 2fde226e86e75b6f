"""The policy as its own judge: how likely it finds each candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from firesteel.judges.base import HIGHEST_SCORE, PastStep, Situation
from firesteel.openai_client import Ledger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MeanLogprobs = Callable[[str, Sequence[str]], Sequence[float]]
"""From a state's text and several continuations to the mean log-probability per token of each."""


class PolicyJudge:
    """Scores a candidate by its mean token log-probability m under the model: 10 · exp(m - max m), in (0, 10].

    The most likely candidate always has 10. A step is sound when its tool did not fail: a model's opinion of its own
    step would be no second opinion.
    """

    name = "policy"
    sees_key = False

    def __init__(self, mean_logprobs: MeanLogprobs) -> None:
        self._mean_logprobs = mean_logprobs

    @property
    def ledger(self) -> Ledger:
        """Nothing is bought."""
        return Ledger()

    def score(self, situation: Situation, thought: str, candidates: Mapping[str, str]) -> dict[str, float]:
        state = f"{situation.text}\nThought: {thought}\nAction: "
        actions = sorted(candidates)
        means = list(self._mean_logprobs(state, [f"{action}: {candidates[action]}" for action in actions]))
        highest = max(means)
        return {action: HIGHEST_SCORE * math.exp(mean - highest) for action, mean in zip(actions, means, strict=True)}

    def process_ok(self, situation: Situation, step: PastStep) -> bool:
        return not situation.has_tried(step.action, step.query) and not step.observation.startswith("error:")


def model_mean_logprobs(model: Any, tokenizer: PreTrainedTokenizerBase) -> MeanLogprobs:
    """The `MeanLogprobs` of a causal language model, one forward pass for each continuation."""
    import torch

    def measure(state: str, continuations: Sequence[str]) -> list[float]:
        prompt = tokenizer.encode(state, add_special_tokens=False)
        means = []
        for continuation in continuations:
            token_ids = tokenizer.encode(continuation, add_special_tokens=False)
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *token_ids]], device=model.device)).logits[
                    0, len(prompt) - 1 : -1
                ]
            logprobs_T = logits.float().log_softmax(-1).gather(1, torch.tensor(token_ids, device=model.device)[:, None])
            means.append(float(logprobs_T.mean()))
        return means

    return measure
