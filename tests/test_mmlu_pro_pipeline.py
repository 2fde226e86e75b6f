"""MMLU-Pro from its file to an evaluation, by the command line: rows, SFT, PPO, with both kinds of judge.

The questions are ours, in MMLU-Pro's schema. Numbers of the runs are compared with ones that are computed here, from
the rows and from the model alone.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from judge_server import judge_server
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from firesteel.cli import app
from firesteel.trajectories import read_trajectories
from firesteel.tree import Tree

pytestmark = pytest.mark.slow

RHO = 0.5
FAULTS = "429,500,malformed,truncated,wrong"
TOOLS = "tools=[calculator, dates]"


def call(*arguments: str) -> dict[str, Any]:
    """What a command prints last."""
    result = CliRunner().invoke(app, [*arguments, "--json"])
    if result.exception is not None:
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def write_questions(path: Path, count: int = 60) -> None:
    """Sums, which the calculator settles, and questions that no tool answers, of two categories."""
    records = []
    for number in range(count):
        index = number % 4
        if number % 2:
            options = [str(2 * number + 7 + offset) for offset in range(-index, 4 - index)]
            asked, category = f"What is {number} + {number + 7}?", "math"
        else:
            options, asked, category = ["red", "green", "blue", "grey"], f"Which colour has lot {number}?", "other"
        records.append(
            {"question_id": number, "question": asked, "options": options, "answer": "ABCD"[index],
             "answer_index": index, "category": category, "src": "made", "cot_content": ""}
        )  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, rows of the template writer, a model trained on them, and settings for everything further."""
    place = tmp_path_factory.mktemp("mmlu_pro")
    write_questions(place / "questions.jsonl")
    settings = {
        "runs_dir": str(place / "runs"), "tasks_per_step": 12, "steps": 60,
        "environment": {
            "name": "mmlu_pro",
            "options": {"path": str(place / "questions.jsonl"), "tools": ["calculator", "dates"]},
        },
        "context": {"mode": "full", "prompts": "compact"},
        "rollout": {"criterion": "chain", "max_turns": 3, "max_response_tokens": 48},
        "advantage": {"weighting": "node"},
        "ppo": {"rho": RHO, "sft_filter": "correct"},
        "critic": {"folds": 2, "hidden": 16},
        "evaluation": {"num_tasks": 12},
    }  # fmt: skip
    (place / "rare.yaml").write_text(yaml.safe_dump(settings))
    call("trajectories", str(place / "template"), *questions(place), "--writer-option", "guess=true")
    tiny = "model.tiny={hidden: 48, layers: 2, heads: 2, kv_heads: 1, vocab_size: 400, max_context: 768}"
    call(*train(place, "sft", "template"), "learner.kind=sft", "learner.lr=1e-2", tiny)
    call("trajectories", str(place / "own"), *questions(place), "--writer", "policy", "--policy", model(place))
    return place


@pytest.fixture(scope="module")
def trees(folder: Path) -> list[dict[str, Any]]:
    """What one update on all rows, without a critic, stored of them."""
    base = f"model.path={model(folder)}/model"
    call(
        *train(folder, "plain", "template"), "learner.kind=ppo", base, "steps=1", "critic.folds=0", "tasks_per_step=60"
    )
    return [json.loads(line) for line in (folder / "runs" / "plain" / "judged_trees.jsonl").read_text().splitlines()]


def questions(folder: Path) -> list[str]:
    path = f"path={folder / 'questions.jsonl'}"
    return ["--environment", "mmlu_pro", "--split", "all", path, TOOLS, "--steps", "2"]


def train(folder: Path, name: str, *data: str) -> list[str]:
    paths = ", ".join(str(folder / each / "rows.jsonl") for each in data)
    return ["train", str(folder / "rare.yaml"), f"name={name}", f"data=[{paths}]"]


def model(folder: Path) -> str:
    return str(folder / "runs" / "sft")


def rows_of(folder: Path, name: str) -> list[list[dict[str, Any]]]:
    return list(read_trajectories(folder / name / "rows.jsonl"))


