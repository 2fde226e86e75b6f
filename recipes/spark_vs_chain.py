"""Does branching at `<explore>` pay? Seven arms at equal generated tokens, five seeds. Needs the extra plot.

Arms: chain N (8 roots), chain M (4 roots), a random tag at the policy's own rate, a fixed probability, entropy
(ARPO), and the explore tag (SPARK); and the control, SPARK with rewards permuted inside each tree. An explore arm
beaten by chain M has shown nothing. 35 runs of two minutes on one CPU thread; `--jobs 8` has eight under way at a time,
and `--continue` goes on.
"""

from firesteel.compare import compare
from firesteel.recipes import load_recipe

ARMS = {
    "chain N": {"rollout": {"criterion": "chain", "num_roots": 8}},
    "chain M": {"rollout": {"criterion": "chain", "num_roots": 4, "num_leaves": 4}},
    "random tag": {"rollout": {"criterion": "random_tag"}},
    "fixed": {"rollout": {"criterion": "fixed_probability", "criterion_options": {"probability": 0.1}}},
    "entropy": {"rollout": {"criterion": "entropy"}},
    "explore": {"rollout": {"criterion": "explore_tag"}},
    "explore, permuted": {"rollout": {"criterion": "explore_tag"}, "advantage": {"permute": True}},
}
SEEDS = 5


def config():
    """Quickstart's training, cut by generated tokens in place of steps, with a validation curve."""
    return load_recipe("quickstart").config().updated(
        {
            "name": "spark_vs_chain",
            "steps": 200,
            "token_budget": 120_000,
            "threads": 1,
            "rollout": {"processes": 1},
            "evaluation": {"every": 4, "num_tasks": 100},
            "save_every": 0,
            "save_trees": False,
        }
    )  # fmt: skip


def run(config, session, seeds=SEEDS):
    """All arms with so many seeds, from `seed` on."""
    return compare(config, session, ARMS, range(config.seed, config.seed + seeds), reference="chain M")
