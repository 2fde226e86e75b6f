"""SPARK on WebShop: a cold start in the generated shop, then RL with branching. Needs the extra webshop.

Four stages, none needs attention: episodes of the expert, tagged where it has to guess, and of random play; a small
model from scratch learns the language of the shop's pages, then the expert's responses; RL with branching. 200 held-out
goals before and after. `rollout.criterion=chain rollout.num_roots=8` is plain GRPO.

`model.path=DIR` (any Hub-format chat model, with `model.lora.rank=8` if it is large) skips the language stage and the
small model; `environment.options.path=DIR` plays on WebShop's own files, on which the expert gives up where it sees no
product that fits. Needs `pip install 'firesteel[webshop]'`.
"""

from pathlib import Path

from firesteel.coldstart import collect_episodes
from firesteel.config import Config

NUM_EXPERT, NUM_RANDOM = 1500, 1500
LANGUAGE_STEPS, EXPERT_STEPS = 3000, 600
TINY = {"hidden": 128, "layers": 3, "max_context": 3072, "vocab_size": 2048, "initializer_range": 0.05}


def config():
    """The RL stage; the other stages differ in the fields that `run` replaces."""
    return Config.build(
        {
            "name": "spark_webshop",
            "steps": 40,
            "tasks_per_step": 8,
            "environment": {"name": "webshop", "options": {"pages": "compact", "page_size": 5, "admissible": False}},
            "context": {"mode": "full", "prompts": "goal_last"},
            "rollout": {
                "criterion": "explore_tag", "num_leaves": 8, "num_roots": 4, "width": 2,
                "max_turns": 16, "max_response_tokens": 32, "processes": 2,
            },
            "reward": {"name": "score", "success": 1.0, "invalid_penalty": 0.1, "invalid_when": "either"},
            "advantage": {"weighting": "path", "baseline": "group_mean"},
            "loss": {"aggregation": "sequence_mean"},
            "learner": {
                "lr": 2e-3, "schedule": "linear", "warmup_steps": 4, "minibatches": 8, "micro_batch_tokens": 8192,
            },
            "evaluation": {
                "every": 5, "num_tasks": 64, "temperature": 1.0, "test_split": "test", "test_tasks": 200,
            },
            "save_every": 5,
        }
    )  # fmt: skip


def run(config, session):
    """Collects episodes, cold-starts and trains."""
    folder = Path(config.runs_dir) / config.name
    folder.mkdir(parents=True, exist_ok=True)

    def say(text):
        session.listen("note", {"text": text})

    expert, random = folder / "expert.jsonl", folder / "random.jsonl"
    if not expert.exists():
        collect_episodes(config.updated({"seed": 1}), expert, count=NUM_EXPERT, max_steps=16, say=say)
    model = {"model": config.model.model_dump()}
    if config.model.path is None:
        if not random.exists():
            collect_episodes(config.updated({"seed": 2}), random, count=NUM_RANDOM, policy="random", max_steps=12,
                             narrate=True, stale_share=0.1, say=say)  # fmt: skip
        model = {"model": {"path": session.train(language_stage(config, random, expert))["model"]}}
    started = session.train(config.updated(model, expert_stage(config, expert)))
    model["model"] |= adapted(config, started["model"])
    return session.train(config.updated(model, {"name": f"{config.name}/spark"}))


def language_stage(config, random, expert):
    """Every token of random play and of the expert's episodes, for a small model from scratch."""
    return config.updated(
        {
            "name": f"{config.name}/language", "steps": LANGUAGE_STEPS, "tasks_per_step": 4,
            "data": [str(random), str(expert)],
            "model": {"tiny": TINY},
            "learner": {"kind": "sft", "lr": 2e-3, "schedule": "cosine", "warmup_steps": 50, "prompt_weight": 0.3},
            "advantage": {"weighting": "node"},
            "evaluation": {"every": 0, "test_split": None},
        }
    )  # fmt: skip


def expert_stage(config, expert):
    """The expert's responses, up to the best evaluation."""
    small = config.model.path is None
    return {
        "name": f"{config.name}/expert", "steps": EXPERT_STEPS, "tasks_per_step": 4,
        "data": [str(expert)],
        "learner": {
            "kind": "sft", "lr": 1e-3 if small else config.learner.lr, "schedule": "cosine", "warmup_steps": 10,
        },
        "advantage": {"weighting": "node"},
        "evaluation": {"every": 100, "test_split": None},
    }  # fmt: skip


def adapted(config, directory):
    """Where RL starts: the trained model under new adapters, or with LoRA the base and the trained adapter.

    Adapters, although the model is small: in so few episodes the noise of full updates costs most of what they gain.
    """
    if config.model.lora is None:
        return {"path": directory, "lora": {"rank": 8}}
    return {"lora": config.model.lora.model_dump() | {"adapter": directory}}
