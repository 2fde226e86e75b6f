"""Several runs of a recipe at the same time, each in a process of its own.

A run is the same as one after the other, to the bits: nothing is shared but the disk.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from firesteel.errors import FiresteelError
from firesteel.tools.worker import die_with

if TYPE_CHECKING:
    from firesteel.config import Config
    from firesteel.train import Listener


def train_apart(
    configs: Sequence[Config], jobs: int, *, resume: bool, listen: Listener
) -> Iterator[dict[str, Any] | FiresteelError]:
    """Trains some configurations, at most `jobs` at a time, and yields their summaries in the order of `configs`.

    A run that fails yields its error. When whoever asks has enough, those under way are finished and no other is
    started.

    Raises:
        FiresteelError: a process was killed; the others are ended, too, and can go on.
    """
    # Not forks: those of a process that has used an accelerator could not use it.
    with ProcessPoolExecutor(min(jobs, len(configs)), get_context("spawn"), die_with, (os.getpid(),)) as pool:
        futures = [pool.submit(_train, config, resume) for config in configs]
        # The pool begins to watch a process with the submission after the one that started it.
        pool.submit(int)
        for config, future in zip(configs, futures, strict=True):
            future.add_done_callback(partial(_tell, listen, config.name))
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise FiresteelError(
                "the process of a run was killed, perhaps for want of memory; go on with --continue, with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _train(config: Config, resume: bool) -> dict[str, Any] | FiresteelError:
    """In the other process: one run, or why it failed. Only what it notes is told, with its name."""
    from firesteel.recipes import RecipeSession

    def listen(event: str, facts: dict[str, Any]) -> None:
        if event == "note":
            print(f"[{config.name}] {facts['text']}", file=sys.stderr, flush=True)

    try:
        return RecipeSession(resume, listen).train(config)
    except FiresteelError as error:
        return error


def _tell(listen: Listener, name: str, future: Future[dict[str, Any] | FiresteelError]) -> None:
    """Says that a run has come to its end, and what it came to."""
    if future.cancelled() or future.exception() is not None:
        return
    outcome = future.result()
    if isinstance(outcome, FiresteelError):
        return
    after = outcome.get("after") or {}
    success = "" if after.get("success") is None else f", success {after['success']:.1%} on {after['split']}"
    listen("note", {"text": f"[{name}] done{success}"})
