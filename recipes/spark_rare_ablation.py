"""SPaRK's threshold and rho: 5, 6 and 7 by five values of rho, one seed. Needs the extras tools and plot.

A lower threshold lets weaker actions in; rho weighs how far below the best they score against whether the step was
sound. For each threshold: trajectories, a supervised stage, and one PPO run for each rho, from the base of
`spark_rare` (`model.path=recipes/models/questions`). All cells are measured after equally many updates, with their
last weights: validation would choose the start where PPO loses. A table and a plot.
"""

from pathlib import Path

from firesteel.compare import load_pyplot
from firesteel.files import write_atomic, write_json_atomic
from firesteel.recipes import load_recipe

THRESHOLDS = (5.0, 6.0, 7.0)
RHOS = (0.0, 0.25, 0.5, 0.75, 1.0)


def config():
    """The settings of `spark_rare`."""
    return load_recipe("spark_rare").config().updated({"name": "spark_rare_ablation"})


def run(config, session):
    """All cells; writes `results.json`, `table.md` and `ablation.svg`, and says how long it took."""
    load_pyplot()
    stages = load_recipe("spark_rare").module
    folder = Path(config.runs_dir) / config.name
    base = stages.base_model(config, session)
    rows, first = {}, {}
    for threshold in THRESHOLDS:
        name, job = f"threshold{threshold:g}", {"selector_options": {"threshold": threshold}}
        rows[threshold] = stages.rows(stages.write_trajectories(config, session, name, selector="rarity_first", **job))
        first[threshold] = stages.sft_stage(config, base, name, rows[threshold])
    started = stages.trained(session, first, {})
    cells = {
        f"{threshold:g}/{rho:g}": stages.ppo_stage(
            config, f"threshold{threshold:g}-rho{rho:g}", started[threshold], rows[threshold], rho
        ).updated({"evaluation": {"every": 0}})
        for threshold in started
        for rho in RHOS
    }
    models = stages.trained(session, cells, {})
    results = {}
    for cell in (f"{threshold:g}/{rho:g}" for threshold in THRESHOLDS for rho in RHOS):
        results[cell] = stages.scored(config, session, models[cell]) if cell in models else None
        write_json_atomic(folder / "results.json", results)
    table = markdown_table(results)
    write_atomic(folder / "table.md", table.encode())
    return {"text": table, "table": str(folder / "table.md"), "plot": str(plot(results, folder / "ablation.svg"))}


def figure(results, threshold, rho, name):
    """A figure of one cell on the test split; None where the cell's reward was refused."""
    found = results[f"{threshold:g}/{rho:g}"]
    return None if found is None else found["test"]["all"][name]


def markdown_table(results):
    """Accuracy (tool entropy) on the test split: thresholds down, rho across."""
    lines = ["| threshold | " + " | ".join(f"rho {rho:g}" for rho in RHOS) + " |", "| --- |" + " --- |" * len(RHOS)]
    for threshold in THRESHOLDS:
        cells = []
        for rho in RHOS:
            accuracy = figure(results, threshold, rho, "accuracy")
            entropy = figure(results, threshold, rho, "entropy")
            cells.append("refused" if accuracy is None else f"{accuracy:.1%} ({entropy or 0:.2f})")
        lines.append(f"| {threshold:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(results, path):
    """Accuracy and tool entropy over rho, one line for each threshold."""
    pyplot = load_pyplot()
    drawing, axes = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for axis, name in zip(axes, ("accuracy", "entropy"), strict=True):
        for threshold in THRESHOLDS:
            points = [(rho, figure(results, threshold, rho, name)) for rho in RHOS]
            known = [(rho, value) for rho, value in points if value is not None]
            axis.plot([rho for rho, _ in known], [value for _, value in known], "o-", label=f"above {threshold:g}")
        axis.set(xlabel="rho", ylabel=f"{name} on test questions")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    drawing.tight_layout()
    drawing.savefig(path, metadata={"Date": None})
    pyplot.close(drawing)
    return path
