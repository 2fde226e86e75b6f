"""SPARK in one flat file, to be read from top to bottom: roll out, fork at <explore>, compare leaves, clip, update.

    python recipes/minimal.py MODEL_DIR --steps 2

Plain torch and transformers: every turn reads its whole context again, and every leaf is a row of its own. Only the
environment and the reading and writing of turns come from the library. `firesteel train minimal model.path=MODEL_DIR`
trains the same settings with the library, which is fast; a test holds both to the same loss and gradients.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from firesteel.context import ContextBuilder, parse_response
from firesteel.environments.household import Household
from firesteel.types import Task


@dataclass
class Settings:
    """What can be set from the command line. N, M, B and K are the letters of the paper."""

    steps: int = 20
    tasks_per_step: int = 8
    num_leaves: int = 8  # N
    num_roots: int = 4  # M
    width: int = 2  # B
    max_turns: int = 20  # K
    max_response_tokens: int = 24
    temperature: float = 1.0
    invalid_penalty: float = 0.01
    baseline: str = "leave_one_root_out"  # or "group_mean"
    clip: float = 0.2
    minibatches: int = 2
    learning_rate: float = 1e-3
    seed: int = 0
    size: str = "small"


@dataclass
class Turn:
    """What the model was fed, and what it sampled. Leaves that share a turn share the object."""

    fed: list[int]
    sampled: list[int]
    logprobs: list[float]
    reward: float


@dataclass
class Leaf:
    """One episode. Its weight is 1/M times the product of 1/b over the branchings on its path."""

    root: int
    environment: Household
    fed: list[int]
    weight: float
    turns: list[Turn] = field(default_factory=list)
    success: bool = False
    is_over: bool = False

    def prompt(self) -> list[int]:
        """All tokens so far, up to where the next response begins."""
        return [token for turn in self.turns for token in (*turn.fed, *turn.sampled)] + self.fed


Groups = list[list[Leaf]]
"""For each task its leaves, at most N."""
Answer = tuple[list[int], list[float]]


def grow(tasks: list[Task], model: Any, context: ContextBuilder, settings: Settings, rng: random.Random) -> Groups:
    """Rolls out; all active leaves take their turn together. A leaf ends where the model's context does."""
    groups = [start(task, context, settings) for task in tasks]
    most = model.config.max_position_embeddings - settings.max_response_tokens
    for turn in range(settings.max_turns):
        alive = [(group, leaf) for group in groups for leaf in group if not leaf.is_over]
        active = [(group, leaf) for group, leaf in alive if len(leaf.prompt()) <= most]
        answers = sample(model, context, [leaf.prompt() for _, leaf in active], settings) if active else []
        branching = []
        for (group, leaf), (tokens, logprobs) in zip(active, answers, strict=True):
            explores = play(leaf, tokens, logprobs, context, settings)
            if explores and not leaf.is_over and turn + 1 < settings.max_turns:
                branching.append((group, leaf))
        rng.shuffle(branching)  # so that no leaf is always the first to spend the budget
        for group, leaf in branching:
            branch(group, leaf, settings)
    return groups


def start(task: Task, context: ContextBuilder, settings: Settings) -> list[Leaf]:
    """M leaves in the task's first state."""
    environment = Household(size=settings.size, admissible=False)
    fed = context.first(environment.goal, environment.reset(task, seed=task.seed))
    roots = range(settings.num_roots)
    return [Leaf(root, environment.fork(), fed, weight=1 / settings.num_roots) for root in roots]


def play(leaf: Leaf, tokens: list[int], logprobs: list[float], context: ContextBuilder, settings: Settings) -> bool:
    """Executes a sampled response; returns whether it explores."""
    response = parse_response(context.decode_response(tokens))
    leaf.turns.append(Turn(leaf.fed, tokens, logprobs, 0.0 if response.valid else -settings.invalid_penalty))
    result = leaf.environment.step(response.action or "")
    leaf.success, leaf.is_over = result.info["success"], result.terminated
    leaf.fed = context.next_turn(context.ended(tokens), leaf.environment.goal, result.observation)
    return response.explore


def branch(group: list[Leaf], leaf: Leaf, settings: Settings) -> None:
    """Forks a leaf after its explore step: b = max(1, min(B, N - N_current + 1)) continuations, Eq. (7) of SPARK."""
    granted = max(1, min(settings.width, settings.num_leaves - len(group) + 1))
    leaf.weight /= granted
    for _ in range(granted - 1):
        group.append(replace(leaf, environment=leaf.environment.fork(), turns=list(leaf.turns)))


@torch.no_grad()
def sample(model: Any, context: ContextBuilder, prompts: list[list[int]], settings: Settings) -> list[Answer]:
    """A response to each prompt: token ids and their log-probabilities under the distribution drawn from."""
    longest = max(map(len, prompts))
    feed = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    answers: list[Answer] = [([], []) for _ in prompts]
    is_open, cache = [True] * len(prompts), None
    for _ in range(settings.max_response_tokens):
        sequence = {"attention_mask": seen, "position_ids": positions, "past_key_values": cache}
        output = model(input_ids=feed, logits_to_keep=1, **sequence)
        cache = output.past_key_values
        logprobs = torch.log_softmax(output.logits[:, -1].float() / settings.temperature, dim=-1)
        feed = torch.multinomial(logprobs.exp(), 1)
        for row, token in enumerate(feed[:, 0].tolist()):
            if is_open[row]:
                answers[row][0].append(token)
                answers[row][1].append(logprobs[row, token].item())
                is_open[row] = token not in context.stop_token_ids
        if not any(is_open):
            break
        seen, positions = torch.cat([seen, torch.ones_like(feed)], dim=-1), positions[:, -1:] + 1
    return answers


