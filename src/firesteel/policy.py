"""The policy and everything that turns it into episodes: model, tokenizer, context, generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from firesteel.branching import BranchCriterion, make_criterion
from firesteel.config import Config, ModelConfig, RolloutConfig
from firesteel.context import ContextBuilder
from firesteel.environments import environment_class
from firesteel.environments.blame import blamed
from firesteel.environments.pool import environment_maker
from firesteel.errors import CannotFork, ConfigError, TaskError
from firesteel.generators.torch import TorchGenerator
from firesteel.learners.lora import add_lora, load_adapter
from firesteel.models import (
    DTYPES,
    build_tiny_model,
    check_vocabulary,
    load_model,
    load_tokenizer,
    train_tokenizer,
)
from firesteel.processes import num_processes
from firesteel.rollout import Grower
from firesteel.tree import Tree
from firesteel.types import Task


@dataclass(slots=True)
class Policy:
    """A loaded model with its tokenizer, the way its prompts are built, and an in-process generator over it."""

    model: Any
    tokenizer: Any
    context: ContextBuilder
    generator: TorchGenerator

    def grower(self, config: Config, criterion: BranchCriterion, *, rollout: RolloutConfig | None = None) -> Grower:
        """What grows trees with this policy in the configured environment."""
        settings = rollout or config.rollout
        cls = environment_class(config.environment.name)
        if settings.num_leaves > settings.num_roots and settings.criterion != "chain" and cls.fork_rung == "none":
            raise CannotFork(
                f"environment '{config.environment.name}' cannot fork and rollout.criterion is '{settings.criterion}'; "
                "implement fork() (replay of the actions is enough), or use rollout.criterion=chain"
            )
        return Grower(
            config=settings,
            generator=self.generator,
            context=self.context,
            criterion=criterion,
            make_environment=environment_maker(config.environment),
            vocabulary_size=len(self.tokenizer),
            max_context=self.generator.max_context,
            # Workers of a pool are killed when they are late, which also ends native code; a signal here would not.
            step_timeout_s=0 if config.environment.pool.workers else config.environment.step_timeout_s,
            processes=num_processes(config, criterion, self.model.device),
        )


def resolve_device(name: str) -> str:
    """ "auto" becomes cuda where there is one; `ConfigError` where torch knows no such device."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"model.device must be auto, cpu, cuda or cuda:N; got {name!r}") from error
    return name


def load_policy(config: Config, *, texts: Sequence[str] = ()) -> Policy:
    """Loads (or builds) the model of a configuration.

    `texts` is what a tiny model's tokenizer is trained on; other models ignore it.
    """
    settings = config.model
    device = resolve_device(settings.device)
    if settings.path is not None:
        tokenizer = load_tokenizer(settings.path, trust_remote_code=settings.trust_remote_code)
        model: Any = load_base_model(settings)
        check_vocabulary(model, tokenizer)
    elif settings.tiny is not None:
        if not texts:
            raise ConfigError("model.tiny builds a tokenizer from training text, and there is none; give model.path")
        tiny = settings.tiny
        tokenizer = train_tokenizer(texts, vocab_size=tiny.vocab_size, single_digits=tiny.single_digits)
        sizes = tiny.model_dump(exclude={"vocab_size", "single_digits"})
        model = build_tiny_model(tokenizer, seed=config.seed, **sizes)
        model = model.to(device=device, dtype=DTYPES[settings.dtype])
    else:
        raise ConfigError("no model: set model.path to a Hub name or a local directory, for example model.path=./qwen")
    model = _with_adapter(model, settings, config.seed)
    context = ContextBuilder(tokenizer, **config.context.model_dump())
    limit = settings.kv_cache_mb
    generator = TorchGenerator(
        model,
        tokenizer,
        end_token_ids=context.stop_token_ids,
        max_cache_bytes=None if limit is None else limit * 10**6,
    )
    if context.mode == "window" and context.max_prompt_tokens is None:
        context.max_prompt_tokens = max(1, generator.max_context - config.rollout.max_response_tokens)
    return Policy(model, tokenizer, context, generator)


def load_base_model(settings: ModelConfig) -> Any:
    """The model that `path` names, without adapters."""
    if settings.path is None:
        raise ConfigError("no model: set model.path to a Hub name or a local directory, for example model.path=./qwen")
    options: dict[str, Any] = {"dtype": settings.dtype, "device": resolve_device(settings.device)}
    options["trust_remote_code"] = settings.trust_remote_code
    if settings.quantization == "none":
        return load_model(settings.path, **options)
    if settings.lora is None:
        raise ConfigError("model.quantization freezes the weights: train adapters on them, with model.lora.rank=8")
    from firesteel.quantized import load_quantized

    return load_quantized(settings.path, **options)


def _with_adapter(model: Any, settings: ModelConfig, seed: int) -> Any:
    if settings.lora is None:
        return model
    if settings.lora.adapter is not None:
        return load_adapter(model, settings.lora.adapter, trainable=True)
    options = settings.lora.model_dump(exclude={"adapter"})
    return add_lora(model, seed=seed, **options)


def load_tasks(config: Config, split: str, count: int | None, *, seed: int = 0) -> Sequence[Task]:
    """The tasks of a split, as lazily as the environment gives them; an empty one is an error."""
    name, options = config.environment.name, config.environment.options
    with blamed(f"environment '{name}': its import"):
        cls = environment_class(name, options)
    with blamed(f"environment '{name}': tasks('{split}')"):
        tasks = cls.tasks(split, count=count, seed=seed, **options)
        is_empty = not len(tasks)
    if is_empty:
        raise TaskError(
            f"split '{split}' of environment '{config.environment.name}' has no tasks with the options "
            f"{config.environment.options}; check the split's name, environment.options and the task count"
        )
    return tasks


def grow_trees(
    tasks: Sequence[Task],
    policy: Policy,
    config: Config,
    *,
    criterion: BranchCriterion | None = None,
    iteration: int = 0,
) -> list[Tree]:
    """Grows one tree a task with the configured criterion and budget; rewards are not set yet (`score_trees`)."""
    if criterion is None:
        criterion = make_criterion(config.rollout.criterion, config.rollout.width, config.rollout.criterion_options)
    return policy.grower(config, criterion).grow(tasks, seed=config.seed, iteration=iteration)
