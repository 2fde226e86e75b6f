"""Judges by rules: they run the candidates and look at what these yield."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from firesteel.environments.question_rows import Question
from firesteel.errors import ConfigError
from firesteel.judges.base import PastStep, Situation, ToolRunner
from firesteel.judges.matching import match_option, vote
from firesteel.openai_client import Ledger
from firesteel.tools import COT, ToolResult

# What an outcome is worth. Above SPaRK's threshold of 6: it bears on the question, it names an option that other
# candidates dispute, it names one alone, reasoning once there is evidence, it names the option that another names, too.
FAILED, USELESS, REPEATED, THINKING = 1.0, 3.0, 4.0, 5.0
RELATED, DISPUTED, ALONE, CONCLUDING, AGREED, AGREED_BY_MANY = 6.25, 6.5, 7.5, 8.0, 8.5, 9.5
WRONG, RIGHT = 2.0, 9.5

SHARED_WORDS = 2
_WORD = re.compile(r"[a-z]{4,}")
_EMPTY_WORDS = frozenset(
    ("what", "which", "when", "where", "many", "does", "have", "with", "that", "from", "this", "they", "will", "were",
     "lies", "town")
)  # fmt: skip


def is_related(output: str, question: Question) -> bool:
    """Whether an output bears on a question: it shares two words of at least four letters with it."""
    words = set(_WORD.findall(output.lower())) & set(_WORD.findall(question.question.lower()))
    return len(words - _EMPTY_WORDS) >= SHARED_WORDS


class RulesJudge:
    """Scores candidates by what they yield and by how far they agree with each other. Never sees the key."""

    name = "rules"
    sees_key = False

    def __init__(self, runner: ToolRunner) -> None:
        self._runner = runner

    @property
    def ledger(self) -> Ledger:
        """Nothing is spent."""
        return Ledger()

    def score(self, situation: Situation, thought: str, candidates: Mapping[str, str]) -> dict[str, float]:
        """A query or an output that is known already scores `REPEATED`; reasoning pays once there is evidence."""
        del thought
        options = situation.question.options
        results = {action: self._runner.run(action, query) for action, query in candidates.items() if action != COT}
        matches = {action: match_option(result.text, options) for action, result in results.items()}
        votes = Counter(match for match in matches.values() if match is not None)
        scores = {}
        for action, query in candidates.items():
            if situation.has_tried(action, query):
                scores[action] = REPEATED
            elif action == COT:
                scores[action] = CONCLUDING if _can_conclude(situation) else THINKING
            elif any((step.action, step.observation) == (action, results[action].text) for step in situation.steps):
                scores[action] = REPEATED if results[action].ok else FAILED
            else:
                scores[action] = self.worth(situation.question, results[action], matches[action], votes)
        return scores

    def worth(self, question: Question, result: ToolResult, match: int | None, votes: Counter[int]) -> float:
        """The score of one outcome; `match` is the option that it names, `votes` count those of all candidates."""
        if not result.ok:
            return FAILED
        if match is None:
            return RELATED if is_related(result.text, question) else USELESS
        if votes[match] == 1:
            return ALONE if len(votes) == 1 else DISPUTED
        return AGREED if votes[match] == 2 else AGREED_BY_MANY

    def process_ok(self, situation: Situation, step: PastStep) -> bool:
        """Sound is a new step that names an option or bears on the question, or reasoning from such a one."""
        if situation.has_tried(step.action, step.query) or step.observation.startswith("error:"):
            return False
        if step.action == COT:
            return _can_conclude(situation)
        match = match_option(step.observation, situation.question.options)
        return match is not None or is_related(step.observation, situation.question)


class RulesWithKeyJudge(RulesJudge):
    """Like `rules`, but an outcome counts by whether it names the right option: an upper bound, not a method."""

    name = "rules_with_key"
    sees_key = True

    def __init__(self, runner: ToolRunner, key: Mapping[str, int]) -> None:
        """`key` gives the place of the right option by question id."""
        super().__init__(runner)
        self._key = key

    def worth(self, question: Question, result: ToolResult, match: int | None, votes: Counter[int]) -> float:
        if match is None:
            return super().worth(question, result, match, votes)
        return RIGHT if match == self._right(question) else WRONG

    def process_ok(self, situation: Situation, step: PastStep) -> bool:
        match = match_option(step.observation, situation.question.options)
        is_wrong = match is not None and match != self._right(situation.question)
        return super().process_ok(situation, step) and not is_wrong

    def _right(self, question: Question) -> int:
        if question.question_id not in self._key:
            raise ConfigError(f"judge 'rules_with_key' has no key of question '{question.question_id}'; give one")
        return self._key[question.question_id]


def _can_conclude(situation: Situation) -> bool:
    """Whether there is something to reason about: an observation names an option, and the last step ran a tool."""
    if situation.steps and situation.steps[-1].action == COT:
        return False
    return vote((step.observation for step in situation.steps), situation.question.options) is not None
