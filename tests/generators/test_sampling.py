from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from firesteel.errors import ConfigError
from firesteel.generators.sampling import Sampler, check_sampling, inverse_cdf, truncate, uniforms
from firesteel.types import SamplingParams

CPU = torch.device("cpu")


def chi_square_limit(degrees: int, probability: float) -> float:
    """Wilson and Hilferty: what a chi-square variable exceeds with this probability."""
    normal = NormalDist().inv_cdf(1 - probability)
    return degrees * (1 - 2 / (9 * degrees) + normal * math.sqrt(2 / (9 * degrees))) ** 3


def truncated(probabilities: list[float], *, top_k: int = 0, top_p: float = 1.0) -> list[float]:
    row = torch.tensor([probabilities], dtype=torch.float64)
    return truncate(row, torch.tensor([top_k]), torch.tensor([top_p], dtype=torch.float64))[0].tolist()


# uniforms


def test_uniforms_depend_on_the_seed_and_the_number_of_the_draw_alone() -> None:
    long = uniforms(7, 100)
    assert np.array_equal(uniforms(7, 10), long[:10])
    assert not np.array_equal(uniforms(8, 10), long[:10])
    assert long.min() >= 0 and long.max() < 1


def test_any_integer_is_a_seed() -> None:
    assert np.array_equal(uniforms(-1, 3), uniforms(2**128 - 1, 3))
    assert uniforms(2**200, 3).shape == (3,)


# truncate


def test_top_k_keeps_the_k_largest_and_renormalises() -> None:
    # 0.5 and 0.25 stay; divided by their sum 0.75.
    assert truncated([0.125, 0.5, 0.25, 0.125], top_k=2) == pytest.approx([0, 2 / 3, 1 / 3, 0])


def test_top_k_takes_the_lower_ids_of_equal_tokens() -> None:
    assert truncated([0.25, 0.25, 0.25, 0.25], top_k=2) == pytest.approx([0.5, 0.5, 0, 0])


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    # 0.5 alone is below 0.7, 0.5 + 0.25 reaches it.
    assert truncated([0.125, 0.5, 0.25, 0.125], top_p=0.7) == pytest.approx([0, 2 / 3, 1 / 3, 0])
    # 0.5 is exactly enough.
    assert truncated([0.125, 0.5, 0.25, 0.125], top_p=0.5) == pytest.approx([0, 1, 0, 0])
    # The largest stays, however small top_p is.
    assert truncated([0.125, 0.5, 0.25, 0.125], top_p=1e-9) == pytest.approx([0, 1, 0, 0])


def test_top_p_counts_what_top_k_left() -> None:
    # top_k leaves 2/3 and 1/3; 2/3 reaches 0.6 alone. Of the whole distribution 0.5 would not have.
    assert truncated([0.125, 0.5, 0.25, 0.125], top_k=2, top_p=0.6) == pytest.approx([0, 1, 0, 0])


def test_off_changes_nothing_and_rows_have_their_own_settings() -> None:
    rows = torch.tensor([[0.125, 0.5, 0.25, 0.125]] * 3, dtype=torch.float64)
    result = truncate(rows, torch.tensor([0, 1, 100]), torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    assert result[0].tolist() == pytest.approx(rows[0].tolist())
    assert result[1].tolist() == [0, 1, 0, 0]
    assert result[2].tolist() == pytest.approx(rows[0].tolist())


# inverse_cdf


def test_inverse_cdf_by_hand() -> None:
    # Cumulative: 0.25, 0.25, 0.75, 1. A draw on an edge belongs to the next token that has any probability.
    row = torch.tensor([0.25, 0.0, 0.5, 0.25])
    draws = torch.tensor([0.0, 0.2, 0.25, 0.5, 0.75, 0.999], dtype=torch.float64)
    assert inverse_cdf(row.expand(6, 4), draws).tolist() == [0, 0, 2, 2, 3, 3]


def test_inverse_cdf_never_gives_a_token_without_probability() -> None:
    row = torch.tensor([[0.0, 0.6, 0.0, 0.4, 0.0, 0.0]])
    assert inverse_cdf(row, torch.tensor([0.0], dtype=torch.float64)).tolist() == [1]
    # The largest float64 below 1: the last real token, not the end of the vocabulary.
    largest = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert inverse_cdf(row, largest).tolist() == [3]
    for total in (3.0, 1.0, 0.7, 1 - 2.0**-24, 1 + 2.0**-23):
        assert inverse_cdf(row * total, largest).tolist() == [3]


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.3, 0.2, 0.02, 0.0, 0.18, 0.1, 0.05, 0.15])
    count = 20_000
    draws = torch.from_numpy(np.array([uniforms(seed, 3)[2] for seed in range(count)]))
    seen = torch.bincount(inverse_cdf(probabilities.expand(count, 8), draws), minlength=8)
    wanted = probabilities * count
    real = probabilities > 0
    chi_square = float((((seen - wanted) ** 2)[real] / wanted[real]).sum())
    assert seen[3] == 0
    # Seven tokens have a probability: 6 degrees of freedom.
    assert chi_square < chi_square_limit(6, 1e-3)
    # The limit does tell distributions apart: these are the draws of another one.
    assert float((((seen - count / 7) ** 2)[real] / (count / 7)).sum()) > chi_square_limit(6, 1e-3)


# Sampler


