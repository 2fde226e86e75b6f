"""How far two judges agree on the same steps: what `firesteel judge compare` reports."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from firesteel.judges.base import Judge, PastStep, Situation
from firesteel.selection import ActionSelector


@dataclass(frozen=True, slots=True)
class Case:
    """One step that both judges see."""

    situation: Situation
    thought: str
    candidates: Mapping[str, str]
    step: PastStep


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two judges agree over `n` steps; NaN where there is nothing to compare.

    `rank_correlation` is the mean of Spearman's coefficient within a step, over steps in which neither judge scores
    all candidates alike. `score_difference` is the mean of |first - second|. `same_best` and `same_choice` are the
    shares of steps in which both prefer, or the selector picks, the same action; `viable_overlap` is the mean of
    shared viable actions over all viable actions of both (1 where neither has any). `process_agreement` is the share
    of equal verdicts and `process_kappa` Cohen's kappa of them.
    """

    n: int
    rank_correlation: float
    score_difference: float
    same_best: float
    same_choice: float
    viable_overlap: float
    process_agreement: float
    process_kappa: float


def compare_judges(first: Judge, second: Judge, cases: Iterable[Case], selector: ActionSelector) -> Agreement:
    """Has both judges judge all cases, and compares; ties of the selector are drawn alike for both."""
    correlations: list[float] = []
    differences: list[float] = []
    best: list[bool] = []
    choices: list[bool] = []
    overlaps: list[float] = []
    verdicts: list[tuple[bool, bool]] = []
    for number, case in enumerate(cases):
        scores = [judge.score(case.situation, case.thought, case.candidates) for judge in (first, second)]
        actions = sorted(case.candidates)
        one, other = ([score[action] for action in actions] for score in scores)
        if len(set(one)) > 1 and len(set(other)) > 1:
            correlations.append(_pearson(ranks(one), ranks(other)))
        differences += [abs(a - b) for a, b in zip(one, other, strict=True)]
        best.append(bool(_best(actions, one) & _best(actions, other)))
        chosen = [selector.select(score, {}, random.Random(number)) for score in scores]
        choices.append(chosen[0].action == chosen[1].action)
        overlaps.append(_overlap(set(chosen[0].viable), set(chosen[1].viable)))
        verdicts.append((first.process_ok(case.situation, case.step), second.process_ok(case.situation, case.step)))
    return Agreement(
        n=len(verdicts),
        rank_correlation=_mean(correlations),
        score_difference=_mean(differences),
        same_best=_mean(best),
        same_choice=_mean(choices),
        viable_overlap=_mean(overlaps),
        process_agreement=_mean([a == b for a, b in verdicts]),
        process_kappa=cohens_kappa(verdicts),
    )


def ranks(values: Sequence[float]) -> list[float]:
    """The ranks of values from 1; equal values share the mean of their ranks."""
    order = sorted(values)
    return [order.index(value) + (order.count(value) + 1) / 2 for value in values]


def cohens_kappa(pairs: Sequence[tuple[bool, bool]]) -> float:
    """(p_o - p_e) / (1 - p_e): agreement beyond chance. NaN for no pair, or where chance alone gives agreement 1."""
    if not pairs:
        return math.nan
    observed = _mean([a == b for a, b in pairs])
    first, second = _mean([a for a, _ in pairs]), _mean([b for _, b in pairs])
    expected = first * second + (1 - first) * (1 - second)
    return math.nan if expected == 1 else (observed - expected) / (1 - expected)


def _best(actions: Sequence[str], scores: Sequence[float]) -> set[str]:
    return {action for action, score in zip(actions, scores, strict=True) if score == max(scores)}


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second) if first | second else 1.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _pearson(first: Sequence[float], second: Sequence[float]) -> float:
    mean_first, mean_second = _mean(first), _mean(second)
    products = [(a - mean_first) * (b - mean_second) for a, b in zip(first, second, strict=True)]
    spread = math.sqrt(
        math.fsum((a - mean_first) ** 2 for a in first) * math.fsum((b - mean_second) ** 2 for b in second)
    )
    return math.fsum(products) / spread
