"""Rows of judged trajectories, written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firesteel.trajectories import OWN_COLUMNS, PUBLISHED_COLUMNS

Step = tuple[str, float, float, bool]
"""Action, chosen score, best score, process_ok."""


def trajectory(number: int, steps: Sequence[Step], *, answer: str | None = "B", key: str = "B") -> list[dict[str, Any]]:
    """The rows of one trajectory about the question "which N"; queries and observations name its number."""
    rows = []
    for index, (action, chosen, best, sound) in enumerate(steps):
        known: dict[str, Any] = {
            "qid": f"q{number}", "sub_step_idx": index, "step_idx": index, "sample_id": 0,
            "question": f"which {number}", "thought": "go on", "tool_name": action, "action_query": f"left {number}",
            "observation": f"you did {index}",
            "reward_raw": best - chosen, "chosen_score": chosen, "best_score": best, "process_ok": sound,
            "mcq_options": ["mug", "desk", "shelf"], "correct_answer_letter": key,
            "candidate_actions": {action: "left"},
            "format_version": 1, "trajectory_id": f"q{number}/0", "row_id": f"q{number}/0/{index}", "split": "train",
            "category": "things", "num_steps": len(steps), "scores": {action: chosen}, "viable": [action],
            "is_fallback": False, "tool_ok": True, "answer_letter": answer, "is_correct": answer == key,
            "writer": "hand", "judge": "hand", "judge_sees_key": False, "behavior_logprobs": None,
        }  # fmt: skip
        rows.append({column: known.get(column, "") for column in (*PUBLISHED_COLUMNS, *OWN_COLUMNS)})
    return rows


def write_rows(path: Path, trajectories: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Writes a rows file and returns its path."""
    path.write_text("".join(json.dumps(row) + "\n" for rows in trajectories for row in rows))
    return str(path)
