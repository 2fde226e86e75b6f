"""SPaRK on tools in a small model from scratch: SFT, then PPO for pairs of selector and rho. Needs the extra tools.

Every stage is one training of the same loop. The base, one for all seeds, learns the grammar from questions of its own:
every action is drawn, and the answer is what the observations happened to say, or drawn where they said nothing. It is
shown how to call every tool and how to read an answer, and not which tool a question asks for. Before that it exercises
to copy numbers and names, which takes a small model thousands of calls. Then for each selector:
trajectories of the training questions, a supervised stage on their sound steps and right answers, and PPO on all their
steps. `base` plays without tools, which is the baseline of the paper; `base + tools` is the one that it lacks.
`temperature-matched` is PPO (best, 0), played at a temperature at which its choice of tools is as varied as SPaRK's on
validation questions: what is gained beyond it is not entropy. Validation questions choose the weights of every
supervised and PPO stage, among five; test questions, and categories that no stage has seen, decide. A second table has
what the last weights do on validation. `model.path=DIR` is a base in place of the cold start;
`model.path=recipes/models/questions` is the one that the cold start gave.
"""

import json
import random
from pathlib import Path

from firesteel.config import Config
from firesteel.environments.question_rows import LETTERS
from firesteel.errors import ConfigError, FiresteelError
from firesteel.evaluate import evaluate_policy
from firesteel.files import write_atomic, write_json_atomic
from firesteel.policy import load_policy, load_tasks
from firesteel.tool_evaluation import report_by_category, tool_report
from firesteel.tools import COT
from firesteel.trajectories import TrajectorySettings, read_trajectories
from firesteel.trajectory_jobs import TrajectoryJob, run_job

TOOLS = ("calculator", "dates", "dictionary", "logic", "reference", "search", "units")
RHO = 0.5
ARMS = {
    "PPO (best, 0)": ("best", 0.0),
    f"PPO (best, {RHO})": ("best", RHO),
    "PPO (rarity_first, 0)": ("rarity_first", 0.0),
    f"SPaRK (rarity_first, {RHO})": ("rarity_first", RHO),
    f"PPO (uniform, {RHO})": ("uniform", RHO),
}
SPARK, PLAIN = f"SPaRK (rarity_first, {RHO})", "PPO (best, 0)"
SELECTORS = ("best", "rarity_first", "uniform")
SEEDS = 3
STEPS_PER_QUESTION = 3
BASE_QUESTIONS = 4000
COPYING_UPDATES, BASE_UPDATES, SFT_UPDATES = 37.5, 37.5, 8
"""Updates of the two stages of the cold start and of the supervised stage, as multiples of PPO's `steps`."""
TINY = {
    "hidden": 128, "layers": 3, "max_context": 1024, "vocab_size": 768, "initializer_range": 0.05,
    "single_digits": True,
}  # fmt: skip
TEMPERATURES = (0.7, 1.0, 1.3, 1.6, 2.0)
SPLITS = ("test", "held_out")


def config():
    """The PPO stage; the other stages differ in the fields that `run` replaces."""
    return Config.build(
        {
            "name": "spark_rare",
            "steps": 40,
            "tasks_per_step": 16,
            "save_every": 0,
            "save_trees": False,
            "environment": {"name": "tool_questions", "options": {"tools": list(TOOLS)}, "num_tasks": 320},
            "context": {"mode": "full", "prompts": "compact"},
            "rollout": {"criterion": "chain", "max_turns": STEPS_PER_QUESTION + 1, "max_response_tokens": 64},
            "advantage": {"weighting": "node"},
            "learner": {"kind": "ppo", "lr": 2e-4, "minibatches": 2, "micro_batch_tokens": 8192},
            "ppo": {"rho": RHO, "kl_coef": 1.0, "answer": "words"},
            "critic": {"folds": 2, "lr": 1e-3},
            "evaluation": {"temperature": 0.7, "num_tasks": 120, "test_tasks": 120},
        }
    )  # fmt: skip


def run(config, session, seeds=SEEDS):
    """Trajectories, stages and arms for every seed; writes `results.json` and `table.md`."""
    folder = Path(config.runs_dir) / config.name
    base = base_model(config, session)
    data = {name: rows(write_trajectories(config, session, name, selector=name)) for name in SELECTORS}
    results = {}
    for seed in range(config.seed, config.seed + seeds):
        seeded = config.updated({"seed": seed})
        for arm, found in one_seed(seeded, session, base, data).items():
            results.setdefault(arm, []).append(found)
        write_json_atomic(folder / "results.json", results)
    table = f"{markdown_table(results)}\n{training_table(results)}"
    write_atomic(folder / "table.md", table.encode())
    return {"text": table, "table": str(folder / "table.md"), "results": str(folder / "results.json")}


