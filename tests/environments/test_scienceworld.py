"""ScienceWorld in its real simulator: scores, forks, shared Java, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from firesteel.environments.base import observation_hash
from firesteel.environments.scienceworld import ScienceWorld
from firesteel.environments.scienceworld.catalogue import VARIATIONS, variations
from firesteel.environments.scienceworld.java import find_java, find_simulator
from firesteel.environments.scienceworld.simulator import World, end_simulators, open_world, process_ids
from firesteel.errors import EnvironmentFailed, ForkDiverged, MissingDependency, StepTimeout
from firesteel.guard import guarded
from firesteel.types import Observation, Task


def what_is_missing() -> str:
    try:
        find_java()
        find_simulator()
    except MissingDependency as error:
        return str(error)
    return ""


SMALL_HEAP_MB = 48

pytestmark = [pytest.mark.system, pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing())]


@pytest.fixture(scope="module", autouse=True)
def java(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Java process for the module, and a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRESTEEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    end_simulators()


@pytest.fixture
def environment() -> Iterator[ScienceWorld]:
    with contextlib.closing(ScienceWorld()) as environment:
        yield environment


def task(name: str, variation: int = 0) -> Task:
    return Task(id=f"{name}-{variation}", kind=name, data={"task": name, "variation": variation})


def is_running(pid: int) -> bool:
    """Whether a process exists and is not merely waiting to be reaped."""
    result = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(result.stdout.strip()) and not result.stdout.strip().startswith("Z")


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


# The catalogue


def test_the_catalogue_is_the_simulators():
    with contextlib.closing(open_world(512, 60.0)) as world:
        process, interface = world._simulator.process, world._interface
        assert process.call(process.call(interface, "getTaskNames"), "size") == len(VARIATIONS) == 30
        for name, count in VARIATIONS.items():
            assert world.max_variations(name) == count
            process.call(interface, "taskStr_$eq", name)
            for split, method in (("train", "Train"), ("validation", "Dev"), ("test", "Test")):
                official = process.call(process.call(interface, f"getVariations{method}"), "toString")
                assert official == str(list(variations(name, split)))


# Scores


@pytest.mark.parametrize(
    ("name", "first_reward", "num_explore"),
    [
        # The find tasks give 1 of 12 points for looking around, which reset already does.
        ("find-non-living-thing", 0.08, 0),
        # On the way outside, which the goal names, lies one room that it does not name.
        ("lifespan-longest-lived", 0.0, 1),
        # The paint is in the fourth room that is searched.
        ("chemistry-mix-paint-secondary-color", 0.0, 4),
    ],
)
def test_the_gold_path_reaches_the_full_score(environment, name, first_reward, num_explore):
    observation = environment.reset(task(name), seed=0)
    assert observation.text.startswith("This room is called the hallway.")
    assert environment.goal.startswith("Your task is to ")
    results, steps = [], []
    while (step := environment.expert()) is not None:
        steps.append(step)
        results.append(environment.step(step.action))
    assert results[0].reward == pytest.approx(first_reward)
    assert sum(result.reward for result in results) == pytest.approx(1.0)
    assert [result.terminated for result in results] == [False] * (len(results) - 1) + [True]
    assert results[-1].info == {"success": True, "score": 1.0, "valid": True}
    assert sum(step.explore for step in steps) == num_explore
    with pytest.raises(EnvironmentFailed, match="'.*-0' was stepped after its episode had ended"):
        environment.step("look around")


def test_a_used_world_starts_without_the_score_of_its_last_episode(environment):
    environment.reset(task("lifespan-longest-lived"), seed=0)
    environment.step("teleport to outside")
    # "task" is answered without playing anything, so the simulator still holds the score from before.
    environment.reset(task("boil"), seed=0)
    assert environment.step("task").info["score"] == 0.0


def test_a_wrong_focus_ends_the_episode_and_takes_the_score_back(environment):
    environment.reset(task("lifespan-longest-lived"), seed=0)
    moved = environment.step("teleport to outside")
    assert (moved.reward, moved.info["score"], moved.terminated) == (0.5, 0.5, False)
    failed = environment.step("focus on axe")
    assert (failed.reward, failed.terminated) == (-0.5, True)
    assert failed.info == {"success": False, "score": 0.0, "valid": True}
    assert environment.expert() is None


def test_the_expert_is_silent_off_the_gold_path(environment):
    environment.reset(task("lifespan-longest-lived"), seed=0)
    assert environment.expert() is not None
    environment.step("inventory")
    assert environment.expert() is None


# What the simulator understands


def test_valid_is_false_where_nothing_was_played(environment):
    environment.reset(task("boil", 3), seed=0)
    answers = [
        ("xyzzy", False),
        ("", False),
        ("look around", True),
        ("inventory", True),
        ("task", True),
        ("go to the\nmoon \\n \ud800", False),
        # Three doors outside: the simulator asks which, and takes the next action as the number.
        ("open door", False),
        ("1", True),
        ("open door", False),
        ("banana", False),
        ("1", False),
    ]
    assert [(action, environment.step(action).info["valid"]) for action, _ in answers] == answers


def test_an_ambiguous_action_is_answered_with_a_numbered_list(environment):
    environment.reset(task("boil", 3), seed=0)
    text = environment.step("open door").observation.text
    assert text.startswith("Ambiguous request: Please enter the number") and "\n1:\t" in text
    assert environment.step("1").observation.text == "The door is already open."


def test_admissible_actions_are_listed_only_on_request(environment):
    assert environment.reset(task("boil", 3), seed=0).admissible is None
    with contextlib.closing(ScienceWorld(admissible=True)) as listing:
        admissible = listing.reset(task("boil", 3), seed=0).admissible
        assert "look around" in admissible and "teleport to kitchen" in admissible
        assert list(admissible) == sorted(admissible)
        assert listing.step("open door").observation.admissible == ("0", "1", "2")
        assert environment.step("open door").observation.admissible is None


def test_an_error_inside_the_simulator_fails_the_episode(environment):
    environment.reset(task("lifespan-longest-lived"), seed=0)
    process, interface = environment._world._simulator.process, environment._world._interface
    agent = process.call(process.call(interface, "agentInterface"), "get")
    process.call(agent, "setErrorState", "java.util.NoSuchElementException: key not found: 7")
    with pytest.raises(EnvironmentFailed, match="lived-0': the simulator failed inside .*key not found: 7\\); reset"):
        environment.step("look around")
    assert environment.reset(task("lifespan-longest-lived"), seed=0).text.startswith("This room")


# Worlds that share Java


def played(world, actions):
    """What a world says and the simulator's globals after every action."""
    return [(world.step(action), world._simulator.read_globals()) for action in actions]


