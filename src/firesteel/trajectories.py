"""Judged trajectories, as SPaRK generates them: at every step one candidate query for each action, a judge's scores,
one chosen action, its result, and a verdict.

A directory holds `settings.json`, `rows.jsonl` (one line a step, in the order of the questions, only ever appended to),
`failures.jsonl` and `ledger.jsonl`. Generation goes on where it stopped; the bytes of `rows.jsonl` do not depend on
interruptions or on the number of connections.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from firesteel.environments.question_rows import Question
from firesteel.errors import AnswerInvalid, ConfigError, ServerFailed, StoreError
from firesteel.files import append_line, exact_json, make_directory, read_jsonl, write_atomic, write_json_atomic
from firesteel.judges.base import Judge, PastStep, Situation, ToolRunner
from firesteel.judges.compare import Case
from firesteel.judges.llm import process_messages, scoring_messages
from firesteel.openai_client import CHARACTERS_PER_TOKEN, Ledger
from firesteel.rollout import derive_seed
from firesteel.selection import ActionSelector
from firesteel.tools import COT, Tool
from firesteel.writers import Writer

FORMAT_VERSION = 1
MAX_FAILURES_IN_A_ROW = 10

# What `estimate` takes for typical, in characters and tokens.
SAMPLED_QUESTIONS, TYPICAL_QUERY, TYPICAL_OBSERVATION = 50, 60, 200
TOKENS_PER_SCORE, TOKENS_PER_VERDICT = 8, 12

# What the authors' data set calls its columns; the others below are ours.
PUBLISHED_COLUMNS = (
    "qid", "sub_step_idx", "step_idx", "sample_id", "question", "state_context", "state_text", "prompt", "thought",
    "action_taken", "tool_name", "action_query", "action_text", "observation", "reward_raw", "chosen_score",
    "best_score", "process_ok", "mcq_options", "correct_answer_letter", "raw_llama_output", "candidate_actions",
)  # fmt: skip
OWN_COLUMNS = (
    "format_version", "trajectory_id", "row_id", "split", "category", "num_steps", "scores", "viable", "is_fallback",
    "tool_ok", "answer_letter", "is_correct", "writer", "judge", "judge_sees_key", "behavior_logprobs",
)  # fmt: skip

# What the columns that are read again hold.
COLUMN_KINDS: dict[type, tuple[str, ...]] = {
    str: ("qid", "question", "thought", "tool_name", "action_query", "observation", "trajectory_id", "row_id", "split",
          "category"),
    int: ("step_idx", "sample_id", "num_steps", "format_version"),
    float: ("chosen_score", "best_score"),
    bool: ("process_ok", "tool_ok", "is_correct", "is_fallback"),
    list: ("mcq_options",),
    dict: ("candidate_actions", "scores"),
}  # fmt: skip
KIND_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list of texts",
              dict: "an object"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrajectorySettings:
    """What decides the rows, beside the questions and the parts.

    `connections` questions are worked on at a time. `usage_lag` is for selectors that look at usage: a question sees
    the choices of all questions but the last so many before it, which is what makes its result independent of timing.
    """

    steps: int = 5
    samples: int = 1
    seed: int = 0
    connections: int = 8
    usage_lag: int = 64

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "connections", "usage_lag"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trajectories: {name} must be at least 1, got {getattr(self, name)}")


@dataclass(slots=True)
class Summary:
    """What one call of `generate_trajectories` did. `skipped` trajectories were there before.

    `last_failure` says why the last of the `failed` ones failed; "" where none did.
    """

    trajectories: int = 0
    skipped: int = 0
    rows: int = 0
    failed: int = 0
    correct: int = 0
    wall_s: float = 0.0
    ledgers: dict[str, dict[str, int]] = field(default_factory=dict)
    last_failure: str = ""


@dataclass(frozen=True, slots=True)
class Parts:
    """Who does what."""

    tools: Mapping[str, Tool]
    writer: Writer
    judge: Judge
    selector: ActionSelector
    runner: ToolRunner


@dataclass(frozen=True, slots=True)
class _Job:
    question: Question
    split: str
    sample_id: int

    @property
    def name(self) -> str:
        """The id of its trajectory."""
        return f"{self.question.question_id}/{self.sample_id}"


def make_trajectory(
    question: Question,
    parts: Parts,
    settings: TrajectorySettings,
    *,
    usage: Mapping[str, int] | None = None,
    split: str = "",
    sample_id: int = 0,
) -> list[dict[str, Any]]:
    """The rows of one question, one a step, with the answer and whether it is right in each of them.

    Neither the writer nor the judge is shown the key; `correct_answer_letter` and `is_correct` are added at the end.
    """
    counts = Counter(usage or {})
    situation = Situation.start(question)
    name = _Job(question, split, sample_id).name
    rows = []
    for index in range(settings.steps):
        seed = derive_seed(settings.seed, name, index)
        candidates = parts.writer.write(situation, parts.tools, seed=seed)
        scores = parts.judge.score(situation, candidates.thought, candidates.queries)
        selection = parts.selector.select(scores, counts, random.Random(seed))
        query = candidates.queries[selection.action]
        result = parts.runner.run(selection.action, query)
        step = PastStep(candidates.thought, selection.action, query, result.text)
        known = [score for score in scores.values() if score is not None]
        rows.append(
            {
                "step_idx": index,
                "sub_step_idx": index,
                "state_context": situation.context,
                "state_text": situation.text,
                "prompt": candidates.prompt,
                "thought": step.thought,
                "action_taken": step.action,
                "tool_name": step.action,
                "action_query": query,
                "action_text": f"{step.action}: {query}",
                "observation": step.observation,
                "reward_raw": max(known) - scores[step.action],
                "chosen_score": scores[step.action],
                "best_score": max(known),
                "process_ok": parts.judge.process_ok(situation, step),
                "raw_llama_output": candidates.raw,
                "candidate_actions": dict(sorted(candidates.queries.items())),
                "scores": dict(sorted(scores.items())),
                "viable": list(selection.viable),
                "is_fallback": selection.is_fallback,
                "tool_ok": result.ok,
            }
        )
        counts[step.action] += 1
        situation = situation.after(step)
    answer = parts.writer.answer(situation, seed=derive_seed(settings.seed, name, "answer"))
    shared = _shared_columns(_Job(question, split, sample_id), parts, settings) | {
        "answer_letter": answer,
        "is_correct": answer == question.answer,
    }
    merged = (row | shared | {"row_id": f"{name}/{row['step_idx']}"} for row in rows)
    return [{column: row[column] for column in (*PUBLISHED_COLUMNS, *OWN_COLUMNS)} for row in merged]


def _shared_columns(job: _Job, parts: Parts, settings: TrajectorySettings) -> dict[str, Any]:
    """The columns that all rows of a trajectory share, without its answer."""
    question = job.question
    return {
        "format_version": FORMAT_VERSION,
        "qid": question.question_id,
        "sample_id": job.sample_id,
        "trajectory_id": job.name,
        "split": job.split,
        "category": question.category,
        "num_steps": settings.steps,
        "question": question.question,
        "mcq_options": list(question.options),
        "correct_answer_letter": question.answer,
        "writer": parts.writer.name,
        "judge": parts.judge.name,
        "judge_sees_key": parts.judge.sees_key,
        "behavior_logprobs": None,
    }


def generate_trajectories(
    questions: Sequence[Question],
    parts: Parts,
    directory: Path | str,
    settings: TrajectorySettings | None = None,
    *,
    description: Mapping[str, Any] | None = None,
    split: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Writes the trajectories of all questions that `directory` does not hold yet.

    `description` says in JSON what the parts are; it is stored, and another one for the same directory is refused. A
    question whose server keeps failing is left out, noted in `failures.jsonl`, and tried again by the next call.

    Raises:
        ConfigError: the directory was begun with other settings.
        ServerFailed, AnswerInvalid: `MAX_FAILURES_IN_A_ROW` questions failed one after the other.
        BudgetSpent: a client's budget is reached; what was finished is stored.
    """
    settings = settings or TrajectorySettings()
    folder = Path(directory)
    make_directory(folder)
    _check_settings(folder, settings, description or {}, parts)
    path = folder / "rows.jsonl"
    repair(path)
    done = {str(rows[0]["trajectory_id"]): rows for rows in read_trajectories(path)}
    jobs = [_Job(question, split, sample) for sample in range(settings.samples) for question in questions]
    before = {"writer": parts.writer.ledger, "judge": parts.judge.ledger}
    start = time.monotonic()
    summary = Summary()
    try:
        failures_in_a_row = 0
        for finished, job, outcome in _work(jobs, done, parts, settings):
            _store(folder, job, outcome, summary)
            failures_in_a_row = failures_in_a_row + 1 if isinstance(outcome, Exception) else 0
            if isinstance(outcome, Exception) and failures_in_a_row == MAX_FAILURES_IN_A_ROW:
                raise outcome
            if on_progress is not None:
                on_progress(finished, len(jobs))
    finally:
        summary.wall_s = time.monotonic() - start
        after = {"writer": parts.writer.ledger, "judge": parts.judge.ledger}
        summary.ledgers = {name: _spent(before[name], after[name]) for name in after}
        append_line(folder / "ledger.jsonl", exact_json(asdict(summary), name="the ledger"))
    return summary


