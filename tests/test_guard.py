"""The boundary around environment code."""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from firesteel.errors import (
    CannotFork,
    ConfigError,
    EnvironmentFailed,
    FiresteelError,
    ForkDiverged,
    MissingDependency,
    StepTimeout,
    TaskError,
)
from firesteel.guard import SETUP_MISTAKES, guarded, readable, shown, text_of, told


def test_what_goes_well_goes_through() -> None:
    with guarded("step", 5.0):
        value = 3
    assert value == 3


@pytest.mark.parametrize("error", [ValueError("no lever"), KeyError("lever"), RecursionError(), MemoryError("full")])
def test_any_exception_becomes_an_environment_failure_with_its_cause(error: Exception) -> None:
    with pytest.raises(EnvironmentFailed) as caught, guarded("step 'pull' of task 't'", 5.0):
        raise error
    assert str(caught.value) == f"step 'pull' of task 't': {told(error)}"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [EnvironmentFailed("died"), ForkDiverged("other room"), StepTimeout("late")])
def test_environment_failures_stay_what_they_are(error: EnvironmentFailed) -> None:
    with pytest.raises(EnvironmentFailed) as caught, guarded("step", 5.0):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("cls", SETUP_MISTAKES)
def test_mistakes_in_the_setup_pass(cls: type[FiresteelError]) -> None:
    assert set(SETUP_MISTAKES) == {CannotFork, ConfigError, TaskError, MissingDependency}
    with pytest.raises(cls), guarded("reset", 5.0):
        raise cls("a mistake")


def test_an_interrupt_passes() -> None:
    with pytest.raises(KeyboardInterrupt), guarded("step", 5.0):
        raise KeyboardInterrupt


def test_an_environment_that_calls_exit_has_failed() -> None:
    with pytest.raises(EnvironmentFailed, match="^step: SystemExit: 0$"), guarded("step", 5.0):
        sys.exit(0)


class Mute(Exception):
    """An error, and a value, that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_errors_and_values_that_cannot_be_shown_are_told() -> None:
    assert told(ValueError("no lever")) == "ValueError: no lever" and told(RecursionError()) == "RecursionError"
    assert told(Mute()) == "Mute: (its __str__ raises, so its text cannot be shown)"
    assert shown([1, 2]) == "[1, 2]" and shown(Mute()) == "(its __repr__ raises)" and shown("a" * 9, width=3) == "'aa"
    assert readable("a\ud800b\U0001f600") == "a\ufffdb\U0001f600" and text_of(OSError("\udcff")) == "\ufffd"
    with pytest.raises(EnvironmentFailed, match="^step: Mute: "), guarded("step", 5.0):
        raise Mute


def test_stop_iteration_is_a_failure_too() -> None:
    with pytest.raises(EnvironmentFailed, match="^step: StopIteration: done$"), guarded("step", 5.0):
        raise StopIteration("done")


def state() -> tuple[Any, float]:
    return signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)[0]


def test_a_busy_loop_is_interrupted_and_the_timer_is_off_afterwards() -> None:
    before = state()
    with pytest.raises(StepTimeout, match="step 'wait': no answer after 0.05 s"), guarded("step 'wait'", 0.05):
        while True:
            pass
    assert state() == before
    with guarded("step", 5.0):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert state() == before


def test_a_time_out_is_not_mistaken_for_the_environments_own_error() -> None:
    """Code that turns every error into its own still ends as a failure of the environment."""
    with pytest.raises(EnvironmentFailed, match="step: OSError: broken pipe"), guarded("step", 0.05):
        try:
            while True:
                pass
        except StepTimeout:
            raise OSError("broken pipe") from None


def test_a_time_out_that_was_caught_is_one_still() -> None:
    before = state()
    with pytest.raises(StepTimeout, match="^step: no answer after 0.05 s"), guarded("step", 0.05), suppress(Exception):
        time.sleep(5)
    with pytest.raises(StepTimeout, match="^step: no answer after 0.05 s"), guarded("step", 0.05):
        try:
            time.sleep(5)
        except StepTimeout:
            raise CannotFork("no answer") from None
    assert state() == before


def test_a_loop_that_catches_every_exception_is_ended() -> None:
    start = time.monotonic()
    with pytest.raises(StepTimeout, match="^step: no answer after 0.05 s"), guarded("step", 0.05):
        while time.monotonic() < start + 10:
            with suppress(Exception):
                time.sleep(10)
    assert time.monotonic() < start + 5


def test_other_threads_are_guarded_without_a_timer() -> None:
    failures: list[BaseException] = []

    def play() -> None:
        try:
            with guarded("step", 0.01):
                raise ValueError("no lever")
        except EnvironmentFailed as error:
            failures.append(error)

    before = state()
    thread = threading.Thread(target=play)
    thread.start()
    thread.join()
    assert [str(failure) for failure in failures] == ["step: ValueError: no lever"]
    assert state() == before