@dataclass
class Row:
    """A leaf as the loss sees it: what the row counts, and lists with one entry a token."""

    weight: float
    tokens: list[int] = field(default_factory=list)
    is_sampled: list[bool] = field(default_factory=list)
    old_logprobs: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)


def make_rows(group: list[Leaf], settings: Settings) -> list[Row]:
    """The rows of one task. The advantage of a step is the leaf's outcome plus the step's reward, minus a baseline.

    The baseline is the weighted mean over the leaves of the other roots, or over all leaves ("group_mean").
    """
    scores = [leaf.success + sum(turn.reward for turn in leaf.turns) / max(1, len(leaf.turns)) for leaf in group]
    rows = []
    for leaf, own in zip(group, scores, strict=True):
        is_compared = [settings.baseline == "group_mean" or other.root != leaf.root for other in group]
        weights = [other.weight * counts for other, counts in zip(group, is_compared, strict=True)]
        total = sum(weight * score for weight, score in zip(weights, scores, strict=True))
        baseline = total / sum(weights) if any(weights) else own
        row = Row(leaf.weight)
        for turn in leaf.turns:
            advantage = leaf.success + turn.reward - baseline
            row.tokens += turn.fed + turn.sampled
            row.is_sampled += [False] * len(turn.fed) + [True] * len(turn.sampled)
            row.old_logprobs += [0.0] * len(turn.fed) + turn.logprobs
            row.advantages += [0.0] * len(turn.fed) + [advantage] * len(turn.sampled)
        rows.append(row)
    return [row for row in rows if row.tokens]


def clipped_loss(model: Any, rows: list[Row], settings: Settings) -> torch.Tensor:
    """-sum over rows w * sum over sampled tokens min(r A, clip(r) A), r the new over the old probability."""
    longest = max(len(row.tokens) for row in rows)

    def padded(name: str) -> torch.Tensor:
        return torch.tensor([getattr(row, name) + [0] * (longest - len(row.tokens)) for row in rows])

    # Padding stands on the right, where no token that counts can see it.
    tokens, advantages = padded("tokens")[:, 1:], padded("advantages")[:, 1:]
    logits = model(input_ids=padded("tokens")).logits[:, :-1].float() / settings.temperature
    logprobs = torch.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    ratio = torch.exp(logprobs - padded("old_logprobs")[:, 1:])
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - settings.clip, 1 + settings.clip) * advantages)
    weights = padded("is_sampled")[:, 1:] * torch.tensor([[row.weight] for row in rows])
    return -(weights * objective).sum()


def accumulate(model: Any, rows: list[Row], settings: Settings) -> float:
    """Adds the gradient of the loss in pieces of eight rows; the denominator is that of all of them."""
    denominator = sum(row.weight * sum(row.is_sampled) for row in rows)
    rows, total = sorted(rows, key=lambda row: len(row.tokens)), 0.0
    for first in range(0, len(rows), 8):
        loss = clipped_loss(model, rows[first : first + 8], settings) / denominator
        loss.backward()
        total += loss.item()
    return total


def train(directory: str, settings: Settings) -> list[float]:
    """Trains the model of a directory and returns the success rate of every step."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    context = ContextBuilder(AutoTokenizer.from_pretrained(directory), "goal_last")
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    tasks = list(Household.tasks("train", size=settings.size))
    history = []
    for step in range(settings.steps):
        groups = grow(rng.sample(tasks, settings.tasks_per_step), model, context, settings, rng)
        rows = [row for group in groups for row in make_rows(group, settings)]
        rng.shuffle(rows)
        losses = []
        for part in range(settings.minibatches):
            optimizer.zero_grad()
            losses.append(accumulate(model, rows[part :: settings.minibatches], settings))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        leaves = [leaf for group in groups for leaf in group]
        history.append(sum(leaf.success for leaf in leaves) / len(leaves))
        print(f"step {step + 1}: leaves {len(leaves)}, success {history[-1]:.1%}, loss {sum(losses):+.4f}", flush=True)
    return history


def config() -> Any:
    """The same settings for the library: what `firesteel train minimal` trains."""
    from firesteel.config import Config

    own = Settings()
    rollout = ("num_leaves", "num_roots", "width", "max_turns", "max_response_tokens", "temperature")
    return Config.build(
        {
            "name": "minimal", "steps": own.steps, "tasks_per_step": own.tasks_per_step, "seed": own.seed,
            "model": {"path": str(Path(__file__).parent / "models" / "household")},
            "environment": {"name": "household", "options": {"size": own.size, "admissible": False}},
            "context": {"mode": "full", "prompts": "goal_last"},
            "rollout": {"criterion": "explore_tag"} | {name: getattr(own, name) for name in rollout},
            "reward": {"name": "outcome", "success": 1.0, "invalid_penalty": own.invalid_penalty},
            "advantage": {"weighting": "path", "baseline": own.baseline, "std": "none"},
            "loss": {"clip_low": own.clip, "clip_high": own.clip},
            "learner": {"lr": own.learning_rate, "minibatches": own.minibatches},
        }
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="SPARK on household, in one file.")
    parser.add_argument("model", help="a directory with a model and its tokenizer")
    for entry in fields(Settings):
        parser.add_argument("--" + entry.name.replace("_", "-"), type=type(entry.default), default=entry.default)
    arguments = vars(parser.parse_args())
    train(arguments.pop("model"), Settings(**arguments))