Outcome = list[dict[str, Any]] | Exception | None


def _work(
    jobs: Sequence[_Job], done: Mapping[str, Sequence[Mapping[str, Any]]], parts: Parts, settings: TrajectorySettings
) -> Iterator[tuple[int, _Job, Outcome]]:
    """The outcomes of all jobs in their order: rows, an error, or None for what was there before."""
    usage = _LaggedUsage(settings.usage_lag)
    waiting: deque[tuple[_Job, Future[list[dict[str, Any]]] | None]] = deque()
    # At most `usage_lag` jobs are open at a time: what a job may see of the others is finished when it starts.
    window = min(settings.usage_lag, 4 * settings.connections)
    upcoming = iter(jobs)
    finished = 0
    with ThreadPoolExecutor(settings.connections, thread_name_prefix="trajectories") as pool:
        try:
            while True:
                while len(waiting) < window and (job := next(upcoming, None)) is not None:
                    seen = usage.before(finished + len(waiting))
                    waiting.append((job, None if job.name in done else _submit(pool, job, parts, settings, seen)))
                if not waiting:
                    return
                job, future = waiting.popleft()
                outcome: Outcome = None if future is None else _result(future)
                rows = done.get(job.name, ()) if outcome is None else outcome if isinstance(outcome, list) else ()
                usage.add(row["tool_name"] for row in rows)
                finished += 1
                yield finished, job, outcome
        finally:
            for _, future in waiting:
                if future is not None:
                    future.cancel()