def test_raw_and_sampling_logprobs_by_hand() -> None:
    # Probabilities 1/7, 2/7, 4/7 at temperature 1; at temperature 1/2 their squares: 1/21, 4/21, 16/21.
    logits = torch.tensor([[0.0, math.log(2), math.log(4)]])
    sampler = Sampler([SamplingParams(1, temperature=0.5, top_k=2)], CPU)
    draw = sampler.draw(logits, [uniforms(3, 1)[0]])
    token = int(draw.tokens[0])
    # top_k leaves 4/21 and 16/21: 1/5 and 4/5.
    assert token == (1 if uniforms(3, 1)[0] < 0.2 else 2)
    assert float(draw.logprobs[0]) == pytest.approx(math.log([1 / 7, 2 / 7, 4 / 7][token]))
    assert float(draw.sampling_logprobs[0]) == pytest.approx(math.log([0, 1 / 5, 4 / 5][token]))
    entropy = -sum(p * math.log(p) for p in (1 / 7, 2 / 7, 4 / 7))
    assert float(draw.entropies[0]) == pytest.approx(entropy)


def test_equal_tokens_are_drawn_in_proportion_to_the_number() -> None:
    # Of 1000 equal tokens, number u in [0, 1) draws token 1000 u, rounded down.
    draw = Sampler([SamplingParams(1)] * 3, CPU).draw(torch.zeros(3, 1000), [0.0, 0.4327, 0.9999])
    assert draw.tokens.tolist() == [0, 432, 999]


def test_temperature_one_draws_from_the_raw_distribution() -> None:
    draw = Sampler([SamplingParams(1)], CPU).draw(torch.tensor([[0.3, 1.0, -2.0]]), [0.6])
    assert draw.sampling_logprobs.tolist() == draw.logprobs.tolist()


def test_temperature_zero_takes_the_best_token_and_is_certain() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    for params in ([SamplingParams(1, temperature=0.0)], [SamplingParams(1, temperature=0.0), SamplingParams(1)]):
        draw = Sampler(params, CPU).draw(logits.expand(len(params), 4), [0.9] * len(params))
        assert int(draw.tokens[0]) == 1
        assert float(draw.sampling_logprobs[0]) == 0.0
        assert float(draw.logprobs[0]) == pytest.approx(float(logits.log_softmax(-1)[0, 1]))


def test_forbidden_tokens_leave_the_entropy_finite() -> None:
    draw = Sampler([SamplingParams(1)], CPU).draw(torch.tensor([[0.0, -math.inf, 0.0]]), [0.4])
    assert float(draw.entropies[0]) == pytest.approx(math.log(2))
    assert int(draw.tokens[0]) != 1


def test_every_row_has_its_own_settings() -> None:
    params = [SamplingParams(4), SamplingParams(4, temperature=0.0), SamplingParams(4, temperature=3.0, top_k=5)]
    logits, numbers = torch.linspace(-2, 2, 30).reshape(3, 10), [0.3, 0.5, 0.8]
    together = Sampler(params, CPU).draw(logits, numbers)
    for row, each in enumerate(params):
        alone = Sampler([each], CPU).draw(logits[row : row + 1], numbers[row : row + 1])
        for whole, single in zip(together, alone, strict=True):
            assert whole[row : row + 1].tolist() == pytest.approx(single.tolist())


@pytest.mark.parametrize("params", [
    SamplingParams(1),
    SamplingParams(1, temperature=0.5),
    SamplingParams(1, temperature=2.0, top_k=4),
    SamplingParams(1, top_p=0.8),
    SamplingParams(1, temperature=0.7, top_k=6, top_p=0.75),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_follow_the_tempered_and_truncated_distribution(params: SamplingParams, dtype: torch.dtype) -> None:
    logits = torch.tensor([1.0, 0.25, -1.5, 0.5, 2.0, -0.5, 0.0, 1.5], dtype=dtype)
    count = 10_000
    # The kept tokens worked out one by one, in float64.
    wanted = (logits.double() / params.temperature).softmax(-1).tolist()
    order = sorted(range(8), key=lambda token: -wanted[token])[: params.top_k or 8]
    mass = sum(wanted[token] for token in order)
    kept: list[int] = []
    for token in order:
        if sum(wanted[each] for each in kept) / mass >= params.top_p:
            break
        kept.append(token)
    total = sum(wanted[token] for token in kept)
    draw = Sampler([params] * count, CPU).draw(logits.expand(count, 8), [uniforms(seed, 1)[0] for seed in range(count)])
    seen = torch.bincount(draw.tokens, minlength=8).tolist()
    assert sum(seen[token] for token in kept) == count
    expected = {token: count * wanted[token] / total for token in kept}
    chi_square = sum((seen[token] - expected[token]) ** 2 / expected[token] for token in kept)
    assert chi_square < chi_square_limit(len(kept) - 1, 1e-3)
    for token, sampling_logprob in list(zip(draw.tokens.tolist(), draw.sampling_logprobs.tolist(), strict=True))[:50]:
        assert sampling_logprob == pytest.approx(math.log(wanted[token] / total), abs=1e-5)


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        (SamplingParams(0), "max_new_tokens"),
        (SamplingParams(1, temperature=-0.1), "temperature"),
        (SamplingParams(1, temperature=math.nan), "temperature"),
        (SamplingParams(1, top_k=-1), "top_k"),
        (SamplingParams(1, top_p=0.0), "top_p"),
        (SamplingParams(1, top_p=1.1), "top_p"),
        (SamplingParams(1, stop=("",)), "stop"),
    ],
)
def test_impossible_settings_are_named(params: SamplingParams, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"request 4: {problem}"):
        check_sampling(params, "request 4")
