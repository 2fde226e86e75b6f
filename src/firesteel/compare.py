"""Comparing arms of an experiment: the same training with some settings replaced, over seeds, at equal tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from firesteel.config import Config
from firesteel.errors import ConfigError, FiresteelError, MissingDependency
from firesteel.files import write_atomic, write_json_atomic
from firesteel.metrics import t_interval
from firesteel.recipes import RecipeSession

Arms = Mapping[str, Mapping[str, Any]]


def compare(
    config: Config, session: RecipeSession, arms: Arms, seeds: Sequence[int], *, reference: str | None = None
) -> dict[str, Any]:
    """Trains every arm with every seed and writes `results.json`, `table.md` and `curves.svg` beside the runs.

    Seeds are the outer loop, and the files are written after each: a cut-off comparison has a table of whole blocks.
    With `--continue` finished runs are kept, with `--jobs` several are under way at a time. With `reference` the table
    holds each arm's paired difference to that arm.

    Raises:
        ConfigError: a run is refused.
        FiresteelError: the run of an arm failed; all others have been done, and the table has the whole arms.
    """
    load_pyplot()
    folder = Path(config.runs_dir) / config.name
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    written: dict[str, Any] = {}
    failed: dict[str, FiresteelError] = {}
    if config.evaluation.test_split is None:
        raise ConfigError("a comparison needs evaluation.test_split: the table is of success there before and after")
    outcomes = session.try_each(
        [
            config.updated(settings, {"name": f"{config.name}/{arm}-seed{seed}", "seed": seed})
            for seed in seeds
            for arm, settings in arms.items()
        ]
    )
    for seed in seeds:
        for arm, settings in arms.items():
            summary = next(outcomes)
            if isinstance(summary, ConfigError):
                raise summary
            if isinstance(summary, FiresteelError):
                failed.setdefault(arm, summary)
                session.listen("note", {"text": f"{arm}, seed {seed}: {summary}"})
                continue
            points = curve(folder / f"{arm}-seed{seed}" / "metrics.jsonl")
            start = point_before(summary, config.updated(settings).evaluation.split) if points else []
            results[arm].append(summary | {"curve": start + points})
        whole = {arm: runs for arm, runs in results.items() if arm not in failed}
        written = write_comparison(folder, whole, None if reference in failed else reference)
    if failed:
        arm, error = next(iter(failed.items()))
        raise FiresteelError(
            f"{len(failed)} of {len(arms)} arms failed, '{arm}' with: {error}. The others are in "
            f"{folder / 'table.md'}; mend it and go on with --continue"
        ) from error
    return written


def write_comparison(
    folder: Path, results: Mapping[str, Sequence[Mapping[str, Any]]], reference: str | None
) -> dict[str, Any]:
    """Writes what the seeds so far have shown, and says where."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / "results.json", results)
    table = markdown_table(results, reference)
    write_atomic(folder / "table.md", table.encode())
    plot = plot_curves(results, folder / "curves.svg", title=folder.name)
    return {
        "text": table,
        "table": str(folder / "table.md"),
        "plot": str(plot),
        "results": str(folder / "results.json"),
    }


def curve(path: Path) -> list[list[float]]:
    """(generated tokens, validation success) of every evaluation during a run; none for a run without a step."""
    points = []
    for line in path.read_text().splitlines() if path.exists() else ():
        record = json.loads(line)
        if record.get("eval/success") is not None:
            points.append([record["rollout/total_generated_tokens"], record["eval/success"]])
    return points


def point_before(summary: Mapping[str, Any], split: str) -> list[list[float]]:
    """The curve's point at 0 tokens: what was played before training on the same split, if anything was."""
    for key in ("validation_before", "before"):
        row = summary.get(key)
        if row and row.get("split") == split and row["success"] is not None:
            return [[0.0, row["success"]]]
    return []


def markdown_table(results: Mapping[str, Sequence[Mapping[str, Any]]], reference: str | None = None) -> str:
    """One row an arm: test success before and after, the gain with its 95% t-interval over seeds, and the cost."""
    head = "| arm | seeds | before | after | gain (95% interval) | tokens | leaves | tokens a leaf |"
    versus = f" minus {reference} (95% interval) |" if reference else ""
    rows = [head + versus, "|---|--:|--:|--:|--:|--:|--:|--:|" + ("--:|" if reference else "")]
    for arm, runs in results.items():
        before, after = _values(runs, "before"), _values(runs, "after")
        cells = [arm, str(len(runs)), f"{before.mean():.1%}", f"{after.mean():.1%}", _interval(after - before)]
        for key, form in (("generated_tokens", ",.0f"), ("leaves", ",.0f"), ("tokens_per_leaf", ".1f")):
            cells.append(format(np.mean([run[key] or 0.0 for run in runs]), form))
        if reference:
            cells.append("" if arm == reference else _interval(after - _values(results[reference], "after")))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _values(runs: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([run[key]["success"] for run in runs], dtype=float)


def _interval(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{100 * values.mean():+.1f}"
    low, high = t_interval(list(values))
    return f"{100 * values.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def load_pyplot() -> Any:
    """matplotlib's pyplot, set up to draw the same file every time. Called first, what is missing is said at once."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependency("drawing curves needs matplotlib: pip install 'firesteel[plot]'") from error
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "firesteel"
    from matplotlib import pyplot

    return pyplot


def plot_curves(results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, *, title: str) -> Path:
    """Validation success against generated tokens: the mean of the seeds, with a band of one standard error."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for arm, runs in results.items():
        curves = [np.array(run["curve"]) for run in runs if run["curve"]]
        if not curves:
            continue
        grid = np.linspace(max(line[0, 0] for line in curves), min(line[-1, 0] for line in curves), 30)
        values = np.array([np.interp(grid, line[:, 0], line[:, 1]) for line in curves])
        means = values.mean(axis=0)
        band = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.zeros(len(grid))
        (line,) = axes.plot(grid, means, label=f"{arm} ({len(values)})")
        axes.fill_between(grid, means - band, means + band, alpha=0.15, color=line.get_color())
    axes.set(xlabel="generated tokens", ylabel="success on validation tasks", title=title)
    if axes.lines:
        axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
