"""The command `games`: games to play, made on this machine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from firesteel.cli_output import console, finish

games_app = typer.Typer(help="Make games for an environment.", no_args_is_help=True)


@games_app.callback()
def games() -> None:
    """Make games for an environment."""


@games_app.command("alfworld")
def alfworld(
    out: Annotated[Path, typer.Option(help="Folder to write; it can stand for ALFWORLD_DATA.")],
    count: Annotated[int, typer.Option(help="Games a split.")] = 60,
    split: Annotated[str, typer.Option(help="Split(s), separated by commas.")] = "train,validation,test",
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    size: Annotated[str, typer.Option(help="Rooms: full (12 to 30 receptacles) or small (6 to 10).")] = "full",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object last, on standard output.")] = False,
) -> None:
    """Write ALFWorld games of all six task types, each won by the planner before it is written.

    Example: `firesteel games alfworld --out games --count 200 --split train`
    """
    from firesteel.environments.alfworld.generate import write_games

    with console.status("starting the planner") as status:
        splits = [name.strip() for name in split.split(",") if name.strip()]
        told = partial(_tell, status)
        written = write_games(out, count=count, splits=splits, seed=seed, size=size, on_progress=told)
    text = ", ".join(f"{number} games of {name}" for name, number in written.items())
    result: dict[str, Any] = {"games": written, "text": text, "written": str(out)}
    finish(result, as_json)


def _tell(status: Any, done: int, of: int) -> None:
    status.update(f"{done} of {of} games")
