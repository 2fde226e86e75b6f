"""Generated ALFWorld games in the stock engine: is every one won by its walkthrough, are forks the same? Prints JSON.

Writes games of all six task types (or takes those of a folder), plays each game's walkthrough in TextWorld's engine as
ALFWorld starts it, and then forks `AlfWorld` at random steps of these games: parent and fork play the same 10 commands.
Ends with 1 where a game is not won or a fork differs. Needs `tools/install_alfworld.sh`.

    python benchmarks/alfworld_games.py --games 204 --trials 1000
    python benchmarks/alfworld_games.py --folder games
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from _run import run
from alfworld_steps import Stock, check_stock
from forks import trial

from firesteel.environments.alfworld import AlfWorld
from firesteel.environments.alfworld.games import read_game
from firesteel.environments.alfworld.generate import write_games
from firesteel.types import Task


def is_won(task: Task) -> bool:
    """Whether the stock engine is won with the last command of the game's walkthrough, and not before."""
    stock = Stock(task)
    stock.reset()
    ends = [stock.game.step(command)[2] for command in read_game(task.data["game"]).walkthrough]
    return ends[-1:] == [True] and not any(ends[:-1])


def identical_forks(tasks: list[Task], num_trials: int) -> int:
    rng = random.Random(0)
    with closing(AlfWorld()) as environment, closing(AlfWorld()) as fresh:
        return sum(trial(environment, fresh, rng.choice(tasks), rng)[0] for _ in range(num_trials))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=204, help="how many games to write")
    parser.add_argument("--folder", type=Path, help="play these games, as `firesteel games alfworld` wrote them")
    parser.add_argument("--size", default="full", help="full or small houses")
    parser.add_argument("--trials", type=int, default=1000, help="forks")
    arguments = parser.parse_args()
    check_stock()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.setdefault("ALFWORLD_DATA", temporary)  # importing alfworld makes this folder
        folder, begin = arguments.folder or Path(temporary), time.perf_counter()
        if arguments.folder is None:
            write_games(folder, count=arguments.games, splits=["train"], size=arguments.size)
        written_s = time.perf_counter() - begin
        tasks = list(AlfWorld.tasks("train", games=folder, count=arguments.games))
        played, won = Counter[str](), Counter[str]()
        for task in tasks:
            kind = read_game(task.data["game"]).kind
            played[kind] += 1
            won[kind] += is_won(task)
        identical = identical_forks(tasks[:40], arguments.trials)
    result = {
        "benchmark": "alfworld_games",
        "games_won": f"{won.total()}/{played.total()}",
        "won_by_type": {kind: f"{won[kind]}/{count}" for kind, count in sorted(played.items())},
        "forks_identical": f"{identical}/{arguments.trials}",
        "writing_s": round(written_s, 1),
        "seconds": round(time.perf_counter() - begin, 1),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))
    sys.exit(won.total() < played.total() or identical < arguments.trials)


if __name__ == "__main__":
    run(__file__, main)
