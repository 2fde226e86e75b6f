"""Frozen weights in four bits under trained adapters (QLoRA), where bitsandbytes is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from firesteel.errors import MissingDependency, ModelError
from firesteel.models import DTYPES


def load_quantized(
    path_or_name: str | Path, *, dtype: str = "bfloat16", device: str = "cuda", trust_remote_code: bool = False
) -> Any:
    """A decoder-only model whose linear layers are stored as NF4 with doubly quantised scales, computed in `dtype`.

    Raises:
        MissingDependency: bitsandbytes is not installed.
        ModelError: the device is the CPU, or the model cannot be loaded.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependency(
            "model.quantization 'nf4' needs bitsandbytes: pip install bitsandbytes; or set model.quantization=none"
        )
    if torch.device(device).type == "cpu":
        raise ModelError("model.quantization 'nf4' needs a GPU; set model.quantization=none on the CPU")
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[dtype],
    )  # fmt: skip
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(path_or_name), quantization_config=settings, dtype=DTYPES[dtype], device_map={"": device},
            trust_remote_code=trust_remote_code,
        ).eval()  # fmt: skip
    except (OSError, ValueError) as error:
        raise ModelError(f"model '{path_or_name}' cannot be loaded in four bits: {error}") from error
