"""Dynamic multi-round hard sampling (Section 3.2 of ToolExpander): a curriculum that probes, guides and lets go.

At the start of every round, the raw tasks are probed with the current policy. One that no rollout solves is hard; it
is trained in a few-shot version, if one is found that the policy can solve, until the policy solves the raw task.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firesteel.errors import ConfigError, TaskError
from firesteel.fewshot import EXAMPLE_OPTIONS, ExampleIndex, is_guided
from firesteel.files import append_line, exact_json, read_jsonl, truncate_jsonl
from firesteel.plugin_options import option_names, refuse_unknown
from firesteel.probing import Play, Probe, probe, waves_of
from firesteel.tree import Tree
from firesteel.types import Task

MODES = ("replace", "add", "drop", "all", "mix")
STATUSES = {"u": "unprobed", "r": "raw", "g": "guided", "h": "hard", "s": "solved"}
"""raw: solved by a rollout of its raw prompt. guided: hard, with examples that led to a correct answer. hard: no
examples did. solved: was hard or guided, and a raw rollout solved it."""


class Ledger:
    """What became of each sample, round by round: a line file, one line for each batch of probed samples."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: int, round_number: int, entries: Sequence[dict[str, Any]]) -> None:
        """Appends entries `{"id", "status", "examples", "attempts", "solved_by"}` of one step."""
        record = {"step": step, "round": round_number, "entries": list(entries)}
        append_line(self.path, exact_json(record, name=f"'{self.path}'"))

    def read(self) -> list[dict[str, Any]]:
        """Every entry, with its step and round, in the order of writing."""
        lines = read_jsonl(self.path)
        return [{"step": line["step"], "round": line["round"], **entry} for line in lines for entry in line["entries"]]

    def truncate(self, before_step: int) -> None:
        """Forgets what was written at `before_step` or later; a resumed run writes it again."""
        truncate_jsonl(self.path, before_step=before_step)


