"""Tasks on disk: a sequence that holds offsets in memory and reads a task when it is asked for."""

from __future__ import annotations

import json
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, overload

from firesteel.annotate import Rejection
from firesteel.environments.tool_calls.formats import CallFormat, format_flaws
from firesteel.environments.tool_calls.schema import task_flaws
from firesteel.environments.tool_calls.tasks import ToolTask, joined
from firesteel.types import Task

MOST_KEPT = 1000


class TaskFile(Sequence[Task]):
    """The good tasks of a stream, in an unnamed file that goes away with this object; eight bytes each in memory.

    `rejected` holds the first `MOST_KEPT` records that were left out, with their ids; `num_rejected` counts all.
    `strict` leaves out tasks with flaws (`task_flaws`), a `form` those whose answer it cannot hold (`format_flaws`).
    """

    def __init__(
        self, outcomes: Iterable[ToolTask | Rejection], *, count: int | None = None, strict: bool = True,
        form: CallFormat | None = None,
    ) -> None:  # fmt: skip
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as this object)
        self._finalizer = weakref.finalize(self, self._file.close)
        self._offsets = array("Q")
        self.rejected: list[Rejection] = []
        self.num_rejected = 0
        seen: set[int] = set()
        for outcome in outcomes:
            if count is not None and len(self) >= count:
                break
            self._take(outcome, seen, strict, form)
        self._file.flush()

    def _take(self, outcome: ToolTask | Rejection, seen: set[int], strict: bool, form: CallFormat | None) -> None:
        if isinstance(outcome, ToolTask):
            flaws = task_flaws(outcome) if strict else []
            if form is not None and not flaws:
                flaws = format_flaws(form, outcome)
            if hash(outcome.id) in seen:
                flaws = [*flaws, "its id was there before"]
            if not flaws:
                seen.add(hash(outcome.id))
                self._write(outcome.to_task())
                return
            outcome = Rejection(outcome.id, joined(flaws))
        self.num_rejected += 1
        if len(self.rejected) < MOST_KEPT:
            self.rejected.append(outcome)

    def _write(self, task: Task) -> None:
        self._offsets.append(self._file.tell())
        record = {"id": task.id, "kind": task.kind, "split": task.split, "data": task.data}
        self._file.write(json.dumps(record).encode() + b"\n")

    def report(self, most: int = MOST_KEPT) -> str:
        """How many were kept, and one line for each that is known not to have been, for at most the first `most`."""
        lines = [f"{len(self)} of {len(self) + self.num_rejected} tasks kept"]
        lines += [f"  {left_out.task_id}: {left_out.reason}" for left_out in self.rejected[:most]]
        untold = self.num_rejected - len(lines) + 1
        return "\n".join(lines + ([f"  and {untold} more"] if untold else []))

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        if isinstance(index, slice):
            return [self._read(offset) for offset in self._offsets[index]]
        return self._read(self._offsets[index])

    def _read(self, offset: int) -> Task:
        self._file.seek(offset)
        record: dict[str, Any] = json.loads(self._file.readline())
        return Task(record["id"], kind=record["kind"], split=record["split"], data=record["data"])

    def close(self) -> None:
        """Deletes the file; the tasks cannot be read any more."""
        self._finalizer()
