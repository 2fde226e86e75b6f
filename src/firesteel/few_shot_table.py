"""Whether solved examples help a policy with what it cannot solve: Table 2 of ToolExpander, and its check.

Samples that a probe did not solve are partly those that had bad luck, and a second look finds them easier whatever is
done. So the pass rates come from fresh probes, of the raw prompt too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from firesteel.hard_sampling import HardSampling
from firesteel.metrics import wilson_interval
from firesteel.probing import Play, probe_in_chunks, waves_of
from firesteel.types import Task


@dataclass(frozen=True, slots=True)
class PassRate:
    """How many of n samples a fresh probe solved with one kind of prompt, with the 95% Wilson interval of the share."""

    prompt: str
    solved: int
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high)."""
        return wilson_interval(self.solved, self.n)


@dataclass(frozen=True, slots=True)
class FewShotTable:
    """What a probe of `num_tasks` left unsolved, and pass rates on its hard samples: raw, random, selected few-shot.

    `unsolved` counts tasks without a success in the probe of the raw prompt, after one draw of examples, and after all.
    """

    num_tasks: int
    unsolved: tuple[int, int, int]
    rates: tuple[PassRate, PassRate, PassRate]
    rollouts: int

    @property
    def lifts(self) -> bool:
        """Whether selected examples help for certain: their interval lies above that of the raw prompt."""
        return self.rates[2].interval[0] > self.rates[0].interval[1]

    def text(self) -> str:
        """The table in Markdown."""
        head = f"pass@{self.rollouts} on hard samples (95% interval)"
        lines = [f"| prompt | unsolved of {self.num_tasks} | {head} |", "|---|--:|--:|"]
        for unsolved, rate in zip(self.unsolved, self.rates, strict=True):
            low, high = rate.interval
            share = f"{rate.solved / rate.n:.1%} ({low:.1%} to {high:.1%})" if rate.n else "no hard sample"
            lines.append(f"| {rate.prompt} | {unsolved} | {share} |")
        return "\n".join(lines) + "\n"


def few_shot_table(
    tasks: Sequence[Task], play: Play, *, seed: int, rollouts: int = 10, attempts: int = 3, **examples: Any
) -> FewShotTable:
    """Probes all tasks, looks for examples for the hard ones, and plays these again in three versions.

    A sample for which no examples are found, or none led to a correct answer, is played raw (cautious).
    """
    curriculum = HardSampling(tasks, seed=seed, rollouts=rollouts, max_fewshot_attempts=attempts, **examples)
    counts = curriculum.prepare(0, play)
    hard = [place for place in range(len(tasks)) if curriculum.status_of(place) in ("guided", "hard")]
    index = curriculum.index
    shown: dict[str, dict[int, tuple[int, ...]]] = {
        "raw": {place: () for place in hard},
        "random few-shot": {place: index.draw(tasks[place], 0) for place in hard},
        "selected few-shot": {place: curriculum.examples_of(place) for place in hard},
    }
    rates = []
    for name, drawn in shown.items():
        versions = [index.guide(tasks[place], drawn[place]) if drawn[place] else tasks[place] for place in hard]
        rates.append(PassRate(name, _solved(versions, play, f"fresh/{name}", rollouts), len(hard)))
    unsolved = tuple(int(counts[f"hard/{name}"]) for name in ("no_raw", "no_random", "no_selected"))
    assert len(unsolved) == 3
    return FewShotTable(len(tasks), unsolved, (rates[0], rates[1], rates[2]), rollouts)


def hard_samples_left(tasks: Sequence[Task], play: Play, *, rollouts: int = 10) -> PassRate:
    """How many tasks a fresh probe of the raw prompt solves; the others are the hard samples left (Table 3)."""
    return PassRate("raw", _solved(tasks, play, "fresh/left", rollouts), len(tasks))


def _solved(tasks: Sequence[Task], play: Play, name: str, rollouts: int) -> int:
    chunks = probe_in_chunks(tasks, play, name, waves=waves_of(rollouts))
    return sum(result.solved for _, results in chunks for result in results)
