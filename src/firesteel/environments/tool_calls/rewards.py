"""Tool Zero's progressive reward (2511.01934): from overlap with the answer to exact calls as training goes on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from firesteel.environments.tool_calls.formats import FORMATS, CallFormat
from firesteel.environments.tool_calls.parsers import without_sections
from firesteel.environments.tool_calls.schema import argument_flaws
from firesteel.environments.tool_calls.tasks import Call, ToolTask, same_calls, tool_task
from firesteel.plugins import load
from firesteel.tree import Episode

_DELIMITERS = re.compile(r"""[()\[\],.:'"=\s]+""")


def progress_weight(step: int, *, k: float = 0.1, middle: float = 25.0) -> float:
    """sigma(t, m) = 1 / (1 + exp(-k (t - m))): how much the strict reward counts at step t. 0.5 at t = m."""
    return 1.0 / (1.0 + math.exp(-k * (step - middle)))


def general_reward(text: str, reference: str) -> float:
    """-0.5 + |Y ∩ Y*| / |Y*| on the sets of tokens between ()[],.:'"= and blanks; in [-0.5, 0.5].

    A reference without tokens gives 0.5 to a text without tokens, else -0.5. Differs from the paper: blanks separate
    tokens too.
    """
    got, wanted = _tokens(text), _tokens(reference)
    if not wanted:
        return -0.5 if got else 0.5
    return -0.5 + len(got & wanted) / len(wanted)


def _tokens(text: str) -> set[str]:
    return {token for token in _DELIMITERS.split(text) if token}


def strict_reward(calls: Sequence[Call], task: ToolTask) -> float:
    """1 for an accepted set of calls else 0; +0.3 if it is right and uses several tools; -0.3 per invalid value."""
    is_right = any(same_calls(calls, answer) for answer in task.answers)
    bonus = 0.3 if is_right and len({call.name for call in calls}) > 1 else 0.0
    schemas = {tool["name"]: tool["parameters"] for tool in task.tools}
    invalid = sum(len(argument_flaws(call, schemas[call.name])) for call in calls if call.name in schemas)
    return float(is_right) + bonus - 0.3 * invalid


@dataclass(slots=True)
class ToolZeroReward:
    """R_format + sigma R_strict + (1 - sigma) R_general for episodes of one response.

    `step` is set before each step's trees are scored, `call_format` is how the environment has calls written. A text
    that cannot be read gets R_format 0 and R_strict 0. A task without an accepted answer, which only its checker can
    judge, is worth 0 whatever the text.
    """

    call_format: str | CallFormat = "hermes"
    k: float = 0.1
    middle: float = 25.0
    step: int = 0

    def __call__(self, episode: Episode) -> float:
        task = tool_task(episode.task)
        if not task.answers:
            return 0.0
        form = self.call_format
        if isinstance(form, str):
            form = load(form, FORMATS, kind="call format")
        text = without_sections(episode.steps[-1].text if episode.steps else "")
        parsed = form.read(text, task.tools)
        is_written = parsed.problem is None and bool(parsed.calls or not task.answers[0])
        weight = progress_weight(self.step, k=self.k, middle=self.middle)
        strict = strict_reward(parsed.calls, task) if is_written else 0.0
        general = general_reward(text, form.write(task.answers[0]))
        return float(is_written) + weight * strict + (1 - weight) * general
