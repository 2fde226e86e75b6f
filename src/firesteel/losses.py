"""Policy-gradient losses: equations as pure functions on tensors.

Legend: `T` sampled tokens of a batch, in any order.

The objective of a token that lies on the paths of several leaves is a sum over those leaves,

    sum_l w(l,n) * min(r_t A(l,n), clip(r_t, 1 - eps_low, 1 + eps_high) A(l,n)).

For A >= 0 the minimum is A * min(r_t, 1 + eps_high); for A < 0 it is A * max(r_t, 1 - eps_low). So the sum depends
on the leaves only through P_t = sum_l w * max(A, 0) and N_t = sum_l w * min(A, 0): exact, whatever is clipped, with two
numbers a token. (Averaging advantages at a node before clipping would not be exact.)
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_objective(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    positive_T: Tensor,
    negative_T: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, summed over leaves (see the module's head).

    Args:
        logprobs_T: log-probabilities under the policy being trained.
        old_logprobs_T: those of the policy that sampled.
        positive_T: sum over leaves of w * max(A, 0), >= 0.
        negative_T: sum over leaves of w * min(A, 0), <= 0.
        clip_low: eps_low.
        clip_high: eps_high.
        dual_clip: for A < 0 the ratio counts at most this much (dual-clip PPO's c > 1); None: no bound.

    Returns:
        (objective per token, to be maximised; whether clipping acts on the token, bool).
    """
    ratio_T = torch.exp(logprobs_T - old_logprobs_T)
    raised_T = torch.clamp(ratio_T, max=1.0 + clip_high)
    lowered_T = torch.clamp(ratio_T, min=1.0 - clip_low)
    if dual_clip is not None:
        lowered_T = torch.clamp(lowered_T, max=dual_clip)
    acts_T = ((positive_T > 0) & (raised_T != ratio_T)) | ((negative_T < 0) & (lowered_T != ratio_T))
    return positive_T * raised_T + negative_T * lowered_T, acts_T


def kl_estimate(logprobs_T: Tensor, reference_logprobs_T: Tensor, *, kind: str) -> Tensor:
    """Per-token estimates of KL(policy || reference) for tokens drawn from the policy, d = log policy - log reference.

    `k1`: d (unbiased, may be negative). `k2`: d^2 / 2. `k3`: exp(-d) - 1 + d (unbiased, >= 0; "low variance").
    """
    difference_T = logprobs_T - reference_logprobs_T
    if kind == "k1":
        return difference_T
    if kind == "k2":
        return 0.5 * difference_T**2
    if kind == "k3":
        return torch.exp(-difference_T) - 1.0 + difference_T
    raise ValueError(f"KL estimator must be k1, k2 or k3, got '{kind}'")


def selected_logprobs(logits_TV: Tensor, token_ids_T: Tensor, temperatures_T: Tensor | None = None) -> Tensor:
    """Log-probabilities of the given tokens, in fp32, with logits divided by the sampling temperatures if given."""
    logits_TV = logits_TV.float()
    if temperatures_T is not None:
        logits_TV = logits_TV / temperatures_T.unsqueeze(-1)
    return torch.log_softmax(logits_TV, dim=-1).gather(-1, token_ids_T.unsqueeze(-1)).squeeze(-1)


def token_entropies(logits_TV: Tensor) -> Tensor:
    """Entropies (nats) of the raw distributions, in fp32."""
    logprobs_TV = torch.log_softmax(logits_TV.float(), dim=-1)
    negative_T: Tensor = torch.linalg.vecdot(logprobs_TV.exp(), logprobs_TV)
    return -negative_T
