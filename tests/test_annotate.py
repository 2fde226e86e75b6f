"""Cold-start episodes: played by real experts, tagged by rules or by a teacher behind a real HTTP server."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from chat_server import ChatServer, Handler, answer, completion, running_server, status

from firesteel.annotate import (
    ANNOTATORS,
    EpisodeSet,
    EpisodeStep,
    ExpertEpisode,
    Rejection,
    annotate_by_rules,
    annotate_by_teacher,
    check_tags,
    collect_expert_episodes,
    load_episodes,
    read_tagged_reason,
    save_episodes,
    tag_report,
)
from firesteel.environments import environment_class
from firesteel.environments.base import Environment
from firesteel.environments.household import Household
from firesteel.errors import ConfigError, EnvironmentFailed, ServerFailed, StoreError
from firesteel.openai_client import ChatClient
from firesteel.prompts import format_response
from firesteel.random_play import action_sampler, collect_random_episodes
from firesteel.types import ExpertStep, Observation, StepResult, Task


class Corridor(Environment):
    """Doors in a row, one of them holds the prize. The expert looks behind each; it knows the last by elimination."""

    made: ClassVar[int] = 0
    closed: ClassVar[int] = 0

    def __init__(self, *, listed: bool = True) -> None:
        self.listed = listed
        type(self).made += 1

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        return [Task(f"{split}-{prize}", kind="doors", split=split, seed=prize) for prize in range(count or 4)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        if task.split == "broken":
            raise EnvironmentFailed("the corridor caved in")
        self.prize, self.opened, self.goal = seed, [], "find the prize"
        return self.see("a corridor with doors 0, 1, 2 and 3")

    def see(self, text: str) -> Observation:
        return Observation(text, tuple(f"open {door}" for door in range(4)) if self.listed else None)

    def step(self, action: str) -> StepResult:
        door = int(action.split()[1]) if action.startswith("open ") and action[5:].isdigit() else None
        self.opened.append(door)
        found = door == self.prize
        text = "the prize" if found else "nothing"
        return StepResult(self.see(f"you see {text}"), float(found), found, info={"success": found})

    def expert(self) -> ExpertStep | None:
        door = len(self.opened)
        if door > 3:
            return None
        return ExpertStep(f"open {door}", door < 3, "unknown" if door < 3 else "only door left")

    def close(self) -> None:
        type(self).closed += 1


def test_the_expert_plays_and_only_solved_episodes_are_kept() -> None:
    episodes = collect_expert_episodes(Corridor, Corridor.tasks("train"), {"listed": True}, max_steps=3)
    # Prizes behind doors 0, 1, 2 are found in 1, 2, 3 steps; the one behind door 3 would take 4.
    assert [(episode.task_id, len(episode.steps)) for episode in episodes] == [
        ("train-0", 1),
        ("train-1", 2),
        ("train-2", 3),
    ]
    assert episodes.rejected == (Rejection("train-3", "not solved by the expert in 3 steps (max_steps is 3)"),)
    second = episodes[1]
    assert (second.goal, second.kind, second.split, second.seed) == ("find the prize", "doors", "train", 1)
    assert second.steps[1] == EpisodeStep(
        "you see nothing", "open 1", True, "unknown", ("open 0", "open 1", "open 2", "open 3")
    )
    assert second.final_observation == "you see the prize"
    assert second.success
    assert episodes.report().splitlines() == [
        "3 of 4 episodes kept",
        "  train-3: not solved by the expert in 3 steps (max_steps is 3)",
    ]


def test_a_failed_environment_is_recorded_and_replaced() -> None:
    Corridor.made = Corridor.closed = 0
    tasks = [*Corridor.tasks("broken", count=1), *Corridor.tasks("train", count=2)]
    episodes = collect_expert_episodes(Corridor, tasks)
    assert len(episodes) == 2
    assert episodes.rejected[0].reason == "the environment failed: the corridor caved in"
    assert (Corridor.made, Corridor.closed) == (2, 2)


def test_random_episodes_depend_on_seed_and_task_alone() -> None:
    tasks = Corridor.tasks("train")
    episodes = collect_random_episodes(Corridor, tasks, steps=6, seed=1)
    assert collect_random_episodes(Corridor, tasks[::-1], steps=6, seed=1).accepted == episodes.accepted[::-1]
    assert collect_random_episodes(Corridor, tasks, steps=6, seed=2).accepted != episodes.accepted
    assert len(episodes) == 4
    assert len({episode.steps[0].action for episode in episodes}) > 1  # each task has draws of its own
    assert all(len(episode.steps) <= 6 for episode in episodes)
    assert {step.action for episode in episodes for step in episode.steps} <= {f"open {door}" for door in range(4)}
    assert all(step.explore is None for episode in episodes for step in episode.steps)
    with pytest.raises(ConfigError, match="has no reasoning tag"):
        _ = episodes[0].explore_flags


def test_random_episodes_without_admissible_actions_need_a_source() -> None:
    tasks = Corridor.tasks("train")
    with pytest.raises(
        ConfigError, match="Corridor lists no admissible actions for task 'train-0'; pass random_action"
    ):
        collect_random_episodes(Corridor, tasks, {"listed": False}, steps=3, seed=0)
    draw = action_sampler(collect_expert_episodes(Corridor, tasks), ["paint door {door}"], {"door": ["red", "blue"]})
    episodes = collect_random_episodes(Corridor, tasks, {"listed": False}, steps=40, seed=0, random_action=draw)
    assert {step.action for episode in episodes for step in episode.steps} == {
        "open 0", "open 1", "open 2", "open 3", "paint door red", "paint door blue",
    }  # fmt: skip


def test_action_sampler_share_and_refusals() -> None:
    episodes = collect_expert_episodes(Corridor, Corridor.tasks("train"))
    environment, rng = Corridor(), random.Random(0)
    only_seen = action_sampler(episodes, ["jump"], template_share=0.0)
    only_templates = action_sampler(episodes, ["jump"], template_share=1.0)
    assert {only_seen(environment, rng) for _ in range(50)} == {"open 0", "open 1", "open 2", "open 3"}
    assert {only_templates(environment, rng) for _ in range(50)} == {"jump"}
    with pytest.raises(ConfigError, match="no filler for the slot 'door'"):
        action_sampler(episodes, ["open {door}"])
    with pytest.raises(ConfigError, match="give at least one"):
        action_sampler([])


def test_random_play_shows_failing_actions_on_request() -> None:
    def failures(stale_share: float) -> int:
        tasks = Household.tasks("train", count=20, seed=3, size="small")
        played = collect_random_episodes(
            Household, tasks, {"size": "small"}, steps=12, seed=0, stale_share=stale_share
        )  # fmt: skip
        return sum(step.observation == "Nothing happens." for episode in played for step in episode.steps)

    assert failures(0.0) == 0
    assert failures(0.5) > 5


def tagged(flags: Sequence[bool | None], name: str = "t") -> ExpertEpisode:
    """An episode with these tags."""
    steps = tuple(EpisodeStep(f"room {i}", f"go {i}", flag, "looking") for i, flag in enumerate(flags))
    return ExpertEpisode(name, "walk", "train", 0, "walk on", steps, "the end", True)


def test_rules_keep_the_experts_tags_and_refuse_steps_without() -> None:
    played = collect_expert_episodes(Corridor, Corridor.tasks("train"))
    assert ANNOTATORS["rules"](played).accepted == played.accepted
    assert played[3].explore_flags == (True, True, True, False)
    good = tagged([True, False])
    untagged = tagged([True, None], "untagged")
    empty = replace(good, task_id="empty", steps=(replace(good.steps[0], reason=" "),))
    twice = replace(good, task_id="twice", steps=(replace(good.steps[0], reason="what? </think> so"),))
    sorted_out = annotate_by_rules([untagged, good, empty, twice])
    assert sorted_out.accepted == (replace(good, annotator="rules"),)
    assert [rejection.reason for rejection in sorted_out.rejected] == [
        "step 2, 'go 1': it has no reasoning tag",
        "step 1, 'go 0': its reason is empty",
        "step 1, 'go 0': its reason holds a second tag, </think>",
    ]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_server() as chat:
        yield chat


@pytest.fixture
def client(server: ChatServer) -> Iterator[ChatClient]:
    with ChatClient(server.url, "teacher-1", backoff_s=0.001, max_attempts=2) as chat_client:
        yield chat_client


def teach(handler: Handler, **changes: Any) -> None:
    """A teacher that reads the episode out of its prompt: the first step explores, the others think."""
    shown = handler.body["messages"][1]["content"].splitlines()
    actions = [line.removeprefix("Action: ") for line in shown if line.startswith("Action: ")]
    steps = [{"reason": "<think> clear\n now </think>", "action": action} for action in actions]
    steps[0]["reason"] = "<explore>nothing is known yet</explore>"
    steps[-1] |= changes
    handler.reply(200, completion(json.dumps({"steps": steps})))


def test_the_teacher_tags_every_step(server: ChatServer, client: ChatClient) -> None:
    server.script = [teach]
    episodes = [tagged([None] * 3, f"t{i}") for i in range(5)]
    taught = ANNOTATORS["teacher"](episodes, client=client, num_threads=3)
    assert [episode.task_id for episode in taught] == ["t0", "t1", "t2", "t3", "t4"]
    assert taught[0].annotator == "teacher"
    assert taught[0].explore_flags == (True, False, False)
    assert [step.reason for step in taught[0].steps] == ["nothing is known yet", "clear now", "clear now"]
    assert format_response(taught[0].steps[1].expert_step) == "<think>clear now</think><action>go 1</action>"
    # Nothing else of the episode changes.
    untagged = [replace(step, explore=None, reason="looking") for step in taught[0].steps]
    assert replace(taught[0], steps=tuple(untagged), annotator="") == episodes[0]
    request = server.requests[0]
    assert (len(server.requests), request["temperature"]) == (5, 0.0)
    assert "Seen: room 2\nAction: go 2" in request["messages"][1]["content"]
    assert "looking" not in str(request)  # the expert's own reasons are not shown


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({"action": "go 7"}, "step 3: wanted the action 'go 2', got 'go 7'"),
        ({"reason": "no tag at all"}, "step 3: wanted one sentence in exactly one of the tags explore or think"),
        ({"reason": "<think>a</think><explore>b</explore>"}, "step 3: wanted one sentence in exactly one"),
        ({"reason": "<think> </think>"}, "step 3: wanted one sentence"),
        ({"reason": 3}, "step 3: wanted an object with the texts 'reason' and 'action'"),
    ],
)
def test_a_wrong_answer_is_asked_for_again_with_the_reason(
    server: ChatServer, client: ChatClient, changes: dict[str, Any], flaw: str
) -> None:
    server.script = [lambda handler: teach(handler, **changes)] * 2 + [teach]
    taught = annotate_by_teacher([tagged([None] * 3)], client=client)
    assert taught[0].explore_flags == (True, False, False)
    assert taught.rejected == ()
    assert len(server.requests) == 3
    for request in server.requests[1:]:  # each shows the episode, the last answer and its flaw, and nothing older
        assert [message["role"] for message in request["messages"]] == ["system", "user", "assistant", "user"]
        assert flaw in request["messages"][3]["content"]


def test_an_episode_that_the_teacher_never_gets_right_is_listed(server: ChatServer, client: ChatClient) -> None:
    server.script = [answer('{"steps": []}'), answer('{"steps": 3}'), answer("I cannot"), answer("I cannot"), teach]
    episodes = [tagged([None] * 3, name) for name in ("short", "prose", "good")]
    taught = annotate_by_teacher(episodes, client=client, attempts=2, num_threads=1)
    assert [episode.task_id for episode in taught] == ["good"]
    short, prose = taught.rejected
    assert (short.task_id, prose.task_id) == ("short", "prose")
    assert short.reason == (
        "the teacher's answer did not fit after 2 attempts; last: wanted 'steps' with 3 entries, got no list"
    )
    assert prose.reason.startswith("the teacher gave no JSON: http://127.0.0.1:")
    assert "got 0 entries" in server.requests[1]["messages"][3]["content"]


def test_a_server_that_is_down_is_no_rejection(server: ChatServer, client: ChatClient) -> None:
    server.script = [status(401)]
    with pytest.raises(ServerFailed, match="status 401"):
        annotate_by_teacher([tagged([None])] * 300, client=client, num_threads=1)
    assert len(server.requests) < 300  # the episodes that wait are not tried
    with pytest.raises(ConfigError, match="needs a client"):
        annotate_by_teacher([tagged([None])])


def test_read_tagged_reason() -> None:
    assert read_tagged_reason(" <explore>where is it?</explore>\n") == (True, "where is it?")
    assert read_tagged_reason("<think>a < b > c</think>") == (False, "a < b > c")
    for text in ("<think>open", "x <think>a</think>", "<think>a</explore>", "<think>go</think><think>on</think>", ""):
        with pytest.raises(ValueError, match="exactly one of the tags"):
            read_tagged_reason(text)


def test_check_tags_refuses_tags_without_information() -> None:
    with pytest.raises(ConfigError, match="on every step of 2 episodes"):
        check_tags([tagged([True, True]), tagged([True])])
    with pytest.raises(ConfigError, match="on no step of 1 episodes"):
        check_tags([tagged([False])])
    with pytest.raises(ConfigError, match="on no step of 0 episodes"):
        check_tags([])
    with pytest.raises(ConfigError, match="has no reasoning tag"):
        check_tags([tagged([True, None])])


def test_check_tags_refuses_a_function_of_the_step_number() -> None:
    by_index = [tagged([True, False, True])] * 20
    with pytest.raises(ConfigError, match=r"function of the step number in 20 episodes \(steps 1 to 3\)"):
        check_tags(by_index)
    check_tags(by_index[:19])  # too few to tell
    check_tags([*by_index, tagged([True, True])])  # one episode differs at step 2
    # Step 4 varies, but only two episodes reach it: the three steps that can be judged are constant.
    rare = [tagged([True, False, True, True]), tagged([True, False, True, False])]
    with pytest.raises(ConfigError, match="steps 1 to 3"):
        check_tags([*by_index, *rare])


def test_tag_report_by_hand() -> None:
    # Steps 1-5: 2 of 10 explore; 6-10: 1 of 6 (1 step of the short episode); 31: 1 of 1; all: 4 of 37.
    long = [True, *[False] * 4, True, *[False] * 24, True]
    lines = tag_report([tagged([False, True, False, False, False, False]), tagged(long)]).splitlines()
    assert [line.split() for line in lines] == [
        ["steps", "explore", "n", "SPARK", "T9"],
        ["1-5", "20.00%", "10", "22.97%"],
        ["6-10", "16.67%", "6", "10.43%"],
        ["11-15", "0.00%", "5", "14.20%"],
        ["16-20", "0.00%", "5", "7.69%"],
        ["21-25", "0.00%", "5", "3.57%"],
        ["26-30", "0.00%", "5", "0.00%"],
        ["31-31", "100.00%", "1", "-"],
        ["all", "10.81%", "37"],
    ]
    assert tag_report([]).splitlines()[1].split() == ["1-5", "-", "0", "22.97%"]


def test_episodes_come_back_equal(tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    episodes = [
        *collect_expert_episodes(Corridor, Corridor.tasks("train")),
        *collect_random_episodes(Corridor, Corridor.tasks("train"), {"listed": True}, steps=3, seed=0),
        tagged([True, None], 'quote " newline \n separator \u2028 ümlaut'),
    ]
    save_episodes(file, episodes)
    assert load_episodes(file) == episodes
    assert len(file.read_text().splitlines()) == 9
    assert json.loads(file.read_text().splitlines()[0])["version"] == 1
    save_episodes(file, [])
    assert load_episodes(file) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace('"version": 1', '"version": 2'), r"line 1: version 2, this firesteel reads 1"),
        (lambda text: text[:-20], r"line 2: not a stored episode \(JSONDecodeError"),
        (lambda text: text.replace('"goal"', '"gaol"'), r"line 1: not a stored episode \(TypeError"),
        (lambda text: text.replace('"version": 1', '"x": 1'), r"line 1: not a stored episode \(KeyError: 'version'"),
        (lambda text: "[]\n", r"line 1: not a stored episode"),
    ],
)
def test_damaged_files_name_the_line(tmp_path: Path, damage: Any, message: str) -> None:
    file = tmp_path / "episodes.jsonl"
    save_episodes(file, [tagged([True]), tagged([False])])
    file.write_text(damage(file.read_text()))
    with pytest.raises(StoreError, match=message):
        load_episodes(file)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no episode file"):
        load_episodes(tmp_path / "none.jsonl")


def test_an_episode_set_is_a_sequence() -> None:
    episodes = EpisodeSet((tagged([True], "a"), tagged([True], "b")))
    assert (len(episodes), episodes[1].task_id, [episode.task_id for episode in episodes[:1]]) == (2, "b", ["a"])


def test_the_household_gives_tags_that_inform() -> None:
    household = environment_class("household")
    tasks = household.tasks("train", count=40, size="small")
    episodes = annotate_by_rules(collect_expert_episodes(household, tasks, {"size": "small"}))
    assert len(episodes) >= 36
    check_tags(episodes)
    babble = collect_random_episodes(household, tasks[:2], {"size": "small"}, steps=10, seed=0)
    assert [len(episode.steps) for episode in babble] == [10, 10]
