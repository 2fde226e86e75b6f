"""CPU seconds of a whole RL step (rollout and update) on `household`, ours and TRL's, interleaved; a table and JSON.

Both train every weight of the same supervised checkpoint, in float32, one optimiser step a rollout, on the same tasks
with as many episodes each. A game goes on after it is won, so that every episode has the same number of turns. TRL gets
the game as `environment_factory`; its parser of tool calls is replaced by one that makes a call of every response,
since the model writes `<action>` and not JSON, and the last call of an episode is not played. `chain` grows what TRL
grows, and leaves no row out of its update; `tree` is quickstart's: half the roots, forked at `<explore>`, rows without
an advantage left out.

    pip install trl==1.16.0
    python benchmarks/rl_step.py --output benchmarks/results/rl_step.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from _run import run

from firesteel.config import Config
from firesteel.context import parse_response
from firesteel.environments.household import Household
from firesteel.errors import MissingDependency
from firesteel.packing import pack
from firesteel.policy import load_tasks
from firesteel.prompts import PROMPTS
from firesteel.train import next_trees, open_session, set_up_torch
from firesteel.types import Observation, StepResult, Task

MODEL = Path(__file__).parents[1] / "recipes" / "models" / "household"
RESPONSE_TOKENS = 24
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + ('user' if message['role'] == 'tool' else message['role']) + '|>' + message['content'] }}"
    "{% if message['tool_calls'] and not message['content'] %}{{ message['tool_calls'] | tojson }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|eos|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The model's own template, for which a tool's answer is what the user says; TRL wants calls to be rendered, too."""
VARIANTS: dict[str, dict[str, Any]] = {"best": {"bf16": False, "gradient_checkpointing": False}, "defaults": {}}
"""Of TRL: its defaults recompute activations and run in bfloat16, which does not pay for a model of this size."""


class EndlessHousehold(Household):
    """A game that goes on after it is won."""

    def step(self, action: str) -> StepResult:
        found = super().step(action)
        self._is_over = False
        return replace(found, terminated=False)


class Game:
    """The same game as TRL wants it: public methods are tools."""

    def __init__(self) -> None:
        self._environment = EndlessHousehold(size="small", admissible=False)
        self._tasks: dict[str, Task] = {task.id: task for task in load_tasks(settings("tasks", {}), "train", None)}
        self._success = False

    def reset(self, task_id: str, **_: object) -> str:
        self._success = False
        return self._written(self._environment.reset(self._tasks[task_id], seed=0))

    def act(self, command: str) -> str:
        """Plays one command.

        Args:
            command: What to do.
        """
        found = self._environment.step(command)
        self._success = self._success or bool(found.info["success"])
        return self._written(found.observation)

    def get_reward(self) -> float:
        return float(self._success)

    def _written(self, observation: Observation) -> str:
        write: Callable[..., str] = PROMPTS["goal_last"].turn  # type: ignore[union-attr]
        return write(goal=self._environment.goal, observation=observation.text, admissible=None)


def settings(name: str, rollout: dict[str, Any], tasks: int = 8, turns: int = 6) -> Config:
    """Our side: chains or trees of eight leaves, one optimiser step."""
    return Config.build(
        {
            "name": name, "runs_dir": tempfile.gettempdir(), "steps": 10_000, "tasks_per_step": tasks,
            "model": {"path": str(MODEL), "device": "cpu"},
            "environment": {"name": "rl_step:EndlessHousehold", "options": {"size": "small", "admissible": False}},
            "context": {"mode": "full", "prompts": "goal_last"},
            "rollout": {"num_leaves": 8, "max_turns": turns, "max_response_tokens": RESPONSE_TOKENS, **rollout},
            "reward": {"invalid_penalty": 0.0},
            "learner": {"lr": 1e-6, "minibatches": 1, "skip_dead_rows": name == "tree"},
        }
    )  # fmt: skip


class OurSteps:
    """One arm of ours, a step at a time: what `train` does between two lines of its log."""

    def __init__(self, name: str, rollout: dict[str, Any], tasks: int, turns: int) -> None:
        self.session, self.count = open_session(settings(name, rollout, tasks, turns)), 0

    def __call__(self) -> int:
        """The tokens that the step generated."""
        session, before = self.session, self.session.generated_tokens
        trees = next_trees(session, self.count, {})
        batch = pack(trees, weighting=session.config.advantage.weighting, aggregation=session.config.loss.aggregation)
        session.learner.update(batch)
        session.policy.generator.load_weights(session.learner.weights(), version=session.learner.updates)
        self.count += 1
        return session.generated_tokens - before


