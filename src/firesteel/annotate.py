"""Cold-start data: episodes played by an environment's expert, with one reasoning tag per step.

The tags come from what the expert does not know yet ("rules", no teacher), or are added afterwards to a finished
episode by a teacher model ("teacher", as in SPARK).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from firesteel.environments.base import Environment
from firesteel.errors import AnswerInvalid, ConfigError, EnvironmentFailed, StoreError
from firesteel.files import exact_json, write_atomic
from firesteel.guard import guarded
from firesteel.metrics import SPARK_T9, tag_rate_by_interval
from firesteel.prompts import REASONING_TAGS, TAGS
from firesteel.types import ExpertStep, Observation, Task

if TYPE_CHECKING:
    from firesteel.openai_client import ChatClient

EPISODE_VERSION = 1
EXPLORE_TAG = REASONING_TAGS[0]


@dataclass(frozen=True, slots=True)
class EpisodeStep:
    """What was seen, and what was then done and thought. `explore` is None as long as the step has no tag.

    A `drawn` action was played at random: learning from the step keeps its thought and does not imitate the action.
    """

    observation: str
    action: str
    explore: bool | None = None
    reason: str = ""
    admissible: tuple[str, ...] | None = None
    drawn: bool = False

    @property
    def expert_step(self) -> ExpertStep:
        """The step as prompts format it; `ConfigError` if it has no tag."""
        if self.explore is None:
            raise ConfigError(f"the step '{self.action}' has no reasoning tag; annotate its episode first")
        return ExpertStep(self.action, self.explore, self.reason)


@dataclass(frozen=True, slots=True)
class ExpertEpisode:
    """One played episode. `final_observation` is what the last action led to; `annotator` says who set the tags."""

    task_id: str
    kind: str
    split: str
    seed: int
    goal: str
    steps: tuple[EpisodeStep, ...]
    final_observation: str
    success: bool
    annotator: str = ""

    @property
    def explore_flags(self) -> tuple[bool, ...]:
        """One flag per step; `ConfigError` if a step has no tag."""
        return tuple(step.expert_step.explore for step in self.steps)


@dataclass(frozen=True, slots=True)
class Rejection:
    """An episode that was left out, and why."""

    task_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class EpisodeSet(Sequence[ExpertEpisode]):
    """The episodes that were kept, as a sequence, and beside them those that were not."""

    accepted: tuple[ExpertEpisode, ...]
    rejected: tuple[Rejection, ...] = ()

    @classmethod
    def sorted_out(cls, outcomes: Iterable[ExpertEpisode | Rejection]) -> EpisodeSet:
        """The outcomes of a list of tasks, in their order."""
        listed = list(outcomes)
        return cls(
            tuple(outcome for outcome in listed if isinstance(outcome, ExpertEpisode)),
            tuple(outcome for outcome in listed if isinstance(outcome, Rejection)),
        )

    @overload
    def __getitem__(self, index: int) -> ExpertEpisode: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ExpertEpisode]: ...
    def __getitem__(self, index: int | slice) -> ExpertEpisode | Sequence[ExpertEpisode]:
        return self.accepted[index]

    def __len__(self) -> int:
        return len(self.accepted)

    def __iter__(self) -> Iterator[ExpertEpisode]:
        return iter(self.accepted)

    def report(self) -> str:
        """How many were kept, and one line for each that was not."""
        total = len(self.accepted) + len(self.rejected)
        lines = [f"{len(self.accepted)} of {total} episodes kept"]
        return "\n".join(lines + [f"  {left_out.task_id}: {left_out.reason}" for left_out in self.rejected])


def collect_expert_episodes(
    environment_class: Callable[..., Environment],
    tasks: Iterable[Task],
    options: Mapping[str, Any] | None = None,
    max_steps: int = 30,
) -> EpisodeSet:
    """Lets the environment's expert play every task; only solved episodes of at most `max_steps` steps are kept.

    `options` go to the environment's constructor; `task.seed` seeds `reset`. The steps carry the expert's own tags.
    """

    def play(environment: Environment, task: Task) -> ExpertEpisode | Rejection:
        episode = play_episode(environment, task, max_steps, _expert_decision)
        if episode.success:
            return replace(episode, annotator="rules")
        return Rejection(task.id, f"not solved by the expert in {len(episode.steps)} steps (max_steps is {max_steps})")

    return play_all(environment_class, tasks, options, play)


def _expert_decision(environment: Environment, observation: Observation) -> EpisodeStep | None:
    decision = environment.expert()
    if decision is None:
        return None
    return EpisodeStep(
        observation.text, decision.action, decision.explore, decision.reason, admissible=observation.admissible
    )


def play_episode(
    environment: Environment,
    task: Task,
    max_steps: int,
    decide: Callable[[Environment, Observation], EpisodeStep | None],
) -> ExpertEpisode:
    """Plays until the environment ends the episode, `decide` has nothing to do, or `max_steps` steps are done."""
    observation = environment.reset(task, seed=task.seed)
    steps: list[EpisodeStep] = []
    success = False
    while len(steps) < max_steps:
        step = decide(environment, observation)
        if step is None:
            break
        steps.append(step)
        result = environment.step(step.action)
        observation, success = result.observation, bool(result.info.get("success", False))
        if result.terminated or result.truncated:
            break
    return ExpertEpisode(
        task.id, task.kind, task.split, task.seed, environment.goal, tuple(steps), observation.text, success
    )


def play_all(
    environment_class: Callable[..., Environment],
    tasks: Iterable[Task],
    options: Mapping[str, Any] | None,
    play: Callable[[Environment, Task], ExpertEpisode | Rejection],
) -> EpisodeSet:
    """Plays all tasks in one environment, which is replaced when it fails; the failed episode is recorded.

    A mistake in the setup, and a constructor that fails, end it.
    """
    outcomes: list[ExpertEpisode | Rejection] = []
    environment = environment_class(**(options or {}))
    try:
        for task in tasks:
            try:
                with guarded(f"task '{task.id}'", timeout_s=0):
                    outcomes.append(play(environment, task))
            except EnvironmentFailed as error:
                outcomes.append(Rejection(task.id, f"the environment failed: {error}"))
                environment.close()
                environment = environment_class(**(options or {}))
    finally:
        environment.close()
    return EpisodeSet.sorted_out(outcomes)


def _step_flaw(step: EpisodeStep) -> str | None:
    """What is wrong with a step's tag and reason, if anything."""
    if step.explore is None:
        return "it has no reasoning tag"
    if not step.reason.strip():
        return "its reason is empty"
    found = next((tag for tag in TAGS if tag in step.reason), None)
    return None if found is None else f"its reason holds a second tag, {found}"


