"""Writing a trained policy where other tools find it: a Hub-format directory, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from firesteel.config import Config
from firesteel.model_settings import write_model_settings
from firesteel.policy import Policy


def save_model(policy: Policy, directory: Path, config: Config) -> Path:
    """Saves model (with LoRA: the adapter), tokenizer and `firesteel.yaml`, the settings that it was trained with.

    An older version goes only when the new one is whole.
    """
    fresh, old = directory.with_name(f".tmp-{directory.name}"), directory.with_name(f".old-{directory.name}")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    policy.model.save_pretrained(fresh)
    policy.tokenizer.save_pretrained(fresh)
    write_model_settings(config, fresh)
    if directory.exists():
        directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
    return directory
