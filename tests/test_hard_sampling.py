"""Hard sampling: which examples are drawn, what a round finds, and what is trained on, by hand."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tool_trees import Table, sample, tool_tree

from firesteel.environments.tool_calls.tasks import Call, demonstrations_of, tool_task
from firesteel.errors import ConfigError, TaskError
from firesteel.fewshot import ExampleIndex, guided, is_guided
from firesteel.hard_sampling import HardSampling, Ledger, ledger_table
from firesteel.types import Task

# Few-shot examples


def users(index: ExampleIndex, task: Task, tasks: list[Task], attempt: int = 0) -> set[str]:
    return {tasks[place].id for place in index.draw(task, attempt)}


def test_examples_come_from_other_samples_with_the_same_tools():
    tasks = [sample("a", "f", value=1), sample("b", "f", value=2), sample("c", "g", value=3),
             sample("d", "f", "g", value=4), sample("e", "h", value=5)]  # fmt: skip
    index = ExampleIndex(tasks, seed=0, per_tool=5, max_examples=9)
    assert users(index, tasks[0], tasks) == {"b", "d"}
    assert users(index, tasks[3], tasks) == {"a", "b", "c"}
    assert users(index, tasks[4], tasks) == set()  # no other sample uses h


def test_a_sample_with_the_same_answer_or_query_is_never_shown():
    own = sample("a", "f", value=1)
    same_answer = sample("b", "f", value=1)
    same_query = Task("c", data={**sample("c", "f", value=2).data, "messages": own.data["messages"]})
    holds_it = sample("d", "f", "g", value=1)
    good = sample("e", "f", value=3)
    tasks = [own, same_answer, same_query, holds_it, good]
    index = ExampleIndex(tasks, seed=0, per_tool=9, max_examples=9)
    for attempt in range(20):
        assert users(index, own, tasks, attempt) == {"e"}


def test_draws_are_limited_seeded_and_differ_by_attempt():
    tasks = [sample(f"t{number}", "f", value=number) for number in range(30)]
    index = ExampleIndex(tasks, seed=1, per_tool=2)
    draws = [index.draw(tasks[0], attempt) for attempt in range(10)]
    assert {len(draw) for draw in draws} == {2}
    assert len(set(draws)) > 5
    assert draws == [ExampleIndex(tasks, seed=1, per_tool=2).draw(tasks[0], attempt) for attempt in range(10)]
    both = [sample(f"u{number}", "f", "g", value=number) for number in range(30)]
    assert len(ExampleIndex(both, seed=0, per_tool=3, max_examples=4).draw(both[0], 0)) == 4


def test_listed_tools_do_not_tell_which_is_called():
    data = {**sample("a", "f", "g", value=1).data, "answers": [[Call("f", {"x": 1}).to_dict()]]}
    own = Task("a", data=data)
    tasks = [own, sample("b", "f", value=2), sample("c", "g", value=3)]
    assert users(ExampleIndex(tasks, seed=0), own, tasks) == {"b"}
    assert users(ExampleIndex(tasks, seed=0, tools_of="listed"), own, tasks) == {"b", "c"}
    with pytest.raises(ConfigError, match="tools_of must be one of"):
        ExampleIndex(tasks, seed=0, tools_of="all")


def test_a_guided_task_keeps_its_id_and_shows_its_help():
    tasks = [sample("a", "f", value=1), sample("b", "f", value=2)]
    index = ExampleIndex(tasks, seed=0)
    version = index.guide(tasks[0], (1,))
    assert (version.id, is_guided(version), is_guided(tasks[0])) == ("a", True, False)
    (shown,) = demonstrations_of(version)
    assert (shown.query, shown.calls, shown.source) == ("do b", (Call("f", {"x": 2}),), "b")
    assert tool_task(version) == tool_task(tasks[0])
    assert guided(tasks[0], "hint", hint="h").data["hint"] == "h"


# A round


EASY, HELPED, HOPELESS, LONELY = "easy", "helped", "hopeless", "lonely"


def data_set() -> list[Task]:
    return [sample(EASY, "f", value=1), sample(HELPED, "f", value=2), sample(HOPELESS, "f", value=3),
            sample(LONELY, "g", value=4)]  # fmt: skip


def policy(task: Task, rollout: int) -> bool:
    """easy: at the second rollout. helped: with examples, at the third. The others: never."""
    return (task.id == EASY and rollout == 1) or (task.id == HELPED and bool(task.demonstrations) and rollout == 2)


def statuses(curriculum: HardSampling) -> list[str]:
    return [curriculum.status_of(place) for place in range(len(curriculum.tasks))]


def prepared(**options) -> HardSampling:
    curriculum = HardSampling(data_set(), seed=0, **options)
    curriculum.prepare(0, Table(policy))
    return curriculum


def test_a_round_by_hand(tmp_path: Path):
    curriculum = HardSampling(data_set(), seed=0, steps_per_round=5, max_fewshot_attempts=2)
    curriculum.ledger = Ledger(tmp_path / "hard.jsonl")
    assert statuses(curriculum) == ["unprobed"] * 4
    table = Table(policy)
    metrics = curriculum.prepare(0, table)
    assert statuses(curriculum) == ["raw", "guided", "hard", "hard"]
    # raw: easy 2 rollouts, the others 10 each = 32. Few-shot, first draw: helped 4 (waves 1, 1, 2), hopeless 10;
    # second draw: hopeless 10. lonely has no examples. 32 + 4 + 10 + 10 = 56, of which helped's fourth was in excess.
    assert metrics == {
        "hard/unprobed": 0.0, "hard/raw": 1.0, "hard/guided": 1.0, "hard/hard": 2.0, "hard/solved": 0.0,
        "hard/no_raw": 3.0, "hard/no_random": 2.0, "hard/no_selected": 2.0,
        "hard/probe_rollouts": 56.0, "hard/probe_tokens": 560.0, "hard/probe_overhead": 560 / 550,
    }  # fmt: skip
    rows = {row["id"]: row for row in curriculum.ledger.read()}
    assert rows[HELPED]["solved_by"] == "few_shot"
    assert rows[HELPED]["attempts"] == 1
    assert set(rows[HELPED]["examples"]) <= {EASY, HOPELESS}
    assert rows[HELPED]["examples"]
    assert rows[EASY] == {"step": 0, "round": 0, "id": EASY, "status": "raw", "examples": [], "attempts": 0,
                          "solved_by": "probe"}  # fmt: skip
    assert (rows[HOPELESS]["attempts"], rows[LONELY]["attempts"], rows[LONELY]["examples"]) == (2, 0, [])


def test_rounds_probe_once_each():
    curriculum = HardSampling(data_set(), seed=0, steps_per_round=5)
    table = Table(policy)
    done = [bool(curriculum.prepare(step, table)) for step in range(11)]
    assert [step for step, probed in enumerate(done) if probed] == [0, 5, 10]


def test_the_learning_rate_decays_by_round():
    curriculum = HardSampling(data_set(), seed=0, steps_per_round=5)
    assert [curriculum.lr_factor(step) for step in (0, 4, 5, 10)] == pytest.approx([1.0, 1.0, 0.8, 0.64])


def versions(curriculum: HardSampling, count: int) -> Counter[tuple[str, bool]]:
    return Counter((task.id, is_guided(task)) for task in curriculum.sample(count))


def test_what_the_modes_train_on():
    raw = {(EASY, False): 1, (HOPELESS, False): 1, (LONELY, False): 1}
    assert versions(prepared(mode="replace"), 4) == {**raw, (HELPED, True): 1}
    assert versions(prepared(mode="add"), 5) == {**raw, (HELPED, True): 1, (HELPED, False): 1}
    assert versions(prepared(mode="drop"), 2) == {(EASY, False): 2}
    everything = versions(prepared(mode="all"), 4)
    assert everything == {(EASY, True): 1, (HELPED, True): 1, (HOPELESS, True): 1, (LONELY, False): 1}
    mixed = versions(prepared(mode="mix", mix_share=0.5), 400)
    assert 100 < sum(count for (_, is_helped), count in mixed.items() if is_helped) < 200  # of 300: half


def test_bold_shows_examples_that_did_not_help():
    assert versions(prepared(mode="replace", bold=True), 4) == {
        (EASY, False): 1, (HELPED, True): 1, (HOPELESS, True): 1, (LONELY, False): 1
    }  # fmt: skip


def test_a_solved_raw_sample_loses_its_few_shot_version():
    curriculum = prepared(mode="add")
    raw, helped = sample(HELPED, "f", value=2), None
    while helped is None:
        helped = next((task for task in curriculum.sample(5) if is_guided(task)), None)
    curriculum.observe([tool_tree(helped, True)])  # solved with help: nothing changes
    assert curriculum.status_of(1) == "guided"
    curriculum.sample(5)
    curriculum.observe([tool_tree(raw, False, False)])
    assert curriculum.status_of(1) == "guided"
    curriculum.sample(5)
    curriculum.observe([tool_tree(raw, False, True)])
    assert curriculum.status_of(1) == "solved"
    assert (HELPED, True) not in versions(curriculum, 8)


def test_a_later_probe_can_solve_a_sample_or_lose_it_again():
    curriculum = prepared(steps_per_round=1)
    curriculum.prepare(1, Table(lambda task, rollout: task.id in (HELPED, HOPELESS)))
    assert statuses(curriculum) == ["hard", "solved", "solved", "hard"]
    curriculum.prepare(2, Table(policy))
    assert statuses(curriculum) == ["solved", "guided", "hard", "hard"]


def test_a_restored_curriculum_goes_on_as_if_nothing_had_happened():
    for mode in ("replace", "add", "mix"):
        curriculum = prepared(mode=mode, steps_per_round=2)
        curriculum.sample(3)
        state = json.loads(json.dumps(curriculum.state_dict()))
        again = HardSampling(data_set(), seed=0, mode=mode, steps_per_round=2)
        again.load_state_dict(state)
        for step in range(1, 6):
            assert again.prepare(step, Table(policy)) == curriculum.prepare(step, Table(policy))
            assert again.sample(3) == curriculum.sample(3)
            assert again.state_dict() == curriculum.state_dict()
    with pytest.raises(TaskError, match="the checkpoint is of 4 tasks and there are 1"):
        HardSampling([sample("a", "f")], seed=0).load_state_dict(state)
    for others in (data_set()[::-1], [sample(f"x{number}", "f") for number in range(4)]):
        with pytest.raises(TaskError, match="the checkpoint is of other tasks"):
            HardSampling(others, seed=0).load_state_dict(state)


def test_a_ledger_forgets_what_a_resumed_run_writes_again(tmp_path: Path):
    ledger = Ledger(tmp_path / "hard.jsonl")
    assert ledger.read() == []
    for step in (0, 5):
        ledger.add(step, step // 5, [{"id": "a", "status": "hard" if step == 0 else "solved"}])
    assert ledger_table(ledger.read()) == {0: {"hard": 1}, 1: {"solved": 1}}
    ledger.truncate(5)
    assert ledger_table(ledger.read()) == {0: {"hard": 1}}


def test_misuse_is_named():
    with pytest.raises(TaskError, match="has no tasks"):
        HardSampling([], seed=0)
    with pytest.raises(ConfigError, match="mode must be one of replace, add, drop, all, mix; got 'both'"):
        HardSampling(data_set(), seed=0, mode="both")
    wrong = {
        "lr_decay": (0, -0.5, float("nan"), "0.8"),
        "mix_share": (7, "x"),
        "temperature": (-1, "x"),
        "bold": ("no",),
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ConfigError, match=f"hard_sampling: {name} must be .*got {value!r}"):
                HardSampling(data_set(), seed=0, **{name: value})


def test_where_all_are_hard_none_is_dropped():
    curriculum = HardSampling(data_set(), seed=0, mode="drop")
    curriculum.prepare(0, Table(lambda task, rollout: False))
    drawn = curriculum.sample(len(data_set()))
    assert {task.id for task in drawn} == {task.id for task in data_set()}


@pytest.mark.parametrize("mode", ["all", "mix"])
def test_what_does_not_ask_what_is_hard_does_not_probe(mode):
    curriculum = HardSampling(data_set(), seed=0, mode=mode, steps_per_round=1)
    for step in range(2):
        assert curriculum.prepare(step, Table(lambda task, rollout: pytest.fail("probed"))) == {}


def test_examples_that_nobody_looked_for_are_not_counted():
    dropping = HardSampling(data_set(), seed=0, mode="drop").prepare(0, Table(lambda task, rollout: False))
    assert "hard/no_raw" in dropping and "hard/no_random" not in dropping and "hard/no_selected" not in dropping


class Lazy:
    """A data set that makes its tasks when they are asked for."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> Task:
        if not 0 <= place < self.size:
            raise IndexError(place)
        return sample(f"t{place}", f"tool{place % 50}", value=place)