def annotate_by_rules(episodes: Iterable[ExpertEpisode], *, client: ChatClient | None = None) -> EpisodeSet:
    """Keeps the expert's own tags, after checking that every step has exactly one and a reason. No teacher.

    The environment's expert decides from what it does not know yet (`ExpertStep.explore`).
    Differs from the paper: SPARK's tags come from a teacher model. `client` is not used.
    """
    del client

    def check(episode: ExpertEpisode) -> ExpertEpisode | Rejection:
        for number, step in enumerate(episode.steps, start=1):
            if (flaw := _step_flaw(step)) is not None:
                return Rejection(episode.task_id, f"step {number}, '{step.action}': {flaw}")
        return replace(episode, annotator="rules")

    return EpisodeSet.sorted_out(map(check, episodes))


_TEACHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"reason": {"type": "string"}, "action": {"type": "string"}},
                "required": ["reason", "action"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["steps"],
    "additionalProperties": False,
}

_TEACHER_ROLE = """\
You are shown a solved episode of a world that answers in text: its task, and for every step what the agent saw \
and which action it then took. Your notes will teach another agent when to look around and when to go straight on.
For every step, in order, write what a careful agent thinks just before that action: one short sentence in exactly \
one of two tags.
<explore>...</explore> if something it needs is not known yet, or what it just saw was unexpected, so that \
several actions would be reasonable.
<think>...</think> if what it knows makes this action the clear next one.
Base each sentence only on what was seen up to that step; later steps are unknown to the agent. \
Copy every action letter by letter.
Answer with JSON alone, one entry per step:
{"steps": [{"reason": "<think>...</think>", "action": "..."}]}"""


