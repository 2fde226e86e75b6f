"""What the planner's steps mean: why each is taken, and whether the agent could know it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from firesteel.environments.alfworld.games import Game
from firesteel.types import ExpertStep

_NUMBERED = re.compile(r"[a-z]+ \d+")
_DIRECT = ("take", "move", "put", "use", "heat", "cool", "clean", "slice")


def things_in(text: str) -> set[str]:
    """The things that a text names: {"mug 1", "desk 2"}."""
    return set(_NUMBERED.findall(text))


def explain(game: Game, plan: Sequence[str], seen: frozenset[str]) -> ExpertStep:
    """The first step of a plan with its reason.

    The planner knows where everything is. Where the agent goes or opens something for a thing that no text has named
    yet, it cannot know that: the step explores, and its reason is to find the thing.
    """
    action = plan[0]
    verb, thing = _purpose(plan)
    kind = thing.rpartition(" ")[0] or game.target or "thing"
    is_on_the_way = not action.startswith(_DIRECT)
    if is_on_the_way and thing not in seen:
        return ExpertStep(action, True, f"find {kind}")
    if verb == "take":
        return ExpertStep(action, False, f"the {kind} is {'there' if is_on_the_way else 'here'}")
    if verb in ("move", "put") and game.destination:
        return ExpertStep(action, False, f"place {kind} in {game.destination}")
    return ExpertStep(action, False, f"{verb} {kind}")


def _purpose(plan: Sequence[str]) -> tuple[str, str]:
    """The next thing that is done with an object, and the object: ("heat", "mug 1")."""
    for command in plan:
        if command.startswith(_DIRECT):
            verb, _, rest = command.partition(" ")
            return verb, next(iter(_NUMBERED.findall(rest)), rest)
    return plan[0].partition(" ")[0], plan[0].partition(" ")[2].removeprefix("to ")
