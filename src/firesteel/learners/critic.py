"""The cross-fitted critic of offline PPO: what a step was expected to be worth, by one that never saw its question.

V(s) is an MLP on the last hidden state at the last token of the state. R is a function of the logged step, so a critic
that has seen the step reproduces R and A = R - V vanishes; with k folds, each step's value comes from the critic that
was trained on the other folds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firesteel.config import CriticConfig
from firesteel.errors import ConfigError, ModelError
from firesteel.generators.support import decoder_config, inner_model
from firesteel.learners.lora import add_lora
from firesteel.learners.passes import micro_batches
from firesteel.models import seeded
from firesteel.packing import Row
from firesteel.training_state import join_state, split_state


def state_columns(row: Row) -> np.ndarray:
    """The last token of each state: the one before every run of trained tokens, [S] for S steps in the row."""
    begins = row.loss_mask & ~np.concatenate([[False], row.loss_mask[:-1]])
    return np.flatnonzero(begins) - 1


def assign_folds(groups: Sequence[str], folds: int, *, seed: int) -> list[int]:
    """The fold of every entry: groups are dealt in turn from a seeded order, so that a group is never split.

    Raises:
        ConfigError: there are fewer groups than folds.
    """
    names = sorted(set(groups))
    if len(names) < folds or folds == 1:
        raise ConfigError(
            f"critic.folds is {folds}, and the trajectories are of {len(names)} questions: cross-fitting needs at "
            "least 2 folds and a question in each; set fewer folds, or 0 for no critic"
        )
    random.Random(f"{seed}/folds").shuffle(names)
    place = {name: index % folds for index, name in enumerate(names)}
    return [place[group] for group in groups]


def explained_variance(rewards: np.ndarray, values: np.ndarray) -> float:
    """1 - Var(R - V) / Var(R); 0 for a constant V, 1 for V = R, NaN where R has no variance."""
    variance = float(np.var(rewards))
    return 1.0 - float(np.var(rewards - values)) / variance if variance > 0 else float("nan")


class ValueModel(nn.Module):
    """A causal language model with adapters, and an MLP on its last hidden state whose output starts at zero."""

    def __init__(self, model: Any, config: CriticConfig, *, seed: int) -> None:
        """`model` is changed in place: its weights are frozen and adapters are put in."""
        super().__init__()
        self.model = add_lora(model, rank=config.rank, alpha=config.alpha, seed=seed)
        causal: Any = inner_model(self.model)
        decoder = getattr(causal, causal.base_model_prefix, None)
        if decoder is None or decoder is causal:
            raise ModelError(f"{type(causal).__name__} shows no hidden states, so no value head can read them")
        width = int(decoder_config(causal).hidden_size)
        with seeded(seed):
            hidden, last = nn.Linear(width, config.hidden), nn.Linear(config.hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(hidden, nn.Tanh(), last).to(self.model.device)

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """V of every step of the rows, row by row, [S], in fp32."""
        device = self.model.device
        columns = [state_columns(row) for row in rows]
        ids_BT = np.zeros((len(rows), max(len(row) for row in rows)), dtype=np.int64)
        for number, row in enumerate(rows):
            ids_BT[number, : len(row)] = row.token_ids
        row_S = np.concatenate([np.full(len(found), number) for number, found in enumerate(columns)])
        causal: Any = inner_model(self.model)
        decoder = getattr(causal, causal.base_model_prefix)
        # padded on the right, and attention is causal: no state sees padding
        hidden = decoder(input_ids=torch.from_numpy(ids_BT).to(device), use_cache=False).last_hidden_state
        states_SD = hidden[torch.from_numpy(row_S).to(device), torch.from_numpy(np.concatenate(columns)).to(device)]
        values: Tensor = self.head(states_SD.float()).squeeze(-1)
        return values


class CrossFittedCritic:
    """k critics on one frozen model, which takes on the adapters and the head of one fold at a time.

    Args:
        model: A copy of the model that training starts from; it becomes the critic's own.
        rows: Token streams; a step of a row is a run of its trained tokens.
        rewards: R of the steps of each row.
        groups: What a row is about (its question); rows of one group share a fold.
        most_tokens: Of one pass, padding included.
    """

    def __init__(
        self,
        model: Any,
        config: CriticConfig,
        rows: Sequence[Row],
        rewards: Sequence[Sequence[float]],
        groups: Sequence[str],
        *,
        seed: int = 0,
        most_tokens: int = 16384,
    ) -> None:
        self.config = config
        self.rows = list(rows)
        self.rewards = [np.asarray(each, dtype=np.float32) for each in rewards]
        self.seed = seed
        self.most_tokens = most_tokens
        self.fold_of_row = assign_folds(groups, config.folds, seed=seed)
        self.network = ValueModel(model, config, seed=seed)
        self._live = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        start = {name: value.detach().clone() for name, value in self._live.items()}
        self._weights = [{name: value.clone() for name, value in start.items()} for _ in range(config.folds)]
        self._optimizers = [
            torch.optim.AdamW(self._live.values(), lr=config.lr, weight_decay=0.0) for _ in range(config.folds)
        ]
        self.epochs_done = 0
        self.values = [np.zeros(len(each), dtype=np.float32) for each in self.rewards]
        self.metrics: dict[str, float] = {}

    def fit_epoch(self) -> None:
        """Trains the critic of every fold on the other folds, `critic.epochs` passes, and freezes the values anew."""
        losses = [self._fit(fold) for fold in range(self.config.folds)]
        self.epochs_done += 1
        for fold in range(self.config.folds):
            held_out = [index for index, of in enumerate(self.fold_of_row) if of == fold]
            for index, values in zip(held_out, self._predict(fold, held_out), strict=True):
                self.values[index] = values
        rewards, values = np.concatenate(self.rewards), np.concatenate(self.values)
        self.metrics = {
            "critic/loss": float(np.mean(losses)),
            "critic/explained_variance": explained_variance(rewards, values),
            "critic/reward_mean": float(rewards.mean()),
            "critic/reward_std": float(rewards.std()),
            "critic/value_mean": float(values.mean()),
            "critic/advantage_std": float((rewards - values).std()),
        }

    def advantages(self) -> list[np.ndarray]:
        """A = R - V_old for the steps of every row."""
        return [rewards - values for rewards, values in zip(self.rewards, self.values, strict=True)]

    def _fit(self, fold: int) -> float:
        """Trains one fold's critic; the mean squared error over its last pass, before each step."""
        self._take_on(fold)
        optimizer = self._optimizers[fold]
        seen = [index for index, of in enumerate(self.fold_of_row) if of != fold]
        self.network.train()
        errors: list[float] = []
        for turn in range(self.config.epochs):
            order = random.Random(f"{self.seed}/{fold}/{self.epochs_done}/{turn}").sample(seen, len(seen))
            errors = []
            for start in range(0, len(order), self.config.batch_rows):
                errors.append(self._step(optimizer, order[start : start + self.config.batch_rows]))
        self.network.eval()
        self._put_back(fold)
        return float(np.mean(errors))

    def _step(self, optimizer: torch.optim.Optimizer, chosen: Sequence[int]) -> float:
        """One optimiser step on some rows: the mean of (V - R)^2 over their steps."""
        rows = [self.rows[index] for index in chosen]
        count = sum(len(self.rewards[index]) for index in chosen)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for group in micro_batches([len(row) for row in rows], self.most_tokens):
            wanted = np.concatenate([self.rewards[chosen[place]] for place in group])
            values = self.network([rows[place] for place in group])
            loss = nn.functional.mse_loss(values, torch.from_numpy(wanted).to(values.device), reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self._live.values(), self.config.max_grad_norm)
        optimizer.step()
        return total

    @torch.no_grad()
    def _predict(self, fold: int, indices: Sequence[int]) -> Iterable[np.ndarray]:
        """V of the steps of some rows, by one fold's critic."""
        self._take_on(fold)
        self.network.eval()
        found: dict[int, np.ndarray] = {}
        for group in micro_batches([len(self.rows[index]) for index in indices], self.most_tokens):
            chosen = [indices[place] for place in group]
            values = self.network([self.rows[index] for index in chosen]).cpu().numpy()
            ends = np.cumsum([len(self.rewards[index]) for index in chosen])
            found.update(zip(chosen, np.split(values, ends[:-1]), strict=True))
        return [found[index] for index in indices]

    @torch.no_grad()
    def _take_on(self, fold: int) -> None:
        for name, parameter in self._live.items():
            parameter.copy_(self._weights[fold][name])

    @torch.no_grad()
    def _put_back(self, fold: int) -> None:
        for name, parameter in self._live.items():
            self._weights[fold][name].copy_(parameter)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors by name, JSON): critics, their optimisers, and the frozen values."""
        moments = [split_state(optimizer.state_dict()) for optimizer in self._optimizers]
        tensors = {"values": torch.from_numpy(np.concatenate(self.values))}
        for fold, (weights, (state, _)) in enumerate(zip(self._weights, moments, strict=True)):
            tensors |= {f"{fold}.weights.{name}": value for name, value in weights.items()}
            tensors |= {f"{fold}.optimizer.{name}": value for name, value in state.items()}
        scalars = [each for _, each in moments]
        return tensors, {"epochs_done": self.epochs_done, "optimizers": scalars, "metrics": self.metrics}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The inverse of `state`, for a critic made with the same arguments."""
        for fold, weights in enumerate(self._weights):
            prefix = f"{fold}.optimizer."
            moments = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self._optimizers[fold].load_state_dict(join_state(moments, state["optimizers"][fold]))
            for name, value in weights.items():
                value.copy_(tensors[f"{fold}.weights.{name}"])
        ends = np.cumsum([len(each) for each in self.rewards])
        self.values = np.split(tensors["values"].numpy().copy(), ends[:-1])
        self.epochs_done, self.metrics = int(state["epochs_done"]), dict(state["metrics"])
