"""Do few-shot versions of hard samples, or made-up examples, help a weak model with tools? Needs the extra plot.

Stages: a cold start that teaches a small model to use demonstrations; the table that says whether examples help it
with what it cannot solve, without which nothing further is run; then eight arms, each with four learning rates and
three seeds (`--seeds N`), that generate equally many tokens, those of probes counted, unless they collapse, or less is
left than a probe takes; a table and a plot. They are looked at equally often at equal tokens. A run takes three minutes
on one CPU thread, all 84 four hours: `--jobs 8` has eight under way at a time, and `--continue` goes on. With
`model.path` that model takes the place of the cold start (`model.path=recipes/models/tool_calls` is the one that it
gave). What shortens every run: `token_budget=60000 environment.num_tasks=20`.
"""

import json
from pathlib import Path

from firesteel.annotate import collect_expert_episodes, save_episodes
from firesteel.branching import Chain
from firesteel.compare import compare, load_pyplot, plot_curves
from firesteel.config import Config
from firesteel.environments.tool_calls import ToolCalls
from firesteel.evaluate import evaluate
from firesteel.few_shot_table import few_shot_table, hard_samples_left
from firesteel.files import write_atomic, write_json_atomic
from firesteel.metrics import t_interval
from firesteel.overrides import merge
from firesteel.policy import load_policy, load_tasks
from firesteel.probing import GrowerPlay

SEEDS = 3
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
ROUND = 20
TABLE_SHARE = 4
"""How many times as many tasks as the arms train on the first table is of: 80 leave its intervals 25 points wide."""

ROUND_TOKENS = 80_000
"""What a round of "replace" generates: a probe of 35,000 to 45,000 tokens, and 20 steps of about 1,800."""

COLD_START = {
    "episodes": 20_000, "call_steps": 1500, "tasks_per_call_step": 48, "steps": 1000, "tasks_per_step": 16,
    "tiny": {"hidden": 128, "layers": 3, "max_context": 1024, "vocab_size": 2048, "initializer_range": 0.05},
}  # fmt: skip
DOCUMENTED = {"documented": 1.0, "max_demonstrations": 0, "self_exemplifying": 0.0}
"""Options of tasks in which everything is said: what to copy into the call, and in which form."""

HARD = {"curriculum": {"name": "hard_sampling", "options": {"steps_per_round": ROUND, "rollouts": 10}}}
ADD = {"curriculum": {"name": "hard_sampling", "options": {**HARD["curriculum"]["options"], "mode": "add"}}}
DECAY = {"learner": {"lr_decay": 0.8, "lr_decay_tokens": ROUND_TOKENS}}
EXEMPLIFY = {
    "environment": {"options": {"exemplify": True}},
    "rollout": {"max_response_tokens": 384},
    "loss": {"kl_coef": 0.0, "clip_high": 0.26},
}
BONUS = {"reward": {"name": "self_exemplifying"}}
ARMS = {
    "GRPO": {},
    "GRPO, same decay": DECAY,
    "replace": HARD,
    "add": ADD,
    "self-exemplifying": EXEMPLIFY | BONUS | DECAY,
    "self-exemplifying, no bonus": EXEMPLIFY | DECAY,
    "self-exemplifying, replace": EXEMPLIFY | BONUS | HARD,
}
"""The cold start itself is the eighth arm: it is trained no further, so that its rate does not matter."""


def config():
    """GRPO as the paper trains it, at the size of a laptop; the arms differ in the fields of `ARMS`."""
    return Config.build(
        {
            "name": "toolexpander",
            "steps": 400,
            "token_budget": 250_000,
            "tasks_per_step": 16,
            "environment": {
                "name": "tool_calls", "num_tasks": 80,
                "options": {"terse": True, "schemas": "signature", "format": "python"},
            },
            "context": {"mode": "full", "prompts": "tool_calls"},
            "rollout": {
                "criterion": "chain", "num_leaves": 5, "num_roots": 5, "max_turns": 1, "max_response_tokens": 160,
            },
            "reward": {"name": "outcome", "invalid_penalty": 0.0},
            "advantage": {"baseline": "group_mean", "std": "sample"},
            "loss": {"kl_coef": 0.001, "aggregation": "token_mean"},
            "learner": {"lr": 3e-4, "minibatches": 4, "deal": "trees", "micro_batch_tokens": 8192},
            "stability": {"log_kl": True, "on_collapse": "stop"},
            "evaluation": {
                "every_tokens": 20_000, "num_tasks": 100, "temperature": 0.7,
                "test_split": "test_tasks", "test_tasks": 200,
            },
            "save_every": 0,
            "save_trees": False,
        }
    )  # fmt: skip