def test_worlds_in_one_java_process_do_not_disturb_each_other():
    # The greenhouse has bees, which draw random numbers; electrical tasks have other simplifications.
    actions = ["look around", "teleport to greenhouse", "wait", "look around", "connect bee hive to jug"]
    with contextlib.closing(open_world(512, 60.0)) as world, contextlib.closing(open_world(512, 60.0)) as other:
        assert world._simulator is other._simulator
        world.load("grow-fruit", 2, "easy")
        alone = played(world, actions)
        assert len({shown.random_state for _, shown in alone}) > 1
        world.load("grow-fruit", 2, "easy")
        together = []
        for number, action in enumerate(actions):
            other.load("power-component", number, "easy")
            other.step("teleport to outside")
            other.valid_actions()
            together += played(world, [action])
        assert together == alone


def test_listing_the_actions_changes_nothing():
    with contextlib.closing(open_world(512, 60.0)) as world:
        world.load("boil", 3, "easy")
        world.step("look around")
        before = world._simulator.read_globals()
        assert len(world.valid_actions()) > 100
        assert world._simulator.read_globals() == before


def test_loading_again_shows_things_in_the_same_order(environment):
    # The two planes lie in a hash set of the simulator, whose order would otherwise change from load to load.
    seen = set()
    for _ in range(6):
        environment.reset(task("inclined-plane-determine-angle"), seed=0)
        environment.step("teleport to workshop")
        seen.add(environment.step("look around").observation)
    assert len(seen) == 1


def test_closed_worlds_are_used_again():
    with contextlib.closing(open_world(512, 60.0)) as world:
        interface = world._interface
    with contextlib.closing(open_world(512, 60.0)) as again:
        assert again._interface == interface
        with pytest.raises(EnvironmentFailed, match="is closed; reset the environment"):
            world.step("look around")


def test_a_full_java_process_is_followed_by_another():
    # 48 MB hold three worlds of 16 MB.
    with contextlib.ExitStack() as stack:
        worlds = [stack.enter_context(contextlib.closing(open_world(SMALL_HEAP_MB, 60.0))) for _ in range(4)]
        first, second, third, last = [world._simulator.process.pid for world in worlds]
        assert first == second == third != last
        assert {first, last} <= set(process_ids())
        worlds[0].close()
        again = stack.enter_context(contextlib.closing(open_world(SMALL_HEAP_MB, 60.0)))
        assert again._simulator.process.pid == first


# Forks


def test_a_fork_continues_as_its_parent_does_and_is_independent(environment):
    environment.reset(task("find-non-living-thing"), seed=0)
    for action in ("open door to kitchen", "go to kitchen"):
        environment.step(action)
    with contextlib.closing(environment.fork()) as child:
        assert child.goal == environment.goal
        assert environment.step("focus on chair").info["score"] == 0.75
        assert child.expert() is not None and child.expert().action == "look around"
        assert child.step("focus on chair").info["score"] == 0.75
        assert child.step("move chair to red box").info["success"]
        assert not environment.step("look around").terminated
        environment.close()


