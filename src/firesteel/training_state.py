"""The parts of a training state that are not plain tensors: random number generators and optimizers.

Everything is turned into JSON plus named tensors and back without losing a bit. JSON alone cannot say all of it, so
objects of one key carry the rest: `{"$tuple": [...]}`, `{"$dict": [[key, value], ...]}` for keys that are not strings,
`{"$tensor": name}` for a tensor kept elsewhere under `name`, `{"$array": [...], "dtype": "uint32"}` for a NumPy array,
`{"$bytes": base64}` for the state of a torch generator.
"""

from __future__ import annotations

import base64
import random
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firesteel.errors import CheckpointError

RandomSource = random.Random | np.random.Generator | torch.Generator


def split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A nested `state_dict()` as its tensors, named by their place, and everything else as JSON.

    Made for torch optimizers and schedulers: `state.0.exp_avg` is the first moment of parameter 0. The tensors are the
    live ones, not copies: save them before the next update.

    Raises:
        CheckpointError: the state holds something other than tensors, numbers, strings, None, lists, tuples, dicts.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _encode(dict(state), "", tensors)


def join_state(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_state`: equal values, types and keys, tensors bit for bit.

    `torch.optim.Optimizer.load_state_dict` casts moments to the parameter's dtype; to stay exact, keep an optimizer's
    parameters in the dtype that they were saved with.
    """
    return _decode(dict(values), tensors)


def capture_rng(generators: Mapping[str, RandomSource] | None = None) -> dict[str, Any]:
    """The states of all global generators (Python, NumPy, torch on CPU and CUDA) and of the named ones, as JSON.

    CUDA states are taken only where CUDA is already in use, so that asking does not start it.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "python": _encode(random.getstate(), "python", {}),
        "numpy": _encode(np.random.get_state(legacy=False), "numpy", {}),
        "torch": _encode_bytes(torch.get_rng_state()),
        "cuda": [_encode_bytes(state) for state in cuda],
        "generators": {name: _capture_generator(source) for name, source in (generators or {}).items()},
    }


def restore_rng(record: Mapping[str, Any], generators: Mapping[str, RandomSource] | None = None) -> None:
    """Puts every generator back to where `capture_rng` found it; the named ones are changed in place.

    Warns where the CUDA devices are not as many as they were: draws on them will differ.

    Raises:
        CheckpointError: the names or the kinds of the given generators are not those of the record.
    """
    sources = dict(generators or {})
    saved = record["generators"]
    if sources.keys() != saved.keys():
        raise CheckpointError(
            f"random states: saved generators {sorted(saved)}, given {sorted(sources)}; "
            "pass restore_rng the same names as capture_rng"
        )
    for name, source in sources.items():
        _restore_generator(name, source, saved[name])
    random.setstate(_decode(record["python"], {}))
    np.random.set_state(_decode(record["numpy"], {}))
    torch.set_rng_state(_decode_bytes(record["torch"]))
    cuda = [_decode_bytes(state) for state in record["cuda"]]
    available = torch.cuda.device_count() if cuda else 0
    if len(cuda) != available:
        warnings.warn(
            f"random states of {len(cuda)} CUDA devices were saved, {available} are here; draws on CUDA will differ",
            RuntimeWarning,
            stacklevel=2,
        )
    elif cuda:
        torch.cuda.set_rng_state_all(cuda)


def _capture_generator(source: RandomSource) -> dict[str, Any]:
    if isinstance(source, torch.Generator):
        return {"kind": "torch", "state": _encode_bytes(source.get_state())}
    if isinstance(source, np.random.Generator):
        return {"kind": "numpy", "state": _encode(source.bit_generator.state, "numpy", {})}
    return {"kind": "python", "state": _encode(source.getstate(), "python", {})}


def _restore_generator(name: str, source: RandomSource, saved: Mapping[str, Any]) -> None:
    kind = "torch" if isinstance(source, torch.Generator) else "python"
    if isinstance(source, np.random.Generator):
        kind = "numpy"
    if kind != saved["kind"]:
        raise CheckpointError(f"generator '{name}': saved state of kind '{saved['kind']}', given one of kind '{kind}'")
    if isinstance(source, torch.Generator):
        source.set_state(_decode_bytes(saved["state"]))
    elif isinstance(source, np.random.Generator):
        state = _decode(saved["state"], {})
        wanted = type(source.bit_generator).__name__
        if state["bit_generator"] != wanted:
            raise CheckpointError(f"generator '{name}': saved state of a {state['bit_generator']}, given a {wanted}")
        source.bit_generator.state = state
    else:
        source.setstate(_decode(saved["state"], {}))


def _encode_bytes(state: Tensor) -> dict[str, str]:
    return {"$bytes": base64.b64encode(state.cpu().numpy().tobytes()).decode()}


def _decode_bytes(record: Mapping[str, str]) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(record["$bytes"])), dtype=torch.uint8)


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; its tensors go into `tensors` under their place."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        tensors[place] = value
        return {"$tensor": place}
    if isinstance(value, np.ndarray):
        return {"$array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{place}.{index}", tensors) for index, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        pairs = [(key, _encode(item, f"{place}.{key}".lstrip("."), tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(pairs)
        return {"$dict": [[_encode(key, place, tensors), item] for key, item in pairs]}
    raise CheckpointError(
        f"state at '{place}' is a {type(value).__name__}; "
        "it must be a tensor, number, string, None, list, tuple or dict"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_encode`."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        if value["$tensor"] not in tensors:
            raise CheckpointError(f"state refers to the tensor '{value['$tensor']}', which was not saved with it")
        return tensors[value["$tensor"]]
    if "$array" in value:
        return np.array(value["$array"], dtype=value["dtype"])
    if "$tuple" in value:
        return tuple(_decode(item, tensors) for item in value["$tuple"])
    if "$dict" in value:
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["$dict"]}
    return {key: _decode(item, tensors) for key, item in value.items()}