def _submit(
    pool: ThreadPoolExecutor, job: _Job, parts: Parts, settings: TrajectorySettings, usage: Mapping[str, int]
) -> Future[list[dict[str, Any]]]:
    return pool.submit(
        make_trajectory, job.question, parts, settings, usage=usage, split=job.split, sample_id=job.sample_id
    )


def _result(future: Future[list[dict[str, Any]]]) -> list[dict[str, Any]] | Exception:
    try:
        return future.result()
    except (ServerFailed, AnswerInvalid) as error:
        return error


class _LaggedUsage:
    """How often each action was chosen by all jobs but the last `lag` before one."""

    def __init__(self, lag: int) -> None:
        self._lag = lag
        self._recent: deque[Counter[str]] = deque()
        self._total: Counter[str] = Counter()
        self._counted = 0

    def add(self, actions: Iterable[str]) -> None:
        """Enters the next job's choices."""
        self._recent.append(Counter(actions))

    def before(self, index: int) -> dict[str, int]:
        """The counts that job `index` may see; indices must not fall."""
        while self._counted < index - self._lag:
            self._total += self._recent.popleft()
            self._counted += 1
        return dict(self._total)


def _store(folder: Path, job: _Job, outcome: Outcome, summary: Summary) -> None:
    """Writes one job's outcome; its rows go to the file in one write."""
    if outcome is None:
        summary.skipped += 1
    elif isinstance(outcome, list):
        lines = [exact_json(row, name=f"row '{row['row_id']}'") for row in outcome]
        append_line(folder / "rows.jsonl", "\n".join(lines))
        summary.trajectories += 1
        summary.rows += len(outcome)
        summary.correct += bool(outcome[0]["is_correct"])
    else:
        summary.failed += 1
        summary.last_failure = f"{type(outcome).__name__}: {outcome}"
        note = {"trajectory_id": job.name, "error": summary.last_failure}
        append_line(folder / "failures.jsonl", exact_json(note, name="the failure"))


def read_trajectories(path: Path | str) -> Iterator[list[dict[str, Any]]]:
    """The complete trajectories of a rows file, each as its rows in order.

    Raises:
        StoreError: a line is no row of this schema or of a newer format, or rows of a trajectory are missing in the
            middle of the file.
    """
    path = Path(path)
    group: list[dict[str, Any]] = []
    for number, row in enumerate(read_jsonl(path), start=1):
        check_row(row, f"'{path}', line {number}")
        if row["step_idx"] != len(group) or (group and row["trajectory_id"] != group[0]["trajectory_id"]):
            raise StoreError(
                f"'{path}', line {number}: row '{row['row_id']}' does not follow the one before it; restore the file, "
                "or remove the rows of the broken trajectory"
            )
        group.append(row)
        if len(group) == row["num_steps"]:
            yield group
            group = []