class HardSampling:
    """A curriculum of tool-calling tasks with rounds of `steps_per_round` steps.

    Call `prepare(step, play)` before `sample`: at the first step of a round it probes.

    - `mode`: "replace" trains a hard task in its few-shot version (the paper's choice), "add" in both versions. The
      paper's failures: "drop" leaves hard tasks out (none of them where all are hard), "all" shows examples in every
      task, "mix" in a `mix_share` of them, whatever is hard.
    - `bold`: a hard task for which no examples led to a correct answer gets the last ones that were tried; else
      (cautious) it stays raw.
    - `rollouts` of a probe and their `temperature` (None: that of training), `max_fewshot_attempts` draws of examples,
      `lr_decay` a round: see `lr_factor`.
    - `per_tool`, `max_examples`, `tools_of`, `read`: see `ExampleIndex`.

    Differs from the paper: the number of rounds, of examples and of attempts is not stated there, nor whether the
    decay of 0.8 is taken by round or by epoch (by round here).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        seed: int,
        mode: str = "replace",
        steps_per_round: int = 50,
        rollouts: int = 10,
        max_fewshot_attempts: int = 3,
        bold: bool = False,
        mix_share: float = 0.5,
        lr_decay: float = 0.8,
        temperature: float | None = 0.7,
        chunk: int = 256,
        **examples: Any,
    ) -> None:
        if not tasks:
            raise TaskError("the training split has no tasks; check environment.split, num_tasks and options")
        known = (*option_names(HardSampling), *EXAMPLE_OPTIONS)
        refuse_unknown("curriculum 'hard_sampling'", examples, known)
        check_options(
            mode=mode, steps_per_round=steps_per_round, rollouts=rollouts, max_fewshot_attempts=max_fewshot_attempts,
            bold=bold, mix_share=mix_share, lr_decay=lr_decay, temperature=temperature, chunk=chunk,
        )  # fmt: skip
        self.tasks = tasks
        self.seed = seed
        self.mode = mode
        self.steps_per_round = steps_per_round
        self.max_fewshot_attempts = max_fewshot_attempts
        self.bold = bold
        self.mix_share = mix_share
        self.lr_decay = lr_decay
        self.temperature = temperature
        self.chunk = chunk
        self.waves = waves_of(rollouts)
        self.index = ExampleIndex(tasks, seed=seed, **examples)
        self.ledger: Ledger | None = None
        self.round = -1
        self._step = 0
        self._status = bytearray(b"u" * len(tasks))
        self._examples: dict[int, tuple[int, ...]] = {}
        self._passes = 0
        self._left = array("L")
        self._probe_tokens = 0
        self._drops = False
        self._drawn: dict[str, int] = {}

    # rounds

    def lr_factor(self, step: int) -> float:
        """What the learning rate of a step is multiplied by: `lr_decay` to the power of its round."""
        return float(self.lr_decay ** (step // self.steps_per_round))

    def prepare(self, step: int, play: Play) -> dict[str, float]:
        """Probes all tasks if `step` begins a round that has not been probed; returns metrics, else nothing.

        "all" and "mix" ask no one what is hard, and never probe.
        """
        self._step = step
        if not self._is_due(step):
            return {}
        self.round = step // self.steps_per_round
        totals: Counter[str] = Counter()
        for start in range(0, len(self.tasks), self.chunk):
            places = range(start, min(start + self.chunk, len(self.tasks)))
            self._probe_chunk(places, play, totals)
        self._probe_tokens = totals["tokens"]
        counts = Counter(self._status.decode())
        metrics = {f"hard/{name}": float(counts[letter]) for letter, name in STATUSES.items()}
        tried = ("no_raw", "no_random", "no_selected") if self.mode in ("replace", "add") else ("no_raw",)
        metrics |= {f"hard/{name}": float(totals[name]) for name in tried}
        metrics["hard/probe_rollouts"] = float(totals["rollouts"])
        metrics["hard/probe_tokens"] = float(totals["tokens"])
        metrics["hard/probe_overhead"] = totals["tokens"] / max(1, totals["sequential"])
        return metrics

    def _is_due(self, step: int) -> bool:
        return step // self.steps_per_round > self.round and self.mode not in ("all", "mix")

    def probe_tokens(self, step: int) -> int:
        """What the last probe took, where `step` would begin with another one; else 0."""
        return self._probe_tokens if self._is_due(step) else 0

    def _probe_chunk(self, places: range, play: Play, totals: Counter[str]) -> None:
        name = f"probe/round-{self.round}"
        raw = [self.tasks[place] for place in places]
        results = self._count(probe(raw, play, name, waves=self.waves), totals)
        unsolved = [place for place, result in zip(places, results, strict=True) if not result.solved]
        for place, result in zip(places, results, strict=True):
            if result.solved:
                self._status[place] = ord("s" if chr(self._status[place]) in "ghs" else "r")
                self._examples.pop(place, None)
        attempts = self._find_examples(unsolved, play, name, totals)
        if self.ledger is not None:
            self.ledger.add(self._step, self.round, [self._entry(place, attempts) for place in places])

    def _find_examples(self, unsolved: list[int], play: Play, name: str, totals: Counter[str]) -> dict[int, int]:
        """Draws examples for hard samples until the policy answers correctly; returns the attempts of each."""
        totals["no_raw"] += len(unsolved)
        attempts = dict.fromkeys(unsolved, 0)
        left = unsolved
        for place in unsolved:
            self._status[place] = ord("h")
            self._examples.pop(place, None)
        for attempt in range(self.max_fewshot_attempts if self.mode in ("replace", "add") else 0):
            drawn = {place: self.index.draw(self.tasks[place], self._attempt_number(attempt)) for place in left}
            tried = [place for place in left if drawn[place]]
            versions = [self.index.guide(self.tasks[place], drawn[place]) for place in tried]
            results = self._count(probe(versions, play, f"{name}/few-shot-{attempt}", waves=self.waves), totals)
            for place, result in zip(tried, results, strict=True):
                attempts[place] += 1
                if result.solved:
                    self._status[place] = ord("g")
                if result.solved or self.bold:
                    self._examples[place] = drawn[place]
            left = [place for place in left if self._status[place] == ord("h")]
            if attempt == 0:
                totals["no_random"] += len(left)
        totals["no_selected"] += len(left)
        return attempts

    def _attempt_number(self, attempt: int) -> int:
        return self.round * self.max_fewshot_attempts + attempt

    def _count(self, results: list[Probe], totals: Counter[str]) -> list[Probe]:
        for result in results:
            totals["rollouts"] += result.rollouts
            totals["tokens"] += result.tokens
            totals["sequential"] += result.sequential_tokens
        return results

    def _entry(self, place: int, attempts: dict[int, int]) -> dict[str, Any]:
        status = chr(self._status[place])
        return {
            "id": self.tasks[place].id,
            "status": STATUSES[status],
            "examples": [self.tasks[other].id for other in self._examples.get(place, ())],
            "attempts": attempts.get(place, 0),
            "solved_by": {"r": "probe", "s": "probe", "g": "few_shot"}.get(status),
        }

    # the curriculum

    def sample(self, count: int) -> list[Task]:
        """The next tasks of a seeded order, each in the version that its status asks for; "add" gives both.

        Both versions are in one step: where one place is left, another sample takes it, and where all others have two
        versions, the few-shot one takes it. No sample is in a step twice unless it asks for more than there are.
        """
        left_in = len(self.tasks) - sum(map(self._status.count, b"gh"))
        self._drops = self.mode == "drop" and left_in > 0
        usable = left_in if self._drops else len(self.tasks)
        chosen: list[Task] = []
        held: Counter[int] = Counter()
        while len(chosen) < count:
            room = count - len(chosen)
            place = self._take(room, held, usable)
            versions = self._versions(place)
            if versions:
                self._drawn[self.tasks[place].id] = place
                held[place] += 1
            chosen += versions if len(versions) <= room else versions[-1:]
        return chosen

    def _take(self, room: int, held: Counter[int], usable: int) -> int:
        """The next place that the step does not hold and whose versions fit; those passed over keep their turn."""
        while True:
            for at, place in enumerate(self._left):
                if not held[place] and self._size(place) <= room:
                    return self._left.pop(at)
            if self._left and (len(held) >= usable or len(self._left) >= len(self.tasks)):
                break
            self._left.extend(self._next_pass(held))
        return self._left.pop(min(range(len(self._left)), key=lambda at: held[self._left[at]]))

    def _next_pass(self, held: Counter[int]) -> array[int]:
        """Every place once, in an order of its own; those that the step holds come last."""
        order = array("L", range(len(self.tasks)))
        random.Random(f"{self.seed}/{self._passes}").shuffle(order)
        self._passes += 1
        last = sorted(filter(held.__contains__, order), key=held.__getitem__)
        return array("L", (place for place in order if place not in held)) + array("L", last)

    def _size(self, place: int) -> int:
        """How many versions of a sample a step holds."""
        return 2 if self.mode == "add" and place in self._examples else 1

    def _versions(self, place: int) -> list[Task]:
        raw = self.tasks[place]
        if self.mode in ("all", "mix"):
            rng = random.Random(f"{self.seed}/mix/{self._passes}/{raw.id}")
            drawn = self.index.draw(raw, self._passes) if self.mode == "all" or rng.random() < self.mix_share else ()
            return [self.index.guide(raw, drawn) if drawn else raw]
        status = chr(self._status[place])
        if self.mode == "drop":
            return [] if self._drops and status in "gh" else [raw]
        if place not in self._examples:
            return [raw]
        version = self.index.guide(raw, self._examples[place])
        return [version] if self.mode == "replace" else [raw, version]

    def observe(self, trees: Sequence[Tree]) -> None:
        """A hard sample whose raw version was solved is solved: its few-shot version is not used again."""
        for tree in trees:
            place = self._drawn.get(tree.task.id)
            if place is None or is_guided(tree.task) or chr(self._status[place]) not in "gh":
                continue
            if any(leaf.success for leaf in tree.leaves):
                self._status[place] = ord("s")
                self._examples.pop(place, None)
                if self.ledger is not None:
                    entry = self._entry(place, {}) | {"solved_by": "training"}
                    self.ledger.add(self._step, self.round, [entry])
        self._drawn.clear()

    def difficulty_of(self, task: Task) -> str:
        """The status of a task of the running step, and "_few_shot" behind it where it is shown with examples."""
        place = self._drawn.get(task.id)
        if place is None:
            return ""
        return f"{self.status_of(place)}_few_shot" if is_guided(task) else self.status_of(place)

    def status_of(self, place: int) -> str:
        """The status of the task at a place, one of the values of `STATUSES`."""
        return STATUSES[chr(self._status[place])]

    def examples_of(self, place: int) -> tuple[int, ...]:
        """The places of the examples that the task at a place is shown with; none where it stays raw."""
        return self._examples.get(place, ())

    def state_dict(self) -> dict[str, Any]:
        return {
            "tasks": self.index.digest, "round": self.round, "step": self._step, "passes": self._passes,
            "status": self._status.decode(),
            "left": list(self._left), "probe_tokens": self._probe_tokens, "drawn": dict(self._drawn),
            "examples": {str(place): list(chosen) for place, chosen in self._examples.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["status"]) != len(self.tasks):
            raise TaskError(
                f"hard_sampling: the checkpoint is of {len(state['status'])} tasks and there are {len(self.tasks)}; "
                "resume with the same environment settings"
            )
        if state.get("tasks", self.index.digest) != self.index.digest:
            raise TaskError(
                "hard_sampling: the checkpoint is of other tasks (ids or their order differ); resume with the same "
                "environment settings and data"
            )
        self.round, self._step, self._passes = int(state["round"]), int(state["step"]), int(state["passes"])
        self._status = bytearray(state["status"].encode())
        self._left, self._drawn = array("L", state["left"]), dict(state["drawn"])
        self._probe_tokens = int(state["probe_tokens"])
        self._examples = {int(place): tuple(chosen) for place, chosen in state["examples"].items()}


def ledger_table(entries: Sequence[dict[str, Any]]) -> dict[int, dict[str, int]]:
    """How many samples had which status after each round, from the entries of a ledger."""
    last: dict[int, dict[str, str]] = {}
    for entry in entries:
        last.setdefault(entry["round"], {})[entry["id"]] = entry["status"]
    return {number: dict(Counter(statuses.values())) for number, statuses in sorted(last.items())}


def check_options(**options: Any) -> None:
    """Raises `ConfigError` with the first option that has no sense."""

    def between(value: Any, low: float, high: float) -> bool:
        return type(value) in (int, float) and low <= value <= high

    for name, value in options.items():
        if name == "mode":
            wanted, fits = f"one of {', '.join(MODES)}", value in MODES
        elif name == "bold":
            wanted, fits = "true or false", type(value) is bool
        elif name == "mix_share":
            wanted, fits = "a share from 0 to 1", between(value, 0, 1)
        elif name == "lr_decay":
            wanted, fits = "above 0 and at most 1", between(value, 1e-9, 1)
        elif name == "temperature":
            wanted, fits = "none, or from 0 to 100", value is None or between(value, 0, 100)
        else:
            wanted, fits = "a whole number from 1 on", type(value) is int and value >= 1
        if not fits:
            raise ConfigError(f"hard_sampling: {name} must be {wanted}; got {value!r}")
