"""All of BFCL: its ground truths as a model, mutated ones, and agreement with its own multi-turn checker."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterator

import pytest

from firesteel.annotate import Rejection
from firesteel.environments.bfcl import Bfcl
from firesteel.environments.bfcl.package import HOW_TO_INSTALL, MULTI_TURN, PYTHON_CATEGORIES, SINGLE_TURN
from firesteel.environments.bfcl.single_turn import check_calls, label_errors, single_turn_tasks
from firesteel.environments.tool_calls.formats import write_python
from firesteel.environments.tool_calls.tasks import Call

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason=HOW_TO_INSTALL),
]

LABEL_ERRORS = {
    "parallel_multiple": {"parallel_multiple_12", "parallel_multiple_26"},  # answers with unknown parameters
    "live_simple": {"live_simple_106-63-0", "live_simple_112-68-0"},  # required parameters without a value
    "live_multiple": {"live_multiple_862-181-3", "live_multiple_964-207-0"},
    # lists of Java texts: the checker keeps their quotes and compares with texts that have none
    "simple_java": {f"simple_java_{number}" for number in (35, 36, 64, 65, 78, 83, 85, 86, 89, 90, 91)},
}


@pytest.mark.parametrize("category", SINGLE_TURN)
def test_ground_truths_are_accepted_but_for_a_list(category):
    errors = label_errors(category)
    for identity, problem in errors:
        print(f"{identity}: {problem}")
    assert {identity for identity, _ in errors} == LABEL_ERRORS.get(category, set())


def mutated(calls: tuple[Call, ...], rng: random.Random) -> Iterator[tuple[str, list[Call]]]:
    """Wrong answers that no alternative of a right one can be."""
    place = rng.randrange(len(calls))
    call = calls[place]
    before, after = list(calls[:place]), list(calls[place + 1 :])
    yield "no call", []
    yield "one call less", before + after
    yield "one call more", [*calls, call]
    yield "another tool", [*before, Call(f"{call.name}_x", call.arguments), *after]
    yield "an unknown argument", [*before, Call(call.name, {**call.arguments, "zz_unknown": 1}), *after]
    if call.arguments:
        key = rng.choice(sorted(call.arguments))
        yield "another type", [*before, Call(call.name, {**call.arguments, key: {"zz": {"zz": [1]}}}), *after]


@pytest.mark.parametrize("category", PYTHON_CATEGORIES)
def test_mutated_ground_truths_are_rejected(category):
    rng = random.Random(0)
    count = 0
    for task in single_turn_tasks(category):
        assert not isinstance(task, Rejection)
        if task.id in LABEL_ERRORS.get(category, set()):
            continue
        for what, calls in mutated(task.answers[0], rng):
            assert not check_calls(calls, task).correct, (task.id, what)
            count += 1
    assert count > 60


@pytest.mark.parametrize("category", MULTI_TURN)
def test_every_multi_turn_ground_truth_succeeds(category):
    environment = Bfcl(format="python")
    tasks = Bfcl.tasks(category)
    assert len(tasks) == 200
    for task in tasks:
        environment.reset(task, seed=0)
        while (step := environment.expert()) is not None:
            result = environment.step(step.action)
        assert result.info["success"], (task.id, result.info["problem"])


@pytest.mark.parametrize("category", MULTI_TURN)
def test_verdicts_on_mutated_conversations_are_those_of_the_benchmark(category):
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker

    verdicts = []
    for number, task in enumerate(Bfcl.tasks(category, count=60)):
        rng = random.Random(number)
        environment = Bfcl(format="python", end_on_failure=False)
        environment.reset(task, seed=0)
        played: list[list[list[str]]] = []
        for calls in [list(turn) for turn in environment._truth_calls]:
            kept = [call for call in calls if rng.random() > 0.1]
            if rng.random() < 0.1:
                rng.shuffle(kept)
            played.append([])
            if kept:
                environment.step(write_python(kept))
                played[-1].append([write_python([call])[1:-1] for call in kept])
            result = environment.step("Done.")
        entry = {**task.data["entry"], "id": task.id}
        theirs = multi_turn_checker(
            played, entry["ground_truth"], entry, category, f"mutant_{category}_{number}"
        )["valid"]  # fmt: skip
        assert theirs == result.info["success"], (task.id, result.info["problem"])
        verdicts.append(theirs)
    assert 5 < sum(verdicts) < 55
