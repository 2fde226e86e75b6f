"""The boundary around environment code."""

from __future__ import annotations

import signal
import sys
import threading
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
from firesteel.guard import SETUP_MISTAKES, checked, guarded


def test_what_goes_well_goes_through() -> None:
    with guarded("step", 5.0):
        value = 3
    assert value == 3


@pytest.mark.parametrize("error", [ValueError("no lever"), KeyError("lever"), RecursionError(), MemoryError("full")])
def test_any_exception_becomes_an_environment_failure_with_its_cause(error: Exception) -> None:
    with pytest.raises(EnvironmentFailed) as caught, guarded("step 'pull' of task 't'", 5.0):
        raise error
    assert str(caught.value) == f"step 'pull' of task 't': {type(error).__name__}: {error}"
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


def test_a_result_of_another_kind_is_an_error() -> None:
    assert checked(int, 3, "step") == 3
    with pytest.raises(TypeError, match="step returned 'three', wanted int"):
        checked(int, "three", "step")


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