def test_a_fork_lists_the_same_actions():
    with contextlib.closing(ScienceWorld(admissible=True)) as parent:
        parent.reset(task("lifespan-longest-lived"), seed=0)
        parent.step("teleport to outside")
        with contextlib.closing(parent.fork()) as child:
            answers = [one.step("look around").observation for one in (parent, child)]
            assert answers[0].admissible and answers[0] == answers[1]


def test_a_fork_that_differs_names_the_step_and_both_observations(environment):
    environment.reset(task("lifespan-longest-lived"), seed=0)
    environment.step("inventory")
    environment._world.step("teleport to outside")  # behind the environment's back
    shown = environment.step("look around").observation
    environment.step("inventory")
    with pytest.raises(ForkDiverged) as caught:
        environment.fork()
    message = str(caught.value)
    assert "task 'lifespan-longest-lived-0': the replay differs at step 2 of 3 ('look around')" in message
    hallway = "This room is called the hallway. In it, you see: "
    assert f"wanted {observation_hash(shown)} 'This outside location is called the outside." in message
    assert f"got {observation_hash(ScienceWorld().reset(task('lifespan-longest-lived'), seed=0))} '{hallway}" in message


def test_a_fork_whose_list_differs_diverges():
    with contextlib.closing(ScienceWorld(admissible=True)) as parent:
        parent.reset(task("lifespan-longest-lived"), seed=0)
        parent._seen = Observation(parent._seen.text, ("dance", *parent._seen.admissible))
        with pytest.raises(ForkDiverged, match="at step 0 of 0 \\(reset\\): wanted .* 'dance', got .* '"):
            parent.fork()


# How Java ends


def test_a_hanging_simulator_times_out_and_a_reset_starts_another():
    with contextlib.closing(ScienceWorld(java_heap_mb=SMALL_HEAP_MB, step_timeout_s=30.0)) as environment:
        first = environment.reset(task("lifespan-longest-lived"), seed=0)
        pid = environment._world._simulator.process.pid
        assert f"-Xmx{SMALL_HEAP_MB}m" in subprocess.check_output(["ps", "-o", "args=", "-p", str(pid)], text=True)
        environment._world.timeout_s = 0.3
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(StepTimeout, match="did not step\\('inventory'\\) within 0.3 s and was ended"):
            environment.step("inventory")
        assert not is_running(pid)
        with pytest.raises(EnvironmentFailed, match=f"simulator \\(process {pid}\\) is dead and cannot step"):
            environment.step("inventory")
        assert environment.reset(task("lifespan-longest-lived"), seed=0) == first


@pytest.mark.parametrize("admissible", [False, True])
def test_after_java_was_killed_every_episode_goes_on_where_it_was(admissible):
    actions = ["open door to kitchen", "go to kitchen", "look around", "inventory"]
    with contextlib.ExitStack() as stack:
        worlds = [
            stack.enter_context(contextlib.closing(ScienceWorld(java_heap_mb=160, admissible=admissible)))
            for _ in range(3)
        ]
        undisturbed, *others = worlds
        for world in worlds:
            world.reset(task("lifespan-longest-lived"), seed=0)
        wanted = [undisturbed.step(action) for action in actions]
        assert [world.step(actions[0]) for world in others] == wanted[:1] * 2
        pid = others[0]._world._simulator.process.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.warns(RuntimeWarning, match="Java has died; another one plays its 1 actions again"):
            assert others[0].step(actions[1]) == wanted[1]
        # The other one meets a process that is known to be dead, and shares the new one; a fork works, too.
        with pytest.warns(RuntimeWarning, match="Java has died"):
            assert [others[1].step(action) for action in actions[1:]] == wanted[1:]
        with contextlib.closing(others[0].fork()) as fork:
            assert [fork.step(action) for action in actions[2:]] == wanted[2:]
        assert others[0]._world._simulator.process.pid == others[1]._world._simulator.process.pid != pid


def test_a_fork_right_after_java_was_killed_is_made_in_another():
    with contextlib.closing(ScienceWorld()) as parent:
        parent.reset(task("lifespan-longest-lived"), seed=0)
        seen = parent.step("inventory")
        for _ in range(3):
            os.kill(process_ids()[-1], signal.SIGKILL)
            with contextlib.closing(parent.fork()) as fork:
                assert fork._texts[-1] == seen.observation.text