def metrics_of(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def reward(row: dict[str, Any]) -> float:
    """SPaRK's, on the raw scale."""
    gap: float = row["best_score"] - row["chosen_score"]
    return RHO * gap - (1 - RHO) * (not row["process_ok"])


def test_rows_of_the_template_are_checked_against_the_file(folder: Path) -> None:
    found = rows_of(folder, "template")
    file = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    key = {str(record["question_id"]): record["answer"] for record in file}
    assert len(found) == 60 and {rows[0]["qid"] for rows in found} == set(key)
    for rows in found:
        assert all(row["correct_answer_letter"] == key[row["qid"]] for row in rows)
        assert rows[0]["is_correct"] == (rows[0]["answer_letter"] == key[rows[0]["qid"]])
    by_category = {name: [rows for rows in found if rows[0]["category"] == name] for name in ("math", "other")}
    shares = {name: sum(rows[0]["is_correct"] for rows in each) / 30 for name, each in by_category.items()}
    assert shares["math"] > 0.6 and shares["other"] < 0.6  # the calculator knows; a guess has 1 of 4


def test_the_supervised_model_writes_rows_that_two_judges_score(folder: Path) -> None:
    with judge_server(FAULTS) as url:
        server = ["--base-url", url, "--model", "judge", "--cache", str(folder / "cache")]
        found = call(
            "trajectories", str(folder / "judged"), *questions(folder), *server, "--judge", "llm",
            "--writer", "policy", "--policy", model(folder), "--count", "12",
        )  # fmt: skip
        again = call("judge", "compare", str(folder / "judged"), "llm", *questions(folder)[:-2], *server)
    assert (found["trajectories"], found["failed"]) == (12, 0)
    spent = found["ledgers"]["judge"]
    assert spent["calls_sent"] > 48 and spent["answers_invalid"] > 0  # 2 calls for each of 24 rows, and retries
    assert again["n"] == 24
    for name, judge in (("own", "rules"), ("judged", "llm")):
        rows = [row for rows in rows_of(folder, name) for row in rows]
        assert {(row["writer"], row["judge"]) for row in rows} == {("policy", judge)}
        for row in rows:
            assert set(row["candidate_actions"]) == set(row["scores"]) == {"calculator", "dates", "cot"}
            assert row["best_score"] == max(row["scores"].values()) and row["reward_raw"] == pytest.approx(
                row["best_score"] - row["chosen_score"]
            )
            assert row["is_fallback"] == (not row["viable"])
    # The server scores by the length of a query; the chosen one is the lowest above 6, or else the best.
    for row in (row for rows in rows_of(folder, "judged") for row in rows):
        assert row["scores"] == {name: len(query) % 11 for name, query in row["candidate_actions"].items()}
        above = [score for score in row["scores"].values() if score > 6]
        assert row["chosen_score"] == (min(above) if above else row["best_score"])


def test_ppo_without_a_critic_starts_at_the_loss_that_its_rows_give(folder: Path, trees: list[dict[str, Any]]) -> None:
    """A = R and ratio 1: the loss is minus the mean over tokens of the reward of their step."""
    rows = {each[0]["trajectory_id"]: each for each in rows_of(folder, "template")}
    paid, tokens = 0.0, 0
    for record in trees:
        wanted = [reward(row) for row in rows[record["task"]["id"]]]
        assert record["leaves"][0]["step_rewards"] == pytest.approx(wanted)
        lengths = [len(node["token_ids"]) for node in record["nodes"] if node["role"] == "response"]
        paid += sum(length * value for length, value in zip(lengths, wanted, strict=True))
        tokens += sum(lengths)
    first = metrics_of(folder, "plain")[0]
    assert first["losses/policy"] == pytest.approx(-paid / tokens, abs=1e-5)
    assert first["losses/ratio_mean"] == first["losses/ratio_max"] == 1.0
    assert first["losses/kl"] == first["losses/squared_kl"] == 0.0


def test_old_log_probabilities_are_those_of_the_supervised_model(folder: Path, trees: list[dict[str, Any]]) -> None:
    network = AutoModelForCausalLM.from_pretrained(f"{model(folder)}/model", dtype=torch.float32)
    for tree in map(Tree.from_dict, trees[:5]):
        last = tree.leaves[0].node
        stream = torch.tensor([tree.stream(last)])
        with torch.no_grad():
            logprobs = network(stream).logits[0].log_softmax(-1)
        place = 0
        for node in tree.nodes:
            for offset, stored in enumerate(node.sampling_logprobs or []):
                at = place + offset
                assert stored == pytest.approx(float(logprobs[at - 1, stream[0, at]]), abs=1e-4)
            place += len(node.token_ids)


def test_ppo_with_a_critic_moves_and_the_result_is_evaluated(folder: Path) -> None:
    base = f"model.path={model(folder)}/model"
    call(
        *train(folder, "ppo", "template", "own"), "learner.kind=ppo", base, "steps=6", "learner.lr=1e-3",
        "learner.minibatches=2", "evaluation.every=3",
    )  # fmt: skip
    metrics = metrics_of(folder, "ppo")
    steps = [reward(row) for name in ("template", "own") for rows in rows_of(folder, name) for row in rows]
    mean = sum(steps) / len(steps)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in steps) / len(steps))
    assert metrics[0]["offline/steps"] == len(steps) == 240
    assert metrics[0]["critic/reward_mean"] == pytest.approx(mean, abs=1e-5)
    assert metrics[0]["critic/reward_std"] == pytest.approx(deviation, abs=1e-5)
    assert metrics[0]["critic/advantage_std"] > 0 and metrics[0]["critic/explained_variance"] < 1
    assert 0 < metrics[-1]["losses/kl"] <= 0.2 and "eval/tools/entropy" in metrics[-1]
    found = call("evaluate", str(folder / "runs" / "ppo"), "--split", "all", "evaluation.num_tasks=60")
    assert found["all"]["n"] == 60 and 0 <= found["all"]["low"] <= found["all"]["success"] <= found["all"]["high"]
    figures = found["figures"]
    assert {"tools/entropy/math", "tools/entropy/other", "tools/ok/calculator", "tools/rate/cot"} <= set(figures)
