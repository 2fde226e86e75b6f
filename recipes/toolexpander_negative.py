"""What ToolExpander reports not to work: examples everywhere, hard samples dropped. Needs the extra plot.

Starts from the cold start of `toolexpander` (made first where it is missing), or from `model.path`. 32 probes in place
of 10 are reported to find 5-8% fewer hard samples in twice the time; here all arms have the same tokens, and the
further probes leave fewer for training. One rate, `learner.lr`, and three seeds (`--seeds N`): 24 runs of three
minutes, `--jobs N` of them at a time.
"""

from pathlib import Path

from firesteel.compare import load_pyplot
from firesteel.recipes import load_recipe

BASE = load_recipe("toolexpander").module


def hard(**options):
    """Hard sampling with some options replaced."""
    return {"curriculum": {"name": "hard_sampling", "options": {**BASE.HARD["curriculum"]["options"], **options}}}


ARMS = {
    "GRPO": {},
    "GRPO, same decay": BASE.DECAY,
    "replace": hard(),
    "replace, bold": hard(bold=True),
    "replace, 32 probes": hard(rollouts=32),
    "all few-shot": hard(mode="all"),
    "half few-shot": hard(mode="mix", mix_share=0.5),
    "hard samples dropped": hard(mode="drop"),
}


def config():
    """The settings of `toolexpander`, at the rate that was best there for most arms."""
    return BASE.config().updated({"name": "toolexpander_negative", "learner": {"lr": 1e-4}})


def run(config, session, seeds=BASE.SEEDS):
    """Every arm with so many seeds."""
    load_pyplot()
    start = config.model.path or Path(config.runs_dir) / "toolexpander" / "cold_start" / "model"
    if not Path(start).is_dir() and config.model.path is None:
        start = BASE.cold_start(config.updated({"name": "toolexpander"}), session)["model"]
    return BASE.run_if_examples_help(
        config.updated({"model": {"path": str(start)}}), session, ARMS, (config.learner.lr,), seeds
    )
