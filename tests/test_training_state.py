"""Tests of firesteel.training_state."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from firesteel.checkpoint import load_checkpoint, save_checkpoint
from firesteel.errors import CheckpointError
from firesteel.training_state import capture_rng, join_state, restore_rng, split_state


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def identical(first: Any, second: Any) -> bool:
    """Equal in types, keys, order of keys and bits."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(identical(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(identical, first, second))
    return repr(first) == repr(second)


# Optimizers

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "adamw_amsgrad": lambda parameters: torch.optim.AdamW(
        parameters, lr=torch.tensor(0.1), amsgrad=True, foreach=False
    ),
    "two_groups": lambda parameters: torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1 * i} for i, p in enumerate(parameters)]
    ),
    "sgd_momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def descend(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.full((2, 3), 0.1 * (step + 1), dtype=next(model.parameters()).dtype)
        model(inputs).pow(2).sum().backward()
        optimizer.step()


def linear(dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    straight = linear(dtype)
    descend(straight, OPTIMIZERS[name](list(straight.parameters())), range(6))

    first = linear(dtype)
    optimizer = OPTIMIZERS[name](list(first.parameters()))
    descend(first, optimizer, range(3))
    moments, scalars = split_state(optimizer.state_dict())
    tensors = {"model": first.state_dict(), "optimizer": moments}
    path = save_checkpoint(tmp_path, 3, tensors=tensors, state={"optimizer": scalars}, config_hash="")

    loaded = load_checkpoint(path)
    state = join_state(loaded.tensors["optimizer"], loaded.state["optimizer"])
    assert identical(state, {**optimizer.state_dict()})
    second, forgetful = linear(dtype), linear(dtype)
    for model in (second, forgetful):
        model.load_state_dict(loaded.tensors["model"])
    resumed = OPTIMIZERS[name](list(second.parameters()))
    resumed.load_state_dict(state)
    descend(second, resumed, range(3, 6))
    assert torch.equal(second.weight, straight.weight) and torch.equal(second.bias, straight.bias)
    # Without its moments the optimizer ends elsewhere, so that the equality above says something.
    descend(forgetful, OPTIMIZERS[name](list(forgetful.parameters())), range(3, 6))
    assert not torch.equal(forgetful.weight, straight.weight)


def test_a_split_state_names_tensors_by_their_place() -> None:
    weight = torch.ones(2)
    tensors, values = split_state({"state": {0: {"exp_avg": weight}}, "betas": (0.9, [1, None]), "$odd": "x"})
    assert tensors == {"state.0.exp_avg": weight}
    assert values == {
        "$dict": [
            ["state", {"$dict": [[0, {"exp_avg": {"$tensor": "state.0.exp_avg"}}]]}],
            ["betas", {"$tuple": [0.9, [1, None]]}],
            ["$odd", "x"],
        ]
    }
    assert identical(
        join_state(tensors, through_json(values)),
        {"state": {0: {"exp_avg": weight}}, "betas": (0.9, [1, None]), "$odd": "x"},
    )


def test_split_and_join_refuse_what_they_cannot_give_back() -> None:
    with pytest.raises(CheckpointError, match=r"state at 'a\.1' is a set"):
        split_state({"a": [0, {1}]})
    tensors, values = split_state({"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="refers to the tensor 'a', which was not saved"):
        join_state({}, values)
    assert list(tensors) == ["a"]


# Random numbers


def draw_everywhere(generators: dict[str, Any]) -> list[Any]:
    """Draws of every kind; the normal ones come in pairs, of which the second waits inside the generator."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.normal(),
        np.random.randint(1 << 30, size=3).tolist(),
        torch.randn(3).tolist(),
        generators["python"].gauss(0, 1),
        generators["pcg"].integers(1 << 20, dtype=np.int32),
        generators["pcg"].normal(),
        generators["philox"].random(),
        generators["mersenne"].normal(),
        generators["sfc"].random(),
        torch.rand(3, generator=generators["torch"]).tolist(),
    ]


def new_generators(seed: int) -> dict[str, Any]:
    kinds = {"pcg": np.random.PCG64, "philox": np.random.Philox, "mersenne": np.random.MT19937, "sfc": np.random.SFC64}
    numpy_generators = {name: np.random.Generator(kind(seed)) for name, kind in kinds.items()}
    return {**numpy_generators, "python": random.Random(seed), "torch": torch.Generator().manual_seed(seed)}


@pytest.mark.parametrize("num_before", [0, 1, 2, 3])
def test_all_generators_go_on_where_they_were(num_before: int) -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    generators = new_generators(1)
    for _ in range(num_before):
        draw_everywhere(generators)
    record = through_json(capture_rng(generators))
    wanted = [draw_everywhere(generators) for _ in range(3)]
    others = new_generators(2)
    assert [draw_everywhere(others) for _ in range(3)] != wanted
    restore_rng(record, others)
    assert [draw_everywhere(others) for _ in range(3)] == wanted


def test_capturing_draws_nothing_and_is_stable() -> None:
    generators = new_generators(3)
    assert capture_rng(generators) == capture_rng(generators)
    restore_rng(capture_rng(generators), generators)
    assert capture_rng(generators) == capture_rng(new_generators(3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"saved generators \['a'\], given \[\]"),
        ({"a": random.Random(0)}, "generator 'a': saved state of kind 'numpy', given one of kind 'python'"),
        ({"a": np.random.Generator(np.random.MT19937(0))}, "generator 'a': saved state of a PCG64, given a MT19937"),
    ],
)
def test_other_generators_are_refused(given: dict[str, Any], message: str) -> None:
    record = capture_rng({"a": np.random.default_rng(0)})
    with pytest.raises(CheckpointError, match=message):
        restore_rng(record, given)


def test_missing_cuda_devices_are_told() -> None:
    record = capture_rng()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restore_rng(record)
    num_devices = torch.cuda.device_count()
    record["cuda"] = [record["torch"]] * (num_devices + 1)
    with pytest.warns(RuntimeWarning, match=f"of {num_devices + 1} CUDA devices were saved, {num_devices} are here"):
        restore_rng(record)