def teacher_messages(episode: ExpertEpisode) -> list[dict[str, str]]:
    """The request that shows a teacher the golden (observation, action) list of an episode."""
    lines = [f"Task: {episode.goal}", f"The episode has {len(episode.steps)} steps."]
    for number, step in enumerate(episode.steps, start=1):
        lines += ["", f"Step {number}", f"Seen: {step.observation}", f"Action: {step.action}"]
    return [{"role": "system", "content": _TEACHER_ROLE}, {"role": "user", "content": "\n".join(lines)}]


def read_tagged_reason(text: str) -> tuple[bool, str]:
    """(explore, sentence) of a reason such as "<think>the way is clear</think>"; `ValueError` unless it has one tag."""
    whole = re.fullmatch(rf"\s*<({'|'.join(REASONING_TAGS)})>(.*)</\1>\s*", text, re.DOTALL)
    if whole is None or any(tag in whole[2] for tag in TAGS) or not whole[2].strip():
        raise ValueError(f"wanted one sentence in exactly one of the tags {' or '.join(REASONING_TAGS)}, got {text!r}")
    return whole[1] == EXPLORE_TAG, " ".join(whole[2].split())


def apply_teacher_answer(episode: ExpertEpisode, answer: Mapping[str, Any]) -> ExpertEpisode:
    """The episode with the teacher's tags and reasons; `ValueError` says why an answer does not fit.

    It fits if it has one entry per step, repeats the actions, and each reason has exactly one tag.
    """
    entries = answer.get("steps")
    if not isinstance(entries, list) or len(entries) != len(episode.steps):
        got = f"{len(entries)} entries" if isinstance(entries, list) else "no list"
        raise ValueError(f"wanted 'steps' with {len(episode.steps)} entries, got {got}")
    steps = []
    for number, (step, entry) in enumerate(zip(episode.steps, entries, strict=True), start=1):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("reason", "action")):
            raise ValueError(f"step {number}: wanted an object with the texts 'reason' and 'action', got {entry!r}")
        if entry["action"].strip() != step.action.strip():
            raise ValueError(f"step {number}: wanted the action {step.action!r}, got {entry['action']!r}")
        try:
            explore, reason = read_tagged_reason(entry["reason"])
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from error
        steps.append(replace(step, explore=explore, reason=reason))
    return replace(episode, steps=tuple(steps), annotator="teacher")


def _ask_teacher(episode: ExpertEpisode, client: ChatClient, attempts: int) -> ExpertEpisode | Rejection:
    messages, flaw = teacher_messages(episode), ""
    for _ in range(attempts):
        try:
            answer = client.complete_json(messages, schema=_TEACHER_SCHEMA, temperature=0.0)
        except AnswerInvalid as error:
            return Rejection(episode.task_id, f"the teacher gave no JSON: {error}")
        try:
            return apply_teacher_answer(episode, answer)
        except ValueError as error:
            flaw = str(error)
        # At temperature 0 the same question would get the same answer: say what was wrong with it.
        messages = [
            *teacher_messages(episode),
            {"role": "assistant", "content": json.dumps(answer)},
            {"role": "user", "content": f"This cannot be used. {flaw}. Answer again, with all steps."},
        ]
    return Rejection(episode.task_id, f"the teacher's answer did not fit after {attempts} attempts; last: {flaw}")


def annotate_by_teacher(
    episodes: Iterable[ExpertEpisode],
    *,
    client: ChatClient | None = None,
    attempts: int = 3,
    num_threads: int = 4,
) -> EpisodeSet:
    """Has a teacher model write one tagged reason per step, at temperature 0; old tags are overwritten.

    An answer that does not fit (`apply_teacher_answer`) is asked for again with the reason, `attempts` times in all;
    then the episode is rejected. A server that fails or a spent budget raises: give the client a `cache_dir` and what
    was answered so far is not lost.
    Differs from the paper: SPARK accepts a reason that starts with "<"; here it must be one complete tag.
    """
    if client is None:
        raise ConfigError("the annotator 'teacher' needs a client; pass client=ChatClient(base_url, model)")
    pool = ThreadPoolExecutor(num_threads)
    try:
        futures = [pool.submit(_ask_teacher, episode, client, attempts) for episode in episodes]
        return EpisodeSet.sorted_out([future.result() for future in futures])
    finally:
        pool.shutdown(cancel_futures=True)


ANNOTATORS: dict[str, Callable[..., EpisodeSet]] = {"rules": annotate_by_rules, "teacher": annotate_by_teacher}


