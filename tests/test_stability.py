"""When a training counts as collapsed and what is said about it, by hand."""

from __future__ import annotations

import json

import pytest
from tool_trees import sample, tool_tree

from firesteel.config import Config
from firesteel.errors import ConfigError
from firesteel.stability import Collapse, CollapseDetector, reasons, reward_by_label


def verdicts(marks: list[float | None], **settings: float) -> list[int]:
    """At which evaluations a collapse is told."""
    detector = CollapseDetector(**{"below": 0.5, "patience": 3} | settings)
    return [number for number, mark in enumerate(marks) if detector.observe(number, mark) is not None]


def test_a_fall_from_the_start_is_compared_with_the_start():
    detector = CollapseDetector(0.5, 1)
    assert detector.observe(0, 0.4) is None
    detector.note({"losses/entropy": 0.3, "losses/kl": 18.0})  # the trees are the start's, the KL is of the update
    for _ in range(3):
        detector.note({"losses/entropy": 1.5, "losses/kl": 20.0})
    found = detector.observe(4, 0.0)
    assert found is not None
    assert found.reasons == ("entropy: 0.3 to 1.2", "KL to the start: 0 to 20")


def test_a_collapse_is_three_evaluations_below_half_of_the_best() -> None:
    assert verdicts([0.2, 0.6, 0.29, 0.29, 0.29]) == [4]
    assert verdicts([0.2, 0.6, 0.3, 0.3, 0.3, 0.3]) == []  # half itself is not below half
    assert verdicts([0.6, 0.1, 0.1, 0.5, 0.1, 0.1]) == []  # not in a row
    assert verdicts([0.6, 0.1, 0.1], patience=2) == [2]
    assert verdicts([0.6, 0.5, 0.5, 0.5], below=0.9) == [3]


def test_a_policy_that_never_succeeded_cannot_collapse() -> None:
    assert verdicts([0.0] * 9) == []


def test_a_collapse_is_told_once_and_again_after_a_recovery() -> None:
    assert verdicts([0.6, 0.1, 0.1, 0.1, 0.1, 0.1]) == [3]
    assert verdicts([0.6, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1]) == [3, 7]


def test_an_evaluation_without_a_result_does_not_count() -> None:
    assert verdicts([0.6, 0.1, None, 0.1, None, 0.1]) == [5]


def test_the_verdict_names_the_fall_and_what_moved_since_the_best() -> None:
    detector = CollapseDetector(0.5, 2)
    detector.note({"rollout/dead_groups": 0.1, "losses/entropy": 1.0})
    detector.note({"rollout/dead_groups": 0.3, "losses/entropy": 1.4, "losses/policy": 7.0})
    assert detector.observe(2, 0.8) is None
    for step in (4, 6):
        detector.note({"rollout/dead_groups": 0.9, "losses/entropy": 0.1})
        found = detector.observe(step, 0.1)
    assert found == Collapse(6, 0.1, 0.8, 2, ("groups without a gradient: 20% to 90%", "entropy: 1.2 to 0.1"))
    assert str(found) == (
        "collapsed: success on validation fell from 80.0% (step 2) to 10.0% (step 6); "
        "groups without a gradient: 20% to 90%; entropy: 1.2 to 0.1"
    )
    assert json.loads(json.dumps(found.to_dict()))["reasons"][1] == "entropy: 1.2 to 0.1"


def test_a_best_before_the_first_step_is_compared_with_the_first_steps() -> None:
    detector = CollapseDetector(0.5, 2)
    detector.observe(0, 0.8)
    for step, entropy in ((1, 2.0), (2, 0.2)):
        detector.note({"losses/entropy": entropy})
        found = detector.observe(step, 0.1)
    assert found is not None and found.reasons == ("entropy: 2 to 0.2",)


def test_what_counts_as_moved() -> None:
    still = {"rollout/dead_groups": 0.5, "learner/grad_norm": 1.0, "rollout/response_tokens": 40.0}
    assert reasons(still, {"rollout/dead_groups": 0.7, "learner/grad_norm": 5.0, "rollout/response_tokens": 20.0}) == (
        "no indicator moved far",
    )
    assert reasons(still, {"learner/grad_norm": 5.1, "rollout/response_tokens": 81.0}) == (
        "gradient norm: 1 to 5.1", "tokens a response: 40 to 81",
    )  # fmt: skip
    assert reasons({"losses/kl": 0.001}, {"losses/kl": 0.09}) == ("no indicator moved far",)
    assert reasons({"losses/kl": 0.001}, {"losses/kl": 0.2}) == ("KL to the start: 0.001 to 0.2",)
    skipped = {"learner/skipped_steps": 0.0}
    assert reasons(skipped, {"learner/skipped_steps": 0.5}) == ("optimiser steps without a finite gradient: 0% to 50%",)


def test_a_restored_detector_goes_on() -> None:
    marks = [0.6, 0.1, 0.1, 0.1]
    for cut in range(4):
        detector = CollapseDetector(0.5, 3)
        told = []
        for step, mark in enumerate(marks):
            detector.note({"losses/entropy": 3.0 - step, "learner/grad_norm": float("nan")})
            if step == cut:
                state = json.loads(json.dumps(detector.state_dict()))
                detector = CollapseDetector(0.5, 3)
                detector.load_state_dict(state)
            told.append(detector.observe(step, mark))
        assert told[:3] == [None] * 3
        assert told[3] == Collapse(3, 0.1, 0.6, 0, ("entropy: 3 to 0",))


def test_rewards_by_label() -> None:
    outcomes = {"a": (True, False), "b": (True,), "c": (False,)}
    trees = [tool_tree(sample(name, "f"), *won) for name, won in outcomes.items()]
    labels = {"a": "raw", "b": "raw", "c": "hard"}
    metrics = reward_by_label(trees, lambda task: labels[task.id])
    assert metrics == {"rollout/reward/hard": 0.0, "rollout/reward/raw": pytest.approx(2 / 3)}
    assert reward_by_label(trees, lambda task: "one") == {}
    assert reward_by_label([tool_tree(sample(f"{n}", "f"), True) for n in range(13)], lambda task: task.id) == {}


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="on_collapse 'stop' needs evaluation.every or every_tokens above 0"):
        Config.build({"stability": {"on_collapse": "stop"}})