def test_tasks_stay_on_disk():
    def peak(size: int) -> int:
        gc.collect()  # what other tests left would be freed in the midst of it
        tracemalloc.start()
        curriculum = HardSampling(Lazy(size), seed=0)
        curriculum.prepare(0, lambda tasks, rollouts, name: Table(lambda task, _: True)(tasks, rollouts, name))
        curriculum.sample(10)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    small, large = peak(512), peak(1536)
    # A task's record takes more than 1,000 bytes; what is kept of it is its status, its place and its users: under 60.
    assert (large - small) / 1024 < 60


# Steps


def with_guided(num_tasks: int, places: set[int], **options) -> HardSampling:
    curriculum = HardSampling([sample(f"t{place}", "f", value=place) for place in range(num_tasks)], **options)
    for place in places:
        curriculum._status[place] = ord("g")
        curriculum._examples[place] = ((place + 1) % num_tasks,)
    return curriculum


numbers_of_tasks, counts_of_steps = st.integers(1, 9), st.lists(st.integers(0, 12), max_size=10)


@given(numbers_of_tasks, counts_of_steps, st.integers(0, 5), st.data())
def test_passes_are_even_and_steps_repeat_nothing_without_need(num_tasks, counts, seed, data):
    places = data.draw(st.sets(st.integers(0, num_tasks - 1)))
    for mode, usable in (("replace", num_tasks), ("drop", num_tasks - len(places) or num_tasks)):
        curriculum = with_guided(num_tasks, places, seed=seed, mode=mode)
        drawn: list[str] = []
        for count in counts:
            step = [task.id for task in curriculum.sample(count)]
            assert len(step) == count
            assert max(Counter(step).values(), default=0) <= -(-count // usable)
            drawn += step
        for start in range(0, len(drawn) - usable + 1, usable):
            assert len(set(drawn[start : start + usable])) == usable
        assert len(curriculum.state_dict()["left"]) < 2 * num_tasks


@given(numbers_of_tasks, counts_of_steps, st.integers(0, 5), st.data())
def test_both_versions_are_in_one_step(num_tasks, counts, seed, data):
    places = data.draw(st.sets(st.integers(0, num_tasks - 1)))
    curriculum = with_guided(num_tasks, places, seed=seed, mode="add")
    for count in counts:
        step = Counter((task.id, is_guided(task)) for task in curriculum.sample(count))
        assert step.total() == count
        if count > num_tasks:
            continue
        assert max(step.values(), default=0) <= 1
        alone = [place for place in places if step[f"t{place}", True] != step[f"t{place}", False]]
        assert all(step[f"t{place}", True] for place in alone)
        if alone:  # the last place of a step that has all others
            singles = set(range(num_tasks)) - places
            assert len(alone) == 1 and all(step[f"t{place}", False] for place in singles)
    assert len(curriculum.state_dict()["left"]) < 2 * num_tasks


def test_what_does_not_fit_comes_in_the_next_step():
    curriculum = with_guided(6, {0, 1}, seed=0, mode="add")
    steps = [Counter(int(task.id[1:]) for task in curriculum.sample(4)) for _ in range(60)]
    assert all(step[place] in (0, 2) for step in steps for place in (0, 1))  # never a half
    counts = Counter(place for step in steps for place in step)
    assert max(counts.values()) - min(counts.values()) <= 1