def run(config, session, seeds=SEEDS):
    """Cold start, table, arms."""
    load_pyplot()
    if config.model.path is None:
        config = config.updated({"model": {"path": cold_start(config, session)["model"]}})
    return run_if_examples_help(config, session, ARMS, RATES, seeds)


def run_if_examples_help(config, session, arms, rates, seeds):
    """The table of few-shot prompts, and the arms where it says that they could show something."""
    folder = Path(config.runs_dir) / config.name
    table = first_table(config)
    session.listen("note", {"text": table.text()})
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "few_shot.md", table.text().encode())
    if not table.lifts:
        verdict = "Selected examples do not lift pass@10 for certain, so the arms could show nothing: not started."
        return {"text": f"{table.text()}\n{verdict}", "table": str(folder / "few_shot.md")}
    return run_arms(config, session, arms, rates, seeds)


def cold_start(config, session):
    """Supervised episodes: first calls of documented tools, then with 0 to 4 demonstrations of tools drawn anew.

    A quarter of the latter have made-up examples. A tenth of the first stage is of the second kind, for its words.
    """
    folder = Path(config.runs_dir) / config.name
    count = COLD_START["episodes"]
    calls = expert_episodes(config, folder / "calls.jsonl", count, seed=config.seed + 1, **DOCUMENTED)
    some = expert_episodes(config, folder / "some.jsonl", count // 10, seed=config.seed + 2)
    full = expert_episodes(config, folder / "cold_start.jsonl", count, seed=config.seed)
    steps, tasks, tiny = COLD_START["call_steps"], COLD_START["tasks_per_call_step"], {"tiny": COLD_START["tiny"]}
    model = session.train(cold_stage(config, "calls", [calls, some], tiny, steps, tasks, lr=2e-3))["model"]
    steps, tasks = COLD_START["steps"], COLD_START["tasks_per_step"]
    return session.train(cold_stage(config, "cold_start", [full], {"path": model}, steps, tasks, lr=1e-3))


def expert_episodes(config, path, count, *, seed, **options):
    """The file of the expert's answers to some cold-start tasks; written where it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        options = config.environment.options | options
        tasks = ToolCalls.tasks("cold_start", count=count, seed=seed, **options)
        save_episodes(path, collect_expert_episodes(ToolCalls, tasks, options))
    return str(path)


def cold_stage(config, name, data, model, steps, tasks_per_step, *, lr):
    """Supervised learning on some files. Validation shows no demonstrations, so that the last weights count."""
    return config.updated(
        {
            "name": f"{config.name}/{name}", "data": data, "model": model, "token_budget": None,
            "steps": steps, "tasks_per_step": tasks_per_step,
            "advantage": {"weighting": "node"}, "loss": {"kl_coef": 0.0},
            "stability": {"log_kl": False, "on_collapse": "report"},
            "learner": {
                "kind": "sft", "lr": lr, "schedule": "cosine", "warmup_steps": 50, "weight_decay": 0.01,
                "minibatches": 1, "prompt_weight": 0.1,
            },
            "evaluation": {"every_tokens": 0, "test_split": None},
        }
    )  # fmt: skip


def player(config, policy):
    """What probes with a policy: the same seeds for whatever is compared."""
    return GrowerPlay(policy.grower(config, Chain()), config.evaluation.seed)


def first_table(config):
    """Table 2 of the paper, with the cold start, on the tasks of the arms and more of their split."""
    count = config.environment.num_tasks
    tasks = load_tasks(config, config.environment.split, count and TABLE_SHARE * count)
    return few_shot_table(tasks, player(config, load_policy(config)), seed=config.seed)


def run_arms(config, session, arms, rates, seeds):
    """Every arm with every rate and seed, what each came to at its best rate, and a row an arm."""
    folder, seeds = Path(config.runs_dir) / config.name, range(config.seed, config.seed + seeds)
    grid = {f"{arm}, lr {rate:g}": merge(settings, {"learner": {"lr": rate}})
            for arm, settings in arms.items() for rate in rates}  # fmt: skip
    grid["cold start"] = {"steps": 0, "evaluation": {"every_tokens": 0}, "stability": {"on_collapse": "report"}}
    compare(config, session, grid, seeds)
    results = json.loads((folder / "results.json").read_text())
    chosen = {arm: best_rate(results, arm) for arm in ("cold start", *arms)}
    for name in chosen.values():
        for seed, summary in zip(seeds, results[name], strict=True):
            path = folder / f"{name}-seed{seed}" / "measured.json"
            summary |= measure(config.updated(grid[name]), summary, path)
    write_json_atomic(folder / "measured.json", results)
    table = arms_table(results, chosen)
    write_atomic(folder / "arms.md", table.encode())
    plot = plot_curves({name: results[name] for name in chosen.values()}, folder / "arms.svg", title=config.name)
    return {"text": table, "table": str(folder / "arms.md"), "plot": str(plot)}


def measure(config, summary, path):
    """Success on held-out tools and the training tasks that a fresh probe leaves unsolved; kept beside the run."""
    if not path.exists():
        trained = config.updated({"model": {"path": summary["model"]}, "evaluation": {"num_tasks": 200}})
        policy = load_policy(trained)
        tasks = load_tasks(trained, trained.environment.split, trained.environment.num_tasks)
        left = hard_samples_left(tasks, player(trained, policy))
        tools = evaluate(trained, split="test_tools", policy=policy).summary()["success"]
        write_json_atomic(path, {"tools": tools, "hard_left": left.n - left.solved, "probed": left.n})
    return json.loads(path.read_text())


def best_rate(results, arm):
    """The name under which an arm did best on validation, on average over its seeds."""
    names = names_of(results, arm)
    return max(names, key=lambda name: mean(run["best"]["success"] or 0.0 for run in results[name]))


def names_of(results, arm):
    """The names of an arm's runs at all rates."""
    return [name for name in results if name == arm or name.startswith(f"{arm}, lr ")]


def arms_table(results, chosen):
    """A row an arm at its best rate on validation; collapses are counted over all rates."""
    figures = ("held-out tasks, %", "held-out tools, %", "hard samples left", "updates", "collapsed (all rates)",
               "tokens", "minutes")  # fmt: skip
    rows = [f"| arm | {' | '.join(figures)} |", f"|---|{'--:|' * len(figures)}"]
    for arm, name in chosen.items():
        runs = results[name]
        every = [run for other in names_of(results, arm) for run in results[other]]
        cells = (
            name, percent(run["after"]["success"] for run in runs), percent(run["tools"] for run in runs),
            f"{spread([run['hard_left'] for run in runs])} of {runs[0]['probed']}",
            f"{mean(run['steps'] for run in runs):.0f}",
            f"{sum(bool(run['collapses']) for run in every)} of {len(every)}",
            f"{mean(run['generated_tokens'] for run in runs):,.0f}", f"{mean(run['seconds'] for run in runs) / 60:.1f}",
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def percent(shares):
    """The mean of some shares in percent, with its interval."""
    return spread([100 * share for share in shares])


def spread(values):
    """The mean of some numbers, with its 95% t-interval over seeds where they differ."""
    if len(set(values)) < 2:
        return f"{values[0]:.1f}"
    low, high = t_interval(values)
    return f"{mean(values):.1f} ({low:.1f} to {high:.1f})"


def mean(values):
    """The mean of some numbers."""
    listed = list(values)
    return sum(listed) / len(listed)