def one_seed(config, session, base, data):
    """All arms of one seed: what each scored on each split."""
    results = {
        "base": scored(config, session, base, tools=()),
        "base + tools": scored(config, session, base),
    }
    first = {selector: sft_stage(config, base, selector, data[selector]) for selector in SELECTORS}
    started = trained(session, first, results, "SFT ({})")
    for selector, model in started.items():
        results[f"SFT ({selector})"] = scored(config, session, model)
    arms = {
        arm: ppo_stage(config, arm, started[selector], data[selector], rho)
        for arm, (selector, rho) in ARMS.items()
        if selector in started
    }
    models = trained(session, arms, results)
    for arm, model in models.items():
        results[arm] = scored(config, session, model) | chosen_figures(arms[arm])
    if SPARK in models and PLAIN in models:
        temperature = matched_temperature(config, session, models[PLAIN], models[SPARK])
        matched = config.updated({"evaluation": {"temperature": temperature}})
        results["temperature-matched"] = scored(matched, session, models[PLAIN]) | {"temperature": temperature}
    return results


# stages


def write_trajectories(config, session, name, count=None, **job):
    """The directory of the trajectories of the first `count` training questions; `job` replaces its fields."""
    session.listen("note", {"text": f"== trajectories: {name}"})
    settings = TrajectorySettings(steps=STEPS_PER_QUESTION, seed=config.seed, connections=1)
    made = TrajectoryJob(
        environment=config.environment.name, environment_options=config.environment.options,
        split=config.environment.split, count=count or config.environment.num_tasks,
        **{"settings": settings} | job,
    )  # fmt: skip
    folder = Path(config.runs_dir) / config.name / "trajectories" / name
    run_job(made, folder)
    return folder


def rows(folder):
    """The file of a directory of trajectories, as `data` wants it."""
    return str(folder / "rows.jsonl")


def base_model(config, session):
    """Where all arms start: `model.path`, or the grammar-only cold start."""
    if config.model.path is not None:
        return config.model.path
    drawn = grammar(config, session)
    copying, mixed = exercises(config, session, drawn)
    model = {"tiny": TINY | (config.model.tiny.model_dump(exclude_unset=True) if config.model.tiny else {})}
    stages = (  # the first makes the model, whose tokenizer must know the words of all stages
        ("start", 0, 8, [mixed, drawn], 2e-3),
        ("copying", COPYING_UPDATES, 32, [copying], 2e-3),
        ("base", BASE_UPDATES, 24, [mixed, drawn], 1.5e-3),
    )
    for name, updates, batch, data, rate in stages:
        stage = base_stage(config, name, model, updates=updates, batch=batch, data=data, rate=rate)
        model = {"path": session.train(stage)["model"], "tiny": None}
    return model["path"]


def grammar(config, session):
    """Rows with drawn actions, of questions after those of the other stages; where nothing was found, drawn answers."""
    if config.environment.num_tasks is None:
        raise ConfigError("environment.num_tasks must say how many questions the stages after the base learn from")
    count = config.environment.num_tasks + BASE_QUESTIONS
    options = {"selector": "uniform", "selector_options": {"threshold": -1.0}}
    folder = write_trajectories(config, session, "base", count, **options)
    later = {task.id for task in load_tasks(config, config.environment.split, config.environment.num_tasks)}
    rng, lines = random.Random(config.seed), []
    for trajectory in read_trajectories(folder / "rows.jsonl"):
        letter = trajectory[-1]["answer_letter"] or LETTERS[rng.randrange(len(trajectory[0]["mcq_options"]))]
        if trajectory[0]["qid"] not in later:
            lines += [json.dumps(row | {"answer_letter": letter}) for row in trajectory]
    write_atomic(folder / "grammar.jsonl", ("\n".join(lines) + "\n").encode())
    return str(folder / "grammar.jsonl")