def check_row(row: Mapping[str, Any], name: str) -> None:
    """Raises `StoreError` where a record is no row of this schema."""
    missing = [column for column in (*PUBLISHED_COLUMNS, *OWN_COLUMNS) if column not in row]
    if missing:
        raise StoreError(f"{name}: not a trajectory row: {', '.join(missing[:4])} missing; another schema?")
    for kind, columns in COLUMN_KINDS.items():
        for column in columns:
            if not _is_of_kind(row[column], kind):
                raise StoreError(f"{name}: wanted {KIND_NAMES[kind]} under '{column}', got {row[column]!r:.60}")
    if row["answer_letter"] is not None and not isinstance(row["answer_letter"], str):
        raise StoreError(f"{name}: wanted a letter or null under 'answer_letter', got {row['answer_letter']!r:.60}")
    if row["format_version"] > FORMAT_VERSION:
        raise StoreError(f"{name}: row format {row['format_version']}, this firesteel reads {FORMAT_VERSION}; upgrade")


def _is_of_kind(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if isinstance(value, list) and kind is list:
        return all(isinstance(each, str) for each in value)
    return isinstance(value, kind)


def repair(path: Path) -> None:
    """Cuts off what an interrupted write left at the end of a rows file: a torn line, an incomplete trajectory."""
    if not path.exists():
        return
    content = path.read_bytes()
    num_rows = sum(len(rows) for rows in read_trajectories(path))
    kept = b"".join(content.splitlines(keepends=True)[:num_rows])
    if kept != content:
        write_atomic(path, kept)


def cases(trajectories: Iterable[Sequence[Mapping[str, Any]]]) -> Iterator[Case]:
    """The steps of stored trajectories as judges see them."""
    for rows in trajectories:
        first = rows[0]
        question = Question(
            str(first["qid"]), first["question"], tuple(first["mcq_options"]), "", -1, first["category"]
        )
        situation = Situation.start(question)
        for row in rows:
            step = PastStep(row["thought"], row["tool_name"], row["action_query"], row["observation"])
            yield Case(situation, row["thought"], row["candidate_actions"], step)
            situation = situation.after(step)


def _check_settings(folder: Path, settings: TrajectorySettings, description: Mapping[str, Any], parts: Parts) -> None:
    """Stores what the rows depend on, or compares it with what was stored."""
    wanted = {
        "steps": settings.steps, "samples": settings.samples, "seed": settings.seed, "usage_lag": settings.usage_lag,
        "tools": sorted(parts.tools), "writer": parts.writer.name, "judge": parts.judge.name,
        "selector": repr(parts.selector), "description": dict(description), "format_version": FORMAT_VERSION,
    }  # fmt: skip
    path = folder / "settings.json"
    if not path.exists():
        write_json_atomic(path, wanted)
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    different = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
    if different:
        raise ConfigError(
            f"'{folder}' was begun with other settings: {different[0]} was {stored.get(different[0])!r} and is "
            f"{wanted.get(different[0])!r}; take another directory, or the old settings"
        )


def _spent(before: Ledger, after: Ledger) -> dict[str, int]:
    old = asdict(before)
    return {name: value - old[name] for name, value in asdict(after).items()}


def estimate(
    questions: Sequence[Question],
    tools: Mapping[str, Tool],
    settings: TrajectorySettings,
    *,
    prompt_price: float = 0.0,
    completion_price: float = 0.0,
) -> dict[str, float]:
    """What a run with an `llm` judge would cost; nothing is sent and no tool runs.

    Tokens are estimated at four characters each, from the prompts of up to `SAMPLED_QUESTIONS` questions and steps of
    typical length. Prices are for a million tokens. Scoring and the verdict are one call each for every row.
    """
    sampled = questions[:: max(1, len(questions) // SAMPLED_QUESTIONS)][:SAMPLED_QUESTIONS]
    queries = dict.fromkeys([*tools, COT], "x" * TYPICAL_QUERY)
    typical = PastStep("x" * TYPICAL_QUERY, "calculator", "x" * TYPICAL_QUERY, "x" * TYPICAL_OBSERVATION)
    characters = 0
    for question in sampled:
        situation = Situation.start(question)
        for _ in range(settings.steps):
            for messages in (
                scoring_messages(situation, typical.thought, queries),
                process_messages(situation, typical),
            ):
                characters += sum(len(message["content"]) for message in messages)
            situation = situation.after(typical)
    trajectories = len(questions) * settings.samples
    rows = trajectories * settings.steps
    prompt_tokens = characters / CHARACTERS_PER_TOKEN / max(1, len(sampled)) * trajectories
    completion_tokens = rows * (len(queries) * TOKENS_PER_SCORE + TOKENS_PER_VERDICT)
    cost = (prompt_tokens * prompt_price + completion_tokens * completion_price) / 1e6
    return {
        "trajectories": trajectories,
        "rows": rows,
        "judge_calls": 2 * rows,
        "judge_prompt_tokens": round(prompt_tokens),
        "judge_completion_tokens": completion_tokens,
        "judge_cost": cost,
    }
