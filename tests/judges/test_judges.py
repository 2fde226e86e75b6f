"""Judges: rules by hand, a language model behind a real server that misbehaves, the policy, and their agreement."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from judge_server import judge_server

from firesteel.environments.question_rows import Question
from firesteel.errors import AnswerInvalid, BudgetSpent, ConfigError, ServerFailed
from firesteel.judges import JUDGES, PastStep, Situation, ToolRunner, make_judge
from firesteel.judges.compare import Case, cohens_kappa, compare_judges, ranks
from firesteel.judges.llm import LlmJudge, check_process, check_scores, process_messages, scoring_messages
from firesteel.judges.matching import match_option, vote
from firesteel.judges.policy import PolicyJudge
from firesteel.judges.rules import RulesJudge, is_related
from firesteel.openai_client import ChatClient
from firesteel.selection import make_selector
from firesteel.tools import COT, Tool

QUESTION = Question("q1", "How many metres of copper wire?", ("12", "15", "20.5", "red wire"), "B", 1, "math")


class Echo(Tool):
    """Answers the query itself; "fail" fails."""

    name, description, example, example_output = "echo", "repeats", "x", "x"

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def answer(self, query: str) -> str:
        self.calls += 1
        if query == "fail":
            raise ValueError("no")
        return query


def runner() -> ToolRunner:
    return ToolRunner({name: Echo() for name in ("a", "b", "c", "d")})


def tried(*steps: tuple[str, str, str]) -> Situation:
    situation = Situation.start(QUESTION)
    for action, query, observation in steps:
        situation = situation.after(PastStep("thought", action, query, observation))
    return situation


# Which option an output names


@pytest.mark.parametrize(
    ("output", "option"),
    [
        ("15", 1), ("x = 15", 1), ("the result is 20.51", 2), ("20.6", None), ("15.01", None), ("12 or 15", None),
        ("12 m = 15 m", 1), ("possible: answer = 12, a = 15", 0), ("a Red wire.", 3), ("redwire", None),
        ("error: 15", None), ("2015-01-12", None), ("115", None), ("1.5e1", 1), ("", None), ("41/2 = 20.5", 2),
    ],
)  # fmt: skip
def test_match_option(output: str, option: int | None) -> None:
    assert match_option(output, QUESTION.options) == option


def test_votes_go_to_the_option_most_often_named() -> None:
    assert vote(["12", "15", "error: 12", "15", "nothing"], QUESTION.options) == 1
    assert vote(["15", "12"], QUESTION.options) == 1
    assert vote(["nothing"], QUESTION.options) is None


# Rules


def test_rules_score_what_candidates_yield() -> None:
    scores = RulesJudge(runner()).score(
        Situation.start(QUESTION), "", {"a": "15", "b": "15", "c": "12", "d": "fail", COT: "hm"}
    )
    assert scores == {"a": 8.5, "b": 8.5, "c": 6.5, "d": 1.0, COT: 5.0}


def test_rules_know_agreement_of_many_loneliness_and_relation() -> None:
    judge, start = RulesJudge(runner()), Situation.start(QUESTION)
    assert set(judge.score(start, "", {"a": "15", "b": "15", "c": "15"}).values()) == {9.5}
    assert judge.score(start, "", {"a": "15", "b": "zzz", "c": "a copper wire"}) == {"a": 7.5, "b": 3.0, "c": 6.25}
    assert is_related("copper and wire", QUESTION) and not is_related("copper only", QUESTION)


def test_rules_do_not_pay_for_repetition_and_pay_once_for_reasoning() -> None:
    judge = RulesJudge(runner())
    after = tried(("a", "15", "15"))
    assert judge.score(after, "", {"a": "15", "b": "15", COT: "so 15"}) == {"a": 4.0, "b": 8.5, COT: 8.0}
    assert judge.score(tried(("a", "15", "15"), (COT, "so 15", "Go on.")), "", {COT: "still 15"}) == {COT: 5.0}


def test_rules_say_which_steps_are_sound() -> None:
    judge, start = RulesJudge(runner()), Situation.start(QUESTION)
    assert judge.process_ok(start, PastStep("", "a", "15", "15"))
    assert judge.process_ok(start, PastStep("", "a", "x", "a copper wire"))
    assert not judge.process_ok(start, PastStep("", "a", "x", "nothing"))
    assert not judge.process_ok(start, PastStep("", "a", "x", "error: 15"))
    assert not judge.process_ok(tried(("a", "15", "15")), PastStep("", "a", "15", "15"))
    assert not judge.process_ok(start, PastStep("", COT, "hm", "Go on."))
    assert judge.process_ok(tried(("a", "15", "15")), PastStep("", COT, "so", "Go on."))


def test_a_situation_holds_no_key_and_rules_do_not_depend_on_it() -> None:
    start = Situation.start(QUESTION)
    assert (start.question.answer, start.question.answer_index) == ("", -1)
    other = Situation.start(Question("q1", QUESTION.question, QUESTION.options, "A", 0, "math"))
    assert start == other


def test_the_judge_with_the_key_is_labelled_and_uses_it() -> None:
    judge = make_judge("rules_with_key", runner=runner(), key={"q1": 1})
    assert judge.sees_key and not RulesJudge.sees_key
    assert judge.score(Situation.start(QUESTION), "", {"a": "15", "b": "12", "c": "12"}) == {
        "a": 9.5,
        "b": 2.0,
        "c": 2.0,
    }
    assert not judge.process_ok(Situation.start(QUESTION), PastStep("", "a", "12", "12"))
    with pytest.raises(ConfigError, match="has no key of question 'q1'"):
        make_judge("rules_with_key", runner=runner(), key={}).score(Situation.start(QUESTION), "", {"a": "15"})


def test_a_chosen_candidate_is_run_once() -> None:
    tools = runner()
    RulesJudge(tools).score(Situation.start(QUESTION), "", {"a": "15", "b": "15"})
    assert tools.run("a", "15").text == "15"
    assert tools.tools["a"].calls == 1  # type: ignore[attr-defined]
    assert not tools.run("nothing", "x").ok


def test_judges_are_made_by_name_with_what_they_need() -> None:
    assert sorted(JUDGES) == ["llm", "policy", "rules", "rules_with_key"]
    with pytest.raises(ConfigError, match="judge 'rules_with_key' needs key"):
        make_judge("rules_with_key", runner=runner())
    with pytest.raises(ConfigError, match="unknown judge 'rule' \\(did you mean 'rules'"):
        make_judge("rule")


# A language model


CANDIDATES = {"a": "12345", "b": "1234567890", COT: "think"}
EXPECTED = {"a": 5.0, "b": 10.0, COT: 5.0}


def client(url: str, **options: object) -> ChatClient:
    defaults: dict = {"timeout_s": 1.0, "backoff_s": 0.01, "max_attempts": 6}
    return ChatClient(url, "judge", "key", **(defaults | options))


@pytest.mark.parametrize("faults", ["", "429", "500", "malformed", "truncated", "slow", "wrong"])
def test_a_server_in_another_process_is_asked_until_it_answers(faults: str) -> None:
    situation = tried(("a", "15", "15"))
    with judge_server(faults) as url, client(url) as chat:
        judge = LlmJudge(chat)
        for number in range(3):
            candidates = {**CANDIDATES, "a": str(10000 + number)}
            assert judge.score(situation, f"thought {number}", candidates) == EXPECTED
            assert judge.process_ok(situation, PastStep("", "b", str(number), "15"))
        assert judge.ledger.calls_sent >= (6 if not faults else 8)


def test_answers_come_from_the_disk_and_the_budget_holds(tmp_path: Path) -> None:
    situation = Situation.start(QUESTION)
    with judge_server() as url, client(url, cache_dir=tmp_path, budget_tokens=100) as chat:
        assert LlmJudge(chat).score(situation, "", CANDIDATES) == EXPECTED
        assert LlmJudge(chat).score(situation, "", CANDIDATES) == EXPECTED
        assert (chat.ledger.calls_sent, chat.ledger.cache_hits, chat.ledger.tokens) == (1, 1, 110)
        with pytest.raises(BudgetSpent):
            LlmJudge(chat).score(situation, "another", CANDIDATES)


def test_replies_that_are_no_scores_end_in_a_clear_error() -> None:
    with judge_server("wrong,wrong") as url, client(url, max_attempts=1) as chat:
        judge = LlmJudge(chat)
        for _ in range(2):
            judge.score(Situation.start(QUESTION), "", CANDIDATES)
        with pytest.raises(AnswerInvalid, match="wanted scores of exactly \\['a', 'b', 'cot'\\], got {'cot': 99}"):
            judge.score(Situation.start(QUESTION), "", CANDIDATES)


def test_a_server_that_is_gone_is_an_error() -> None:
    with judge_server() as url:
        pass
    with client(url, max_attempts=2) as chat, pytest.raises(ServerFailed):
        LlmJudge(chat).score(Situation.start(QUESTION), "", CANDIDATES)


@pytest.mark.parametrize("score", [11, -1, "7", None, True, math.nan, [7]])
def test_scores_must_be_numbers_from_0_to_10(score: object) -> None:
    with pytest.raises(ValueError, match="the score of 'a' is"):
        check_scores({"scores": {"a": score}}, ["a"])


def test_scores_must_be_complete_and_verdicts_boolean() -> None:
    for scores in ({}, {"a": 1, "b": 2}, 3, None):
        with pytest.raises(ValueError, match="exactly \\['a'\\]"):
            check_scores({"scores": scores}, ["a"])
    assert check_scores({"scores": {"a": 7}}, ["a"]) == {"a": 7.0}
    with pytest.raises(ValueError, match="wanted true or false"):
        check_process({"process_ok": 1})


def test_no_prompt_of_a_judge_shows_the_key() -> None:
    situation = Situation.start(QUESTION)
    step = PastStep("", "a", "15", "15")
    texts = [m["content"] for m in [*scoring_messages(situation, "t", CANDIDATES), *process_messages(situation, step)]]
    other = Situation.start(Question("q1", QUESTION.question, QUESTION.options, "D", 3, "math"))
    again = [m["content"] for m in [*scoring_messages(other, "t", CANDIDATES), *process_messages(other, step)]]
    assert texts == again


# The policy


def test_the_policy_scores_by_mean_log_probability() -> None:
    # exp(-1 - -1) = 1, exp(-1 - ln 2 - -1) = 1/2
    judge = PolicyJudge(lambda state, texts: [-1.0 if text.startswith("a") else -1.0 - math.log(2) for text in texts])
    assert judge.score(Situation.start(QUESTION), "t", {"b": "y", "a": "x"}) == pytest.approx({"a": 10.0, "b": 5.0})
    assert not judge.process_ok(Situation.start(QUESTION), PastStep("", "a", "x", "error: no"))


# Agreement


def test_ranks_share_ties_and_kappa_is_agreement_beyond_chance() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]
    # observed 3/4; both say yes 1/2 and 3/4: expected 3/8 + 1/8 = 1/2; kappa 1/2
    assert cohens_kappa([(True, True), (True, True), (False, True), (False, False)]) == pytest.approx(0.5)
    assert math.isnan(cohens_kappa([(True, True)])) and math.isnan(cohens_kappa([]))


def test_judges_are_compared_on_the_same_cases() -> None:
    def judge(scores: dict[str, float]) -> PolicyJudge:
        made = PolicyJudge(lambda state, texts: [0.0])
        made.score = lambda situation, thought, candidates: scores  # type: ignore[method-assign]
        return made

    case = Case(Situation.start(QUESTION), "t", {"a": "1", "b": "2", "c": "3"}, PastStep("t", "a", "1", "15"))
    first, second = judge({"a": 9.0, "b": 7.0, "c": 1.0}), judge({"a": 9.0, "b": 5.0, "c": 6.5})
    found = compare_judges(first, second, [case, case], make_selector("rarity_first"))
    # ranks 3 2 1 and 3 1 2: Spearman 1/2; |differences| 0, 2, 5.5; viable {a, b} and {a, c}
    assert (found.n, found.same_best, found.same_choice) == (2, 1.0, 0.0)
    assert found.rank_correlation == pytest.approx(0.5)
    assert found.score_difference == pytest.approx(2.5)
    assert found.viable_overlap == pytest.approx(1 / 3)
    assert found.process_agreement == 1.0


def test_mean_log_probabilities_of_a_model_are_those_of_its_own_forward_pass() -> None:
    import torch

    from firesteel.judges.policy import model_mean_logprobs
    from firesteel.models import build_tiny_model, train_tokenizer

    tokenizer = train_tokenizer(["calculator: 2 + 2", "search: a town", "Action: "], vocab_size=300)
    model = build_tiny_model(tokenizer, hidden=32, layers=1, heads=2, kv_heads=1, max_context=64, seed=3).eval()
    state, texts = "Action: ", ["search: a town", "calculator: 2"]
    expected = []
    for text in texts:
        prompt, added = (
            tokenizer.encode(state, add_special_tokens=False),
            tokenizer.encode(text, add_special_tokens=False),
        )
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([prompt + added])).logits[0].double(), -1)
        each = [float(logprobs[len(prompt) + place - 1, token]) for place, token in enumerate(added)]
        expected.append(sum(each) / len(each))
    assert model_mean_logprobs(model, tokenizer)(state, texts) == pytest.approx(expected, abs=1e-5)
    scores = PolicyJudge(model_mean_logprobs(model, tokenizer)).score(
        Situation.start(QUESTION), "t", {"a": "1", COT: "2"}
    )
    assert max(scores.values()) == 10.0 and min(scores.values()) > 0