def exercises(config, session, drawn):
    """Two files of short rows about the questions of the base: `copying`, and `mixed` with some of it and `reading`.

    Copying is a call of each tool for a question without options; what the call copies are the question's numbers and
    names, without the slips that the writer has elsewhere. Reading is an observation that no tool has made but is a
    drawn option, and that as the answer.
    """
    rng, copying, mixed = random.Random(config.seed), [], []
    known = {first["qid"] for first, *_ in read_trajectories(drawn)}
    exact = write_trajectories(
        config, session, "exact", config.environment.num_tasks + BASE_QUESTIONS, writer_options={"slips": False},
        settings=TrajectorySettings(steps=1, seed=config.seed, connections=1),
    )  # fmt: skip
    for first, *_ in read_trajectories(exact / "rows.jsonl"):
        if first["qid"] not in known:
            continue
        queries = {name: query for name, query in first["candidate_actions"].items() if name != COT}
        calls = [
            short_row(first, f"copying-{name}", name, query, mcq_options=[], answer_letter=None, observation="")
            for name, query in queries.items()
        ]
        copying += calls
        mixed += rng.sample(calls, min(2, len(calls)))
        for number in range(3):
            name, place = rng.choice(sorted(queries)), rng.randrange(len(first["mcq_options"]))
            seen = {"observation": noisy(first["mcq_options"][place], rng), "answer_letter": LETTERS[place]}
            mixed.append(short_row(first, f"reading-{number}", name, queries[name], **seen))
    files = {Path(drawn).with_name("copying.jsonl"): copying, Path(drawn).with_name("mixed.jsonl"): mixed}
    for path, lines in files.items():
        write_atomic(path, ("\n".join(lines) + "\n").encode())
    return [str(path) for path in files]


def short_row(first, kind, name, query, **changes):
    """A trajectory of one step about the question of another trajectory, as a line."""
    key = f"{first['qid']}-{kind}"
    ids = {"qid": key, "trajectory_id": f"{key}/0", "row_id": f"{key}/0/0", "step_idx": 0, "sub_step_idx": 0}
    call = {"tool_name": name, "action_taken": name, "action_query": query, "action_text": f"{name}: {query}"}
    return json.dumps({**first, **ids, **call, "num_steps": 1, **changes})


def noisy(option, rng):
    """An option as a tool may say it: a decimal with more digits, a value after an equals sign."""
    if "." in option and "e" not in option and rng.random() < 0.7:
        option += "".join(rng.choices("0123456789", k=rng.randrange(6)))
    return f"{rng.randrange(10, 99999)}/{rng.randrange(2, 99)} = {option}" if rng.random() < 0.3 else option


def base_stage(config, name, model, *, updates, batch, data, rate):
    """All text of some rows."""
    return config.updated(
        {
            "name": f"{config.name}/{name}", "steps": round(updates * config.steps), "data": data,
            "tasks_per_step": batch, "model": model,
            "learner": {"kind": "sft", "lr": rate, "schedule": "cosine", "warmup_steps": 20, "minibatches": 1,
                        "prompt_weight": 0.1},
            "ppo": {"sft_filter": "none"},
        }
    )  # fmt: skip


def sft_stage(config, base, selector, data):
    """Sound steps of trajectories with a right answer, and these answers."""
    return config.updated(
        {
            "name": f"{config.name}/sft-{selector}-seed{config.seed}", "steps": SFT_UPDATES * config.steps,
            "data": [data], "tasks_per_step": 8, "model": {"path": base, "tiny": None},
            "learner": {"kind": "sft", "lr": 1e-3, "schedule": "cosine", "warmup_steps": 10, "minibatches": 1},
            "evaluation": {"every": looks(SFT_UPDATES * config.steps)},
        }
    )  # fmt: skip


def ppo_stage(config, arm, model, data, rho):
    """One arm of PPO on all steps of its trajectories."""
    name = arm.replace(" ", "").replace("(", "-").replace(",", "-").replace(")", "")
    return config.updated(
        {
            "name": f"{config.name}/{name}-seed{config.seed}", "data": [data],
            "model": {"path": model, "tiny": None}, "ppo": {"rho": rho},
            "evaluation": {"every": looks(config.steps)},
        }
    )  # fmt: skip


