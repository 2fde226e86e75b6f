"""SPaRK with the judge swapped: the same writer, selector, stages and seeds under each judge. Needs the extra tools.

The paper leaves open what its judge decides. Here the judges are rules that run the candidates; the same with the key,
which no one has in use and which bounds what judging can give; and the model itself, by its own log-probabilities.
Each scores the candidates, so that it decides what is executed, what is learnt from and what a step is worth. The
table has their agreement with `rules` on the same steps, and what was learnt. `model.path=DIR` is a base, such as that
of `spark_rare`, in place of the cold start.
"""

from pathlib import Path

from firesteel.errors import ConfigError
from firesteel.files import write_atomic, write_json_atomic
from firesteel.recipes import load_recipe
from firesteel.trajectory_jobs import TrajectoryJob, compare_job

JUDGES = ("rules", "rules_with_key", "policy")
AGREEMENT_STEPS = 300


def config():
    """The settings of `spark_rare`."""
    return load_recipe("spark_rare").config().updated({"name": "spark_rare_judges"})


def run(config, session, seeds=None):
    """Trajectories under each judge, how far it agrees with `rules`, and SFT and SPaRK on them for every seed."""
    stages = load_recipe("spark_rare").module
    folder = Path(config.runs_dir) / config.name
    base = stages.base_model(config, session)
    policy = {"model": {"path": base}, "context": config.context.model_dump()}
    data, agreement = {}, {}
    for judge in JUDGES:
        job = {"judge": judge, "selector": "rarity_first", "policy": policy if judge == "policy" else {}}
        data[judge] = stages.write_trajectories(config, session, judge, **job)
        if judge != "rules":
            agreement[judge] = agreement_with_rules(config, data["rules"], judge, policy)
    results = {}
    for seed in range(config.seed, config.seed + (seeds or stages.SEEDS)):
        seeded = config.updated({"seed": seed})
        for judge in JUDGES:
            results.setdefault(judge, []).append(trained(stages, seeded, session, base, judge, data[judge]))
        write_json_atomic(folder / "results.json", results)
    table = f"{agreement_table(agreement)}\n{stages.markdown_table(results)}\n{stages.training_table(results)}"
    write_atomic(folder / "table.md", table.encode())
    return {"text": table, "table": str(folder / "table.md"), "results": str(folder / "results.json")}


def trained(stages, config, session, base, judge, data):
    """What SPaRK comes to on the trajectories of a judge."""
    rows = stages.rows(data)
    try:
        model = session.train(stages.sft_stage(config, base, judge, rows))["model"]
        stage = stages.ppo_stage(config, judge, model, rows, config.ppo.rho)
        model = session.train(stage)["model"]
    except ConfigError as error:
        return stages.refused(error)
    return stages.scored(config, session, model) | stages.chosen_figures(stage)


def agreement_with_rules(config, directory, judge, policy):
    """How another judge and `rules` see the same steps."""
    job = TrajectoryJob(
        environment=config.environment.name, environment_options=config.environment.options,
        split=config.environment.split, count=config.environment.num_tasks, judge="rules", policy=policy,
    )  # fmt: skip
    return compare_job(job, directory, judge, steps=AGREEMENT_STEPS)


def agreement_table(agreement):
    """A line a judge."""
    lines = ["| judge, against rules | steps | rank correlation | same choice | viable overlap | equal verdicts |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for judge, found in agreement.items():
        figures = (found.rank_correlation, found.same_choice, found.viable_overlap, found.process_agreement)
        lines.append(f"| {judge} | {found.n} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    return "\n".join(lines) + "\n"
