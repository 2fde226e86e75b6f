"""SPARK on the ScienceWorld simulator, chain N and chain M beside it. Needs the extras scienceworld and plot.

Four stages, none needs attention: episodes of the gold paths of six task types (training variations) and of random
play; a small model from scratch learns the simulator's language, then the tagged gold paths; RL with branching at
`<explore>` by checked replay; the same RL without branching at equal tokens. Test variations decide.

`model.path=DIR` (any Hub-format chat model, with `model.lora.rank=8` if it is large) skips the language stage and the
small model. Needs `pip install 'firesteel[scienceworld,plot]'`.
"""

from pathlib import Path

from firesteel.coldstart import collect_episodes
from firesteel.compare import compare, load_pyplot
from firesteel.config import Config

TASK_TYPES = (
    "find-living-thing", "find-non-living-thing", "find-plant", "find-animal",
    "lifespan-longest-lived", "lifespan-shortest-lived",
)  # fmt: skip
ARMS = {
    "explore": {"rollout": {"criterion": "explore_tag"}},
    "chain N": {"rollout": {"criterion": "chain", "num_roots": 8}},
    "chain M": {"rollout": {"criterion": "chain", "num_roots": 4, "num_leaves": 4}},
}


def config():
    """The RL stage; the other stages differ in the fields that `run` replaces."""
    return Config.build(
        {
            "name": "spark_scienceworld",
            "steps": 60,
            "token_budget": 150_000,
            "tasks_per_step": 8,
            "environment": {
                "name": "scienceworld", "options": {"task_types": list(TASK_TYPES), "simplifications": "easy"},
            },
            "context": {"mode": "full", "prompts": "goal_last"},
            "rollout": {
                "criterion": "explore_tag", "num_leaves": 8, "num_roots": 4, "width": 2,
                "max_turns": 18, "max_response_tokens": 32,
            },
            "reward": {"name": "score", "success": 1.0, "invalid_penalty": 0.1, "invalid_when": "either"},
            "advantage": {"weighting": "path", "baseline": "group_mean"},
            "loss": {"aggregation": "sequence_mean"},
            "learner": {
                "lr": 2e-3, "schedule": "linear", "warmup_steps": 2, "minibatches": 8, "micro_batch_tokens": 8192,
            },
            "evaluation": {
                "every": 5, "num_tasks": 48, "temperature": 1.0, "test_split": "test", "test_tasks": 150,
            },
            "save_every": 5,
        }
    )  # fmt: skip


def run(config, session):
    """Collects, cold-starts, trains the arms and writes the table."""
    load_pyplot()
    folder = Path(config.runs_dir) / config.name
    folder.mkdir(parents=True, exist_ok=True)

    def say(text):
        session.listen("note", {"text": text})

    expert, random = folder / "expert.jsonl", folder / "random.jsonl"
    if not expert.exists():
        collect_episodes(config.updated({"seed": 1}), expert, count=800, max_steps=20, say=say)
    model = {"model": config.model.model_dump()}
    if config.model.path is None:
        if not random.exists():
            collect_episodes(config.updated({"seed": 2}), random, count=300, policy="random", max_steps=15,
                             actions_from=expert, narrate=False, say=say)  # fmt: skip
        model = {"model": {"path": session.train(language_stage(config, random, expert))["model"]}}
    started = session.train(config.updated(model, expert_stage(config, expert)))
    model["model"] |= adapted(config, started["model"])
    return compare(config.updated(model), session, ARMS, [config.seed], reference="chain M")


def language_stage(config, random, expert):
    """Every token of random play and of the gold paths, for a small model from scratch."""
    return config.updated(
        {
            "name": f"{config.name}/language", "steps": 2000, "token_budget": None, "tasks_per_step": 4,
            "data": [str(random), str(expert)],
            "model": {
                "tiny": {
                    "hidden": 128, "layers": 3, "max_context": 3072, "vocab_size": 2048, "initializer_range": 0.05,
                }
            },
            "learner": {"kind": "sft", "lr": 2e-3, "schedule": "cosine", "warmup_steps": 50, "prompt_weight": 0.3},
            "advantage": {"weighting": "node"},
            "evaluation": {"every": 0, "test_split": None},
        }
    )  # fmt: skip


def expert_stage(config, expert):
    """The responses of the gold paths, up to the best evaluation."""
    small = config.model.path is None
    return {
        "name": f"{config.name}/expert", "steps": 800, "token_budget": None, "tasks_per_step": 4,
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