def looks(steps):
    """After how many updates validation is played, so that it chooses among four sets of weights and the start."""
    return max(1, steps // 4)


def trained(session, stages, results, form="{}"):
    """The models of the stages that were not refused, by name; the refusals go to `results`, named by `form`."""
    models = {}
    for name, outcome in zip(stages, session.try_each(list(stages.values())), strict=True):
        if isinstance(outcome, FiresteelError):
            results[form.format(name)] = refused(outcome)
        else:
            models[name] = outcome["model"]
    return models


def refused(error):
    """What stands in the results for a stage whose rows teach nothing; any other error is raised again."""
    if not str(error).startswith(("the reward has no variance", "ppo.sft_filter")):
        raise error
    return {"refused": str(error)}


# evaluation


def played(config, session, model, split, count, tools=None):
    """The records of one episode for each question of a split."""
    changes = {"model": {"path": model, "tiny": None}}
    if tools is not None:
        changes["environment"] = {"options": {"tools": list(tools)}}
    config = config.updated(changes)
    session.listen("note", {"text": f"playing {split} with {model}"})
    tasks = load_tasks(config, split, count)
    return evaluate_policy(load_policy(config), config, tasks, split=split).records


def scored(config, session, model, tools=None):
    """The reports of a model on both splits, by category."""
    known = TOOLS if tools is None else tools
    count = config.evaluation.test_tasks
    return {split: report_by_category(played(config, session, model, split, count, tools), known) for split in SPLITS}


def matched_temperature(config, session, plain, rare):
    """Of `TEMPERATURES` the one at which `plain` chooses tools with an entropy nearest to that of `rare`."""

    def entropy(model, temperature):
        settings = config.updated({"evaluation": {"temperature": temperature}})
        records = played(settings, session, model, "validation", config.evaluation.num_tasks)
        return tool_report(records, TOOLS)["entropy"] or 0.0

    wanted = entropy(rare, config.evaluation.temperature)
    return min(TEMPERATURES, key=lambda temperature: abs(entropy(plain, temperature) - wanted))


def chosen_figures(stage):
    """After how many updates validation was best, and that update's KL and explained variance; start and end, too."""
    folder = Path(stage.runs_dir) / stage.name
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    update, before, last = summary["best"]["step"], summary["validation_before"], lines[-1]
    line = lines[update - 1] if update else {}
    names = ("losses/kl", "critic/explained_variance", "losses/clip_fraction")
    return {
        "update": update, **{name: line.get(name) for name in names},
        "validation": {
            "start": before["success"], "last": last["eval/success"], "last KL": last.get("losses/kl"),
            "start entropy": before.get("figures", {}).get("tools/entropy"),
            "last entropy": last.get("eval/tools/entropy"),
        },
    }  # fmt: skip


def markdown_table(results):
    """One line for each arm and split: means over seeds, of the ends of the intervals, too.

    `update` is the one whose weights validation chose; KL and explained variance are of that update.
    """
    names = ("arm", "split", "accuracy", "95% interval", "tool entropy", "95% interval", "coverage", "calls", "update",
             "KL", "expl. var.")  # fmt: skip
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for arm, seeds in results.items():
        whole = [each for each in seeds if "refused" not in each]
        if not whole:
            lines.append(f"| {arm} | refused: {seeds[0]['refused'].partition(';')[0]} |" + " |" * 9)
            continue
        for split in SPLITS:
            reports = [each[split]["all"] for each in whole]
            cells = [number(mean(reports, name)) for name in ("entropy", "coverage", "calls")]
            accuracy, low, high = (f"{100 * mean(reports, name):.1f}" for name in ("accuracy", "low", "high"))
            spread = " to ".join(number(mean(reports, name)) for name in ("entropy_low", "entropy_high"))
            ends = [number(mean(whole, name)) for name in ("update", "losses/kl", "critic/explained_variance")]
            row = [arm, split, accuracy, f"{low} to {high}", cells[0], spread, cells[1], cells[2], *ends]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def training_table(results):
    """One line for each arm that was trained by PPO: validation before its first and after its last update, means."""
    names = ("start", "last", "start entropy", "last entropy", "last KL")
    lines = [f"| arm | {' | '.join(names)} | best updates |", f"|{' --- |' * (len(names) + 2)}"]
    for arm, seeds in results.items():
        whole = [each for each in seeds if "validation" in each]
        if whole:
            means = [mean([each["validation"] for each in whole], name) for name in names]
            shares = [f"{100 * value:.1f}" for value in means[:2]]
            updates = ", ".join(str(each["update"]) for each in whole)
            lines.append(f"| {' | '.join([arm, *shares, *map(number, means[2:]), updates])} |")
    return "\n".join(lines) + "\n"


def mean(reports, name):
    """The mean of a figure over the reports that have it; None where none has."""
    known = [report[name] for report in reports if report.get(name) is not None]
    return sum(known) / len(known) if known else None


def number(value):
    """A figure with two digits, or a dash."""
    return "-" if value is None else f"{value:.2f}"