def check_tags(episodes: Sequence[ExpertEpisode], min_episodes: int = 20) -> None:
    """Raises `ConfigError` if the explore tag carries no information about the situation.

    That is: it is on every step, on no step, or a function of the step index: at every index that at least
    `min_episodes` episodes reach, all of them agree (and there is such an index).
    """
    all_flags = [episode.explore_flags for episode in episodes]
    distinct = {flag for flags in all_flags for flag in flags}
    if len(distinct) < 2:
        where = "every step" if distinct == {True} else "no step"
        raise ConfigError(
            f"the explore tag is on {where} of {len(episodes)} episodes: a policy trained on them cannot learn when to "
            "explore; use episodes whose expert has something to find out, or the annotator 'teacher'"
        )
    num_steps = max(map(len, all_flags))
    columns = [[flags[index] for flags in all_flags if len(flags) > index] for index in range(num_steps)]
    judged = [column for column in columns if len(column) >= min_episodes]
    if judged and all(len(set(column)) == 1 for column in judged):
        raise ConfigError(
            f"the explore tag is a function of the step number in {len(episodes)} episodes (steps 1 to {len(judged)}): "
            "it says nothing about the situation; use more varied tasks or another annotator"
        )


def tag_report(episodes: Sequence[ExpertEpisode], width: int = 5) -> str:
    """A table of the share of explore steps by step interval, beside Table 9 of SPARK (ALFWorld cold-start data)."""
    all_flags = [episode.explore_flags for episode in episodes]
    published = {(first, last): rate for first, last, rate in SPARK_T9}
    longest = max([SPARK_T9[-1][1], *map(len, all_flags)])
    lines = [f"{'steps':>9}  {'explore':>8}  {'n':>7}  {'SPARK T9':>8}"]
    for first, last, rate, n in tag_rate_by_interval(all_flags, width, longest):
        ours = f"{rate:.2%}" if n else "-"
        paper = f"{published[first, last]:.2%}" if (first, last) in published else "-"
        lines.append(f"{f'{first}-{last}':>9}  {ours:>8}  {n:>7}  {paper:>8}")
    num_steps = sum(map(len, all_flags))
    overall = f"{sum(map(sum, all_flags)) / num_steps:.2%}" if num_steps else "-"
    lines.append(f"{'all':>9}  {overall:>8}  {num_steps:>7}  {'':>8}".rstrip())
    return "\n".join(lines)


def save_episodes(path: str | Path, episodes: Iterable[ExpertEpisode]) -> None:
    """Writes one episode per line as JSON; the file is replaced whole or not at all."""
    lines = [
        exact_json(_jsonable(episode), name=f"episode {number} (task '{episode.task_id}')")
        for number, episode in enumerate(episodes, start=1)
    ]
    write_atomic(Path(path), "".join(f"{line}\n" for line in lines).encode())


def load_episodes(path: str | Path) -> list[ExpertEpisode]:
    """The episodes of a file that `save_episodes` wrote; `StoreError` if missing, damaged or of another version."""
    path = Path(path)
    if not path.exists():
        raise StoreError(f"no episode file '{path}'; make one with save_episodes")
    return [_parse_line(path, number, line) for number, line in enumerate(path.read_bytes().splitlines(), start=1)]


def _jsonable(episode: ExpertEpisode) -> dict[str, Any]:
    fields = asdict(episode)
    fields["steps"] = [
        step | {"admissible": None if step["admissible"] is None else list(step["admissible"])}
        for step in fields["steps"]
    ]
    return {"version": EPISODE_VERSION, **fields}


def _parse_line(path: Path, number: int, line: bytes) -> ExpertEpisode:
    try:
        fields = json.loads(line)
        version = fields.pop("version")
        if version != EPISODE_VERSION:
            raise StoreError(f"'{path}', line {number}: version {version}, this firesteel reads {EPISODE_VERSION}")
        steps = [
            EpisodeStep(**step | {"admissible": None if step["admissible"] is None else tuple(step["admissible"])})
            for step in fields.pop("steps")
        ]
        return ExpertEpisode(**fields, steps=tuple(steps))
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"'{path}', line {number}: not a stored episode ({type(error).__name__}: {error}); "
            "the file is damaged or of another kind: write it again with save_episodes"
        ) from error