def test_an_episode_that_is_not_the_same_after_java_was_killed_fails():
    with contextlib.closing(ScienceWorld(java_heap_mb=160)) as environment:
        environment.reset(task("lifespan-longest-lived"), seed=0)
        environment.step("inventory")
        environment._texts[1] = "In your inventory, you see: a lie"
        os.kill(environment._world._simulator.process.pid, signal.SIGKILL)
        with pytest.warns(RuntimeWarning), pytest.raises(ForkDiverged, match="step 1 of 1"):
            environment.step("look around")


def test_java_that_dies_while_it_lists_actions_is_started_again(monkeypatch):
    with contextlib.closing(ScienceWorld(java_heap_mb=160, admissible=True)) as environment:
        first = environment.reset(task("lifespan-longest-lived"), seed=0)
        wanted = environment.step("inventory")
        environment.reset(task("lifespan-longest-lived"), seed=0)
        pids = [environment._world._simulator.process.pid]
        listing = World.valid_actions

        def deadly(world):
            if pids:
                os.kill(pids.pop(), signal.SIGKILL)
            return listing(world)

        monkeypatch.setattr(World, "valid_actions", deadly)
        with pytest.warns(RuntimeWarning, match="plays its 1 actions again"):
            assert environment.step("inventory") == wanted
        assert wanted.observation.admissible and first.admissible


def test_java_that_dies_again_and_again_fails_the_episode(monkeypatch):
    with contextlib.closing(ScienceWorld(java_heap_mb=160)) as environment:
        environment.reset(task("lifespan-longest-lived"), seed=0)
        step = World.step

        def deadly(world, action):
            if action == "inventory":
                os.kill(world._simulator.process.pid, signal.SIGKILL)
            return step(world, action)

        monkeypatch.setattr(World, "step", deadly)
        with pytest.warns(RuntimeWarning), pytest.raises(EnvironmentFailed, match="is dead since .*exit code -9"):
            environment.step("inventory")


def test_a_call_that_was_interrupted_is_not_answered_to_the_next():
    def interrupt(signum, frame):
        raise KeyboardInterrupt

    with contextlib.closing(ScienceWorld(java_heap_mb=SMALL_HEAP_MB)) as environment:
        environment.reset(task("lifespan-longest-lived"), seed=0)
        pid = environment._world._simulator.process.pid
        previous = signal.signal(signal.SIGALRM, interrupt)
        try:
            os.kill(pid, signal.SIGSTOP)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                environment.step("inventory")
        finally:
            signal.signal(signal.SIGALRM, previous)
            os.kill(pid, signal.SIGCONT)
        with pytest.warns(RuntimeWarning, match="Java has died"):
            assert "In your inventory" in environment.step("inventory").observation.text
        assert environment._world._simulator.process.pid != pid


def test_a_guard_around_a_hanging_simulator_ends_it():
    with contextlib.closing(ScienceWorld(java_heap_mb=SMALL_HEAP_MB)) as environment:
        environment.reset(task("lifespan-longest-lived"), seed=0)
        pid = environment._world._simulator.process.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(StepTimeout, match="a slow step: no answer after 0.2 s"), guarded("a slow step", 0.2):
            environment.step("inventory")
        assert not is_running(pid)


def test_a_heap_that_is_too_small_says_so():
    with (
        contextlib.closing(ScienceWorld(java_heap_mb=16)) as environment,
        pytest.raises(EnvironmentFailed, match="its heap of 16 MB was full: raise java_heap_mb"),
    ):
        environment.reset(task("lifespan-longest-lived"), seed=0)


def test_a_java_that_does_not_start_says_why():
    with contextlib.closing(ScienceWorld(java_heap_mb=1)) as environment, pytest.raises(EnvironmentFailed) as caught:
        environment.reset(task("lifespan-longest-lived"), seed=0)
    assert "Too small maximum heap" in str(caught.value) and "-Xmx1m" in str(caught.value)


def test_no_java_outlives_an_owner_that_is_killed():
    program = """
import time
from firesteel.environments.scienceworld.simulator import open_world, process_ids
world = open_world(64, 60.0)
print(*process_ids(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-W", "error", "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_running(pid)
        owner.kill()
    assert wait_until_gone(pid)


def test_a_forked_child_leaves_its_parents_java_alone_and_none_outlives_them():
    program = """
import os, sys, warnings
from firesteel.environments.scienceworld.simulator import open_world, process_ids
from firesteel.errors import EnvironmentFailed
world = open_world(64, 60.0)
world.load("lifespan-longest-lived", 0, "easy")
warnings.simplefilter("ignore", DeprecationWarning)
child = os.fork()
if child == 0:
    try:
        world.step("look around")
    except EnvironmentFailed:
        sys.exit(0 if process_ids() == [] else 3)
    sys.exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert world.step("look around").startswith("This room is called the hallway")
print(*process_ids())
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert wait_until_gone(int(result.stdout))
