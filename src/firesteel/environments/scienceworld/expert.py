"""What the gold path's player could be thinking: whether a step explores, and a phrase why.

Only what has been shown and done so far decides, never the number of the step. Something is *missing* while a
word of the goal has not been seen in any observation. A step explores while something is missing and it

* goes to a room that has not been visited and that the goal does not name, or
* opens, looks into, examines or reads something for the first time;

and after an answer that was not expected, such as a refusal or a question back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from firesteel.types import ExpertStep

# Words of the goals' sentences that name nothing to be found.
_SENTENCE_WORDS = """
    a about above acceptable actions after all also and angle are around be being below boil boiling can cause
    celsius change changes chemistry color combusting completely completing complete compounds conductive create
    created crosspollinated degrees determine dominant done earliest electrical electrically circuit environment
    experiment find first focus for found freeze friction from grow growing grown has height if in ingredients
    intermediate into is it its known largest latest least life liquid located location longest lived made make
    material matter measure measuring melt melting might mix more most move nearest near need next nonconductive
    nonrenewable of on once one or order out part part-way place plants point power powering powers produce reaches
    recessive renewable reproduction require seen several shortest some source span stage stages starting state
    steepest substances take task temperature that the them then there this to trait turn two until use
    using way when whether which will with without you your animals boxes planes secondary seeds"""
_TASK_WORDS = frozenset(_SENTENCE_WORDS.split())
_TOKEN = re.compile(r"[a-z]+(?:-[a-z]+)*|[^\sa-z]")
_PLACE = re.compile(r"(?:called the|you (?:move|teleport) to the) ([a-z ]+)")
_REFUSAL = re.compile(
    r"no known action|unknown action|ambiguous request|error|you can't|you cannot|i'm not sure|it's not clear"
)
_ROOMS = (
    *("art studio", "bathroom", "bedroom", "foundry", "green house", "greenhouse"),
    *("hallway", "kitchen", "living room", "outside", "workshop"),
)
_FIRST_LOOK = re.compile(r"(open|look in|look at|look on|examine|read) (.+)")
_REASONS = (
    ("open door", "make a way"),
    ("look around", "see what is here"),
    ("inventory", "see what i hold"),
    ("focus", "this is what counts"),
    ("pick up", "take what is needed"),
    ("connect", "close the circuit"),
    ("use", "measure it"),
    ("wait", "give it time"),
    ("mix", "combine the parts"),
    ("read", "follow the text"),
    ("activate", "switch it on"),
    ("deactivate", "switch it off"),
)


def explain(goal: str, texts: Sequence[str], actions: Sequence[str], action: str) -> ExpertStep:
    """The gold action with its thought, from all observations so far (reset's first) and all actions so far."""
    if _REFUSAL.match(texts[-1].lower()):
        return ExpertStep(action, True, "that did not work")
    seen = "\n".join(texts).lower()
    missing = next((thing for thing in things(goal) if not all(word in seen for word in thing.split())), None)
    room = _room_of(action)
    if room is not None:
        if room in goal.lower():
            return ExpertStep(action, False, f"the goal names the {room}")
        if room in _PLACE.findall(seen):
            return ExpertStep(action, False, f"go back to the {room}")
        if missing is not None:
            return ExpertStep(action, True, f"look for {missing} elsewhere")
        return ExpertStep(action, False, f"the {room} is next")
    first_look = _FIRST_LOOK.match(action)
    if first_look and missing is not None and not action.startswith("open door") and action not in actions:
        return ExpertStep(action, True, f"look for {missing} here")
    reason = next((reason for start, reason in _REASONS if action.startswith(start)), "bring it there")
    return ExpertStep(action, False, reason)


def things(goal: str) -> list[str]:
    """The things that a goal names, one to three words each, in order; rooms are not among them."""
    runs: list[list[str]] = [[]]
    for token in _TOKEN.findall(goal.lower()):
        if token in _TASK_WORDS or not token[0].isalpha():
            runs.append([])
        elif len(token) > 2:
            runs[-1].append(token)
    phrases = (" ".join(run[-3:]) for run in runs if run)
    return [phrase for phrase in dict.fromkeys(phrases) if phrase not in _ROOMS]


def _room_of(action: str) -> str | None:
    """The room that an action goes to."""
    words = action.lower()
    if not words.startswith(("go ", "teleport ")):
        return None
    return next((room for room in _ROOMS if words.endswith(room)), None)
