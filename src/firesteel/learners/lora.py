"""Low-rank adapters by peft: add, continue, save and merge, without touching the global random state."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from firesteel.errors import ModelError

WEIGHTS_FILE = "adapter_model.safetensors"


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = "all-linear",
    seed: int = 0,
) -> PeftModel:
    """Wraps `model` in a trainable adapter that changes nothing yet: B is zero, A is uniform under `seed`.

    A is drawn on the CPU in name order, so that it is the same on every device and peft version. The base
    weights are frozen; `model` itself is changed in place.

    Args:
        target_modules: "all-linear" (every linear layer but the output layer), or endings of module names.

    Raises:
        ModelError: the model has an adapter already, or no module is named so.
    """
    _refuse_adapter(model)
    modules = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules, task_type="CAUSAL_LM")
    wrapped = _wrap(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(wrapped.named_parameters()):
            if ".lora_A." in name:
                drawn = torch.empty(parameter.shape)
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                parameter.copy_(drawn)
    return wrapped


def load_adapter(model: PreTrainedModel, path: str | Path, trainable: bool = True) -> PeftModel:
    """Wraps `model` in the adapter saved in `path`, to continue its training or only to run it.

    Raises:
        ModelError: there is no adapter, or it belongs to another base model; `model` is then as it was.
    """
    _refuse_adapter(model)
    directory = Path(path)
    for file in ("adapter_config.json", WEIGHTS_FILE):
        if not (directory / file).is_file():
            raise ModelError(f"'{directory}' is no adapter: it has no {file}; point at a directory of save_adapter")
    config = PeftConfig.from_pretrained(str(directory))
    if not isinstance(config, LoraConfig):
        raise ModelError(f"the adapter in '{directory}' is of peft type {config.peft_type}; only LoRA is supported")
    config.inference_mode = not trainable
    tensors = load_file(directory / WEIGHTS_FILE)
    wrapped = _wrap(model, config)
    problem = _mismatch(adapter_tensors(wrapped), tensors)
    if problem:
        wrapped.unload()
        raise ModelError(f"the adapter in '{directory}' belongs to another base model: {problem}")
    set_peft_model_state_dict(wrapped, tensors)
    return wrapped


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """The base model with the adapter added into its weights, in place; the adapter is gone afterwards.

    Raises:
        ModelError: there is no adapter.
    """
    _require_adapter(model)
    return model.merge_and_unload(safe_merge=True)


def adapter_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The adapter's weights under the names they have in a file: views of the parameters, in name order."""
    _require_adapter(model)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensors[name].detach() for name in sorted(tensors)}


def save_adapter(model: PeftModel, directory: str | Path) -> None:
    """Writes the adapter and its config to `directory`, in peft's format (`load_adapter`, vLLM and others read it)."""
    _require_adapter(model)
    # "auto" would ask the Hub for the base model's vocabulary; the embedding is never trained here
    model.save_pretrained(str(directory), save_embedding_layers=False)
    # peft keeps the names in a set, whose order is another in every process
    file = Path(directory) / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def _wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """peft's own initialisation draws from the global generators of the CPU and of the model's device."""
    gpus = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(gpus)), warnings.catch_warnings():
            # peft reads an attribute that transformers has renamed; users can do nothing about it
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            wrapped = get_peft_model(model, config)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)})
        raise ModelError(
            f"LoRA cannot be added to {type(model).__name__} with target_modules={config.target_modules!r}: "
            f"{error}; its linear layers are named {', '.join(names)}"
        ) from error
    assert isinstance(wrapped, PeftModel)
    return wrapped


def _mismatch(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """How two sets of named tensors differ, or None."""
    absent, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if absent:
        return f"it lacks {len(absent)} tensors that this model needs, such as {absent[0]}"
    if surplus:
        return f"it has {len(surplus)} tensors that this model has no place for, such as {surplus[0]}"
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            return f"{name} has shape {tuple(found[name].shape)}, this model needs {tuple(tensor.shape)}"
    return None


def _refuse_adapter(model: nn.Module) -> None:
    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise ModelError(f"{type(model).__name__} already has an adapter; call merge_adapter first, or train that one")


def _require_adapter(model: nn.Module) -> None:
    if not isinstance(model, PeftModel):
        raise ModelError(f"{type(model).__name__} has no adapter; make one with add_lora or load_adapter")
