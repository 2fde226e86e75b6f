"""Progress bars for long work; on a pipe, one plain line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINE_EVERY_S = 20.0
TABLE_WIDTH = 200
ROLLOUT_NOTES = ("rollout/success", "rollout/leaves", "explore/ratio")
OFFLINE_NOTES = ("losses/sft", "losses/token_accuracy", "losses/policy", "losses/kl", "critic/explained_variance")


class Progress:
    """A listener of `train`: a bar for the steps, one for what is being played, and a line for each evaluation."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Bars(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.tasks: dict[str, Any] = {}
        self.last_line = 0.0

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def print(self, what: Any) -> None:
        """Prints above the bars; a table on a pipe is as wide as it needs to be."""
        is_text = isinstance(what, str)
        console = self.bars.console
        if not is_text and not console.is_terminal:
            console = Console(file=console.file, width=TABLE_WIDTH)
        console.print(what, highlight=False, soft_wrap=is_text, markup=False)

    def __call__(self, event: str, facts: dict[str, Any]) -> None:
        """Takes one event of `train`, `evaluate` or a recipe."""
        if event == "step":
            self._step(facts)
        elif event == "playing":
            self.playing(facts["split"], facts["done"], facts["of"])
        elif event == "rollout":
            done, active = facts["finished"], facts["active"]
            self._bar("rollout", "growing trees", done, done + active)
        elif event in ("before", "evaluation"):
            when = "before training" if event == "before" else f"step {facts['step']}"
            result = "every episode failed"
            if facts["success"] is not None:
                success = f"success {facts['success']:.1%} ({facts['low']:.1%} - {facts['high']:.1%})"
                result = f"{success}, score {facts['score']:.2f}, n = {facts['n']}"
            self.print(f"{when}, {facts['split']}: {result}")
        elif event == "note":
            self.print(facts["text"])

    def playing(self, split: str, done: int, total: int) -> None:
        """Moves the bar of an evaluation."""
        self._bar("playing", f"playing {split}", done, total)

    def _step(self, facts: dict[str, Any]) -> None:
        metrics = facts["metrics"]
        names: tuple[str, ...] = ROLLOUT_NOTES
        if "losses/sft" in metrics or "losses/squared_kl" in metrics:  # learns from stored episodes: nothing is played
            names = OFFLINE_NOTES
        note = "  ".join(f"{name.split('/')[1]} {metrics[name]:.3g}" for name in names if metrics.get(name) is not None)
        self._bar("steps", "training", facts["step"], facts["steps"], note)
        late = time.monotonic() - self.last_line > LINE_EVERY_S
        if not self.console.is_terminal and (late or facts["step"] == facts["steps"]):
            self.last_line = time.monotonic()
            self.print(f"step {facts['step']}/{facts['steps']}  {note}")

    def _bar(self, key: str, description: str, done: int, total: int, note: str = "") -> None:
        if key not in self.tasks:
            self.tasks[key] = self.bars.add_task(description, total=total, note=note)
        self.bars.update(self.tasks[key], description=description, completed=done, total=total, note=note)
