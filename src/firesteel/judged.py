"""Judged trajectories as scored trees: what a step is worth, which steps are learnt from, and their token ids.

    R_t = rho (best_t - chosen_t) / scale - (1 - rho)(1 - process_ok_t)            (the reward of SPaRK)

The text is tokenised once, here; the ids of the tree are the record from then on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from firesteel.annotate import EpisodeStep, ExpertEpisode
from firesteel.config import PpoConfig
from firesteel.config_ppo import RowFilter
from firesteel.context import ContextBuilder
from firesteel.demonstrations import Write, episode_texts, episode_tree
from firesteel.environments.question_rows import ANSWER, GOAL, LETTERS, Question, format_question, read_answer
from firesteel.errors import ConfigError, StoreError
from firesteel.prompts import TAGS, format_response
from firesteel.trajectories import read_trajectories
from firesteel.tree import Leaf, Tree

TrajectoryRow = Mapping[str, Any]
Trajectory = Sequence[TrajectoryRow]

HIGHEST_SCORE = 10.0
ANSWER_THOUGHT = "That is enough to answer."


# what a step is worth


def step_reward(row: TrajectoryRow, settings: PpoConfig) -> float:
    """R of one step, in [-(1 - rho), rho 10] on the raw scale and without `outcome_weight`.

    Differs from the paper: the scale of the gap is a setting (the paper names none), and `outcome_weight` may add the
    answer's correctness. With `reward: score` R is chosen / 10 (SWiRL rewards the judge's opinion of the action).
    """
    outcome = settings.outcome_weight * float(bool(row["is_correct"]))
    if settings.reward == "score":
        return float(row["chosen_score"]) / HIGHEST_SCORE + outcome
    gap = float(row["best_score"]) - float(row["chosen_score"])
    if settings.reward_scale == "unit":
        gap /= HIGHEST_SCORE
    return settings.rho * gap - (1.0 - settings.rho) * float(not row["process_ok"]) + outcome


def is_kept(row: TrajectoryRow, rows: Trajectory, row_filter: RowFilter) -> bool:
    """Whether a step of a trajectory is learnt from."""
    if row_filter == "all_process_ok":
        return all(bool(each["process_ok"]) for each in rows)
    is_sound = row_filter not in ("process_ok", "process_ok_and_correct") or bool(row["process_ok"])
    return is_sound and (row_filter not in ("correct", "process_ok_and_correct") or bool(row["is_correct"]))


def require_variance(rewards: Sequence[float], rows: Trajectory, settings: PpoConfig) -> None:
    """Raises `ConfigError` where all steps are worth the same: nothing could be learnt from them.

    The message says what became of each term of the reward.
    """
    if not rewards:
        raise ConfigError(f"ppo.filter '{settings.filter}' leaves no step of the trajectories; take a weaker filter")
    if max(rewards) - min(rewards) > 1e-9:
        return
    gaps = {row["best_score"] - row["chosen_score"] for row in rows}
    verdicts = {bool(row["process_ok"]) for row in rows}
    if settings.reward == "score":
        terms = [f"chosen_score is {rows[0]['chosen_score']} on every step"]
    else:
        gap = f"best - chosen is {gaps.pop():g} on every step" if len(gaps) == 1 else "best - chosen varies"
        verdict = f"process_ok is {str(verdicts.pop()).lower()} on every step" if len(verdicts) == 1 else "it varies"
        terms = [f"{gap} and has the weight rho = {settings.rho:g}"]
        terms.append(f"{verdict if 'process_ok' in verdict else 'process_ok varies'} and has the weight "
                     f"{1 - settings.rho:g}")  # fmt: skip
    raise ConfigError(
        f"the reward has no variance over the {len(rewards)} steps (R = {rewards[0]:g}): {'; '.join(terms)}; "
        f"ppo.filter is '{settings.filter}'. Take another ppo.rho, ppo.filter none, trajectories of another selector "
        "('best' leaves no gap), or set ppo.outcome_weight"
    )


# trees


def trajectory_episode(rows: Trajectory, *, with_answer: bool, answer: str = "letter") -> ExpertEpisode:
    """The trajectory as the episode that a policy would play: `tool: query` in each step, at last the answer.

    The answer is the option's letter, or with `answer="words"` the option's own words where these mean no other.
    """
    first = rows[0]
    question = Question(str(first["qid"]), first["question"], tuple(first["mcq_options"]), "", -1, first["category"])
    seen = [format_question(question), *(str(row["observation"]) for row in rows)]
    actions = [f"{row['tool_name']}: {row['action_query']}" for row in rows]
    thoughts = [str(row["thought"]) for row in rows]
    if with_answer and first["answer_letter"] is not None:
        said = letter = str(first["answer_letter"])
        if answer == "words":
            words = first["mcq_options"][LETTERS.index(letter)]
            # Words that are read as another option ("B" of an option A), or as none, would teach a wrong answer.
            said = words if read_answer(plain(words), first["mcq_options"]) == letter else letter
        actions.append(f"{ANSWER}: {said}")
        thoughts.append(ANSWER_THOUGHT)
    steps = tuple(
        EpisodeStep(plain(observation), plain(action), False, plain(thought) or "Go on.")
        for observation, action, thought in zip(seen, actions, thoughts, strict=False)
    )
    return ExpertEpisode(
        task_id=str(first["trajectory_id"]), kind=first["category"], split=first["split"], seed=int(first["sample_id"]),
        goal=GOAL, steps=steps, final_observation=plain(seen[-1]), success=bool(first["is_correct"]),
        annotator=str(first["judge"]),
    )  # fmt: skip


def trajectory_tree(
    rows: Trajectory,
    context: ContextBuilder,
    kept: Sequence[bool],
    rewards: Sequence[float],
    *,
    answer_reward: float | None = None,
    action: str = "thought_and_call",
    answer: str = "letter",
) -> Tree:
    """A tree of one leaf whose response nodes are the kept steps; what is left out stays as fed context.

    `step_rewards` has one entry per response node. The answer is a step of its own, kept where `answer_reward` is
    given. With `action="call"` the thought is fed, and the tokens from `<action>` on are the response. `answer` as for
    `trajectory_episode`.
    """
    has_answer = answer_reward is not None and rows[0]["answer_letter"] is not None
    source = episode_tree(trajectory_episode(rows, with_answer=has_answer, answer=answer), context)
    wanted = [*kept, *([True] if has_answer else [])]
    values = [*rewards, *([answer_reward] if has_answer else [])]
    tree = Tree(source.task, source.goal, source.observation, group=str(rows[0]["qid"]))
    step_rewards: list[float] = []
    last = -1
    for node in source.nodes:
        fields: dict[str, Any] = {"restart": node.restart}
        fed, sampled = (node.token_ids, []) if node.role == "prompt" else ([], node.token_ids)
        if node.role == "response":
            fields["step"] = node.step
            if not wanted[node.turn]:
                fed, sampled = sampled, []
            elif action == "call":
                split = _call_start(node.step.text if node.step else "", sampled, context)
                fed, sampled = sampled[:split], sampled[split:]
        if fed:
            last = tree.add(last, "prompt", node.turn, fed, **(fields if not sampled else {})).index
        if sampled:
            last = tree.add(last, "response", node.turn, sampled, **fields).index
            value = values[node.turn]
            assert value is not None
            step_rewards.append(float(value))
    leaf = source.leaves[0]
    tree.leaves.append(
        Leaf(0, last, 0, status="finished", success=leaf.success, score=leaf.score, step_rewards=step_rewards,
             reward=sum(step_rewards), masked=not step_rewards)
    )  # fmt: skip
    return tree


def _call_start(text: str, token_ids: Sequence[int], context: ContextBuilder) -> int:
    """How many tokens of a response lie before its call; one that holds a part of both belongs to the call."""
    before = context.encode_response(text[: max(0, text.find("<action>"))])[:-1]
    shared = 0
    while shared < len(before) and before[shared] == token_ids[shared]:
        shared += 1
    return shared


def plain(text: str) -> str:
    """A text without the tags that structure responses, which a model may have written inside."""
    for tag in TAGS:
        text = text.replace(tag, "")
    return text.strip()


# files


def is_trajectory_file(path: Path | str) -> bool:
    """Whether a JSONL file holds rows of judged trajectories rather than episodes, by its first line."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            record = json.loads(next(islice(file, 1), "null"))
    except FileNotFoundError as error:
        raise StoreError(f"'{path}' does not exist; write trajectories with `firesteel trajectories`") from error
    except ValueError:
        return False
    return isinstance(record, dict) and "trajectory_id" in record


def load_trajectories(paths: Iterable[Path | str]) -> list[list[dict[str, Any]]]:
    """The trajectories of some files.

    Raises:
        StoreError: there is none, a row is of another schema, or an answer is a letter beyond the options.
    """
    files = list(paths)
    found = [rows for path in files for rows in read_trajectories(path)]
    if not found:
        raise StoreError(f"{', '.join(map(str, files))}: no trajectory; write some with `firesteel trajectories`")
    for rows in found:
        letter, known = rows[0]["answer_letter"], LETTERS[: len(rows[0]["mcq_options"])]
        if letter is not None and letter not in tuple(known):
            raise StoreError(
                f"trajectory '{rows[0]['trajectory_id']}': the answer '{letter}' is none of the options "
                f"{f'{known[0]} to {known[-1]}' if known else '(there are none)'}; remove its rows"
            )
    return found


def trajectory_texts(paths: Iterable[Path | str], write: Write = format_response) -> Iterator[str]:
    """All text of some files: what a small model's tokenizer is trained on."""
    for rows in load_trajectories(paths):
        yield from episode_texts(trajectory_episode(rows, with_answer=True), write)