def trl_steps(variant: dict[str, Any], tasks: int, turns: int, repeats: int, others: dict[str, OurSteps]) -> Any:
    """Trains with TRL, and takes a step of every other arm after each of its steps; seconds and tokens by arm."""
    import datasets
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    from trl.trainer import grpo_trainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = TEMPLATE
    tokenizer.response_template = {}  # none is used: see `parse`
    sampled = {"tokens": 0}

    def parse(tokenizer: Any, ids: list[int], **_: object) -> dict[str, Any]:
        sampled["tokens"] += len(ids)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        call = {"name": "act", "arguments": {"command": parse_response(text).action or "look"}}
        return {"role": "assistant", "content": text, "tool_calls": [{"type": "function", "function": call}]}

    taken: dict[str, list[float]] = {name: [] for name in ("trl", *others)}
    tokens: dict[str, list[int]] = {name: [] for name in taken}

    class Interleave(TrainerCallback):
        def on_step_begin(self, *_: object, **__: object) -> None:
            sampled["tokens"], self.begin = 0, time.process_time()

        def on_step_end(self, *_: object, **__: object) -> None:
            taken["trl"].append(time.process_time() - self.begin)
            tokens["trl"].append(sampled["tokens"])
            for name, step in others.items():
                begin = time.process_time()
                tokens[name].append(step())
                taken[name].append(time.process_time() - begin)

    grpo_trainer.parse_response = parse
    rows = [{"prompt": [{"role": "user", "content": ""}], "task_id": task.id}
            for task in load_tasks(settings("tasks", {}), "train", tasks * (repeats + 1))]  # fmt: skip
    args = GRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=repeats + 1, per_device_train_batch_size=8 * tasks, num_generations=8,
        max_completion_length=turns * 110, max_tool_calling_iterations=turns - 1, learning_rate=1e-6, beta=0.0,
        generation_kwargs={"max_new_tokens": RESPONSE_TOKENS}, temperature=1.0, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, model_init_kwargs={"dtype": "float32"}, **variant,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=str(MODEL), args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
        environment_factory=Game, callbacks=[Interleave()],
    )  # fmt: skip
    trainer.train()
    return taken, tokens


def compared(taken: dict[str, list[float]], tokens: dict[str, list[int]]) -> dict[str, Any]:
    """Medians after the first step, which warms up, and how many times longer TRL took, step by step."""
    result: dict[str, Any] = {}
    for name, seconds in taken.items():
        ratios = [one / other for one, other in zip(taken["trl"][1:], seconds[1:], strict=True)]
        result[name] = {
            "cpu_s": round(statistics.median(seconds[1:]), 3), "generated_tokens": statistics.median(tokens[name][1:]),
            "times_faster": round(statistics.median(ratios), 2),
            "least": round(min(ratios), 2), "most": round(max(ratios), 2),
        }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=8, help="tasks a step; each has eight episodes")
    parser.add_argument("--turns", type=int, nargs="+", default=[6, 12], help="turns of every episode")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each arm after one that warms up")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="settings of TRL")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="the machine, in words")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        raise MissingDependency("TRL is not installed: pip install trl==1.16.0")
    set_up_torch(settings("tasks", {}))
    rows = []
    for turns in options.turns:
        for name in options.variants:
            others = {
                "chain": OurSteps("chain", {"criterion": "chain", "num_roots": 8}, options.tasks, turns),
                "tree": OurSteps("tree", {"criterion": "explore_tag", "num_roots": 4}, options.tasks, turns),
            }
            found = compared(*trl_steps(VARIANTS[name], options.tasks, turns, options.repeats, others))
            rows.append({"benchmark": "rl_step", "turns": turns, "against": name, "tasks": options.tasks, **found})
            print(json.dumps(rows[-1]), flush=True)
    if options.output:
        about = {"date": str(date.today()), "machine": options.machine,
                 "torch": torch.__version__, "transformers": transformers.__version__,
                 "trl": importlib.metadata.version("trl"), "rows": rows}  # fmt: skip
        options.output.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    run(__file__, main)
