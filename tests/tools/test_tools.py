"""The contract of all tools, and each one's answers against figures known beforehand."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import Handler, running_server

from firesteel.errors import ConfigError, MissingDependency, StoreError, ToolFailed
from firesteel.tools import TOOL_PRESETS, TOOLS, Tool, close_tools, deduction, make_tools
from firesteel.tools.base import MAX_OUTPUT_CHARACTERS, bounded, query_of
from firesteel.tools.calculator import Calculator
from firesteel.tools.dates import Dates
from firesteel.tools.dictionary import Dictionary, WordNet
from firesteel.tools.logic import Logic
from firesteel.tools.online import SemanticScholar, Wikipedia, WolframAlpha
from firesteel.tools.reference import Reference
from firesteel.tools.search import Search
from firesteel.tools.units import Units
from firesteel.tools.worker import Worker

TOWNS = ["Velmora is a harbour town founded in 1642.", "Karsen lies in the hills. It was founded in 1710."]


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, Tool]]:
    """The tools that need nothing but pip."""
    made: dict[str, Tool] = {
        "calculator": Calculator(),
        "dates": Dates(),
        "dictionary": Dictionary(glossary={"harbinger": "one that goes before"}),
        "logic": Logic(),
        "reference": Reference(),
        "search": Search(TOWNS),
        "units": Units(),
    }
    yield made
    close_tools(made)


# The contract


class Broken(Tool):
    name, description, example, example_output = "broken", "always fails", "x", ""

    def answer(self, query: str) -> str:
        raise ZeroDivisionError("inside the library")


class Chatty(Broken):
    def answer(self, query: str) -> str:
        return "a\x00b\x1b[31m" + "y" * 5000


def test_a_tool_that_raises_gives_an_error_to_read() -> None:
    result = Broken().call("x")
    assert (result.ok, result.text) == (False, "error: ZeroDivisionError: inside the library")


def test_output_is_bounded_and_has_no_control_characters() -> None:
    text = Chatty().call("x").text
    assert len(text) == MAX_OUTPUT_CHARACTERS
    assert text.startswith("ab[31myyy") and text.endswith("y [cut]")
    assert bounded("123456789", 9) == "123456789"
    assert bounded("1234567890", 9) == "123 [cut]"


@pytest.mark.parametrize("query", ["", "  \n", "x" * 2001, None, 7])
def test_empty_and_long_queries_are_refused(query: str) -> None:
    assert not Chatty().call(query).ok


def test_a_schema_is_json_and_names_the_only_argument(tools: dict[str, Tool]) -> None:
    for tool in tools.values():
        schema = json.loads(json.dumps(tool.schema))
        assert schema["name"] == tool.name
        assert schema["parameters"]["required"] == ["query"] == list(schema["parameters"]["properties"])


@pytest.mark.parametrize("name", ["calculator", "dates", "logic", "reference", "units"])
def test_every_example_gives_the_output_that_is_shown(tools: dict[str, Tool], name: str) -> None:
    tool = tools[name]
    assert tool.call(tool.example).text == tool.example_output


def test_queries_may_come_as_json_arguments() -> None:
    assert query_of("1 + 1") == "1 + 1"
    assert query_of('{"query": "1 + 1"}') == "1 + 1" == query_of({"query": "1 + 1"})
    for bad in ('{"query": 3}', '{"query": "a", "b": 1}', '{"query": '):
        with pytest.raises(ToolFailed, match="arguments"):
            query_of(bad)


def test_every_name_of_a_preset_is_a_tool() -> None:
    for preset in TOOL_PRESETS.values():
        assert set(preset.values()) <= set(TOOLS)
    assert len(TOOL_PRESETS["offline"]) == 8


def test_tools_are_made_by_name_and_by_path() -> None:
    made = make_tools({"when": "dates", "mine": f"{__name__}:Broken"}, {"when": {"max_output_characters": 9}})
    assert list(made) == ["mine", "when"]
    assert made["when"].call("easter 2025").text == "202 [cut]"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("ofline", {}, "unknown tool preset 'ofline' \\(did you mean 'offline'"),
        (["calculater"], {}, "unknown tool 'calculater' \\(did you mean 'calculator'"),
        (["dates"], {"units": {}}, "tool options name units, which is none of the tools dates"),
        (["dates"], {"dates": {"speed": 1}}, "tool 'dates' cannot be made with the options \\['speed'\\]"),
        (["cot"], {}, "'cot' is an action of its own"),
        ({"when": "dates", "find": "search"}, {}, "needs the option 'corpus'.*tools=\\{when: dates\\}"),
        ({"x": "builtins:True"}, {}, "tool 'x' cannot be made"),
        (["dates", "search"], {}, "tool 'search' needs the option 'corpus'.*choose tools without search.*=\\[dates\\]"),
    ],
)
def test_bad_tool_settings_are_named(names: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_tools(names, options)


# Each tool: answers that were worked out by hand or are defined so


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("347*29-118", "9945"),
        ("1/3 + 1/6", "1/2 = 0.5"),
        ("x^2 - 5x + 6 = 0", "x = [2, 3]"),
        ("15% of 80", "12"),
        ("powmod(7, 1000, 13)", "9"),  # 7^12 = 1 mod 13, 1000 = 83 * 12 + 4, 7^4 = 2401 = 9 mod 13
        ("gcd(12, 18)", "6"),
        ("median(3, 1, 4)", "3"),
        ("stdev([2, 4])", "1.41421356237"),
        ("round(2.675, 2)", "67/25 = 2.68"),
        ("integrate(exp(-x^2), x, -oo, oo)", "sqrt(pi) = 1.77245385091"),
        ("diff(x^3, x)", "3*x**2"),
    ],
)
def test_calculator(tools: dict[str, Tool], query: str, answer: str) -> None:
    assert tools["calculator"].call(query).text == answer


@pytest.mark.parametrize(
    "query",
    [
        "__import__('os').system('true')", "(1).__class__", "lambda: 1", "[x for x in (1, 2)]", "'a' * 3", "9^9^9",
        "factorial(10^6)", "binomial(10^9, 5)", "x^1000", "1/0", "0^-1", "f'{1}'", "(" * 300, "-" * 490 + "1",
        "1" * 61, "open('f')", "x.y", "solve(x + y = 1)", "10^(10^(10^10))", "True + 1", "abs(a=1)",
        "simplify(factorint(12))", "abs(factorint(12))", "-factorint(12)", "factorint(12) = 3", "[factorint(12)]",
    ],
)  # fmt: skip
def test_calculator_refuses_at_once_what_is_no_formula_or_enormous(tools: dict[str, Tool], query: str) -> None:
    result = tools["calculator"].call(query)
    assert not result.ok
    assert "no answer within" not in result.text


def slowly(text: str) -> str:
    """What a worker of the test below runs."""
    time.sleep(0.5)
    return text


def test_an_interrupted_wait_leaves_no_answer_for_the_next_query() -> None:
    """A step's time limit interrupts by a signal, wherever the main thread waits."""

    def expire(number: int, frame: object) -> None:
        raise ArithmeticError("late")

    worker = Worker(f"{__name__}:slowly", timeout_s=5, memory_mb=1024)
    assert worker.call("first") == "first"
    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(ArithmeticError):
            worker.call("old")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert worker.call("new") == "new"
    worker.close()


def test_a_query_that_takes_too_long_is_ended_and_the_next_one_works() -> None:
    calculator = Calculator(timeout_s=0.5)
    assert calculator.call("1 + 1").text == "2"
    assert calculator.call("integrate(x^x*sin(x^x)*exp(x^3), x)").text == "error: no answer within 0.5 s"
    calculator.close()
    calculator = Calculator()
    assert calculator.call("2 + 2").text == "4"
    calculator.close()


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("p or q; not p |- q", "yes, it follows"),
        ("p -> q; q |- p", "no, it does not follow: p = False, q = True"),
        ("a > b; b > c |- a > c", "yes, it follows"),
        ("a > b; b > a", "contradiction: the statements cannot all hold"),
        ("3*x + 7 = 52", "possible: x = 15"),
        ("(p -> q) -> p |- p", "yes, it follows"),  # Peirce's law
        ("p <-> q; q -> r |- p -> r", "yes, it follows"),
        ("a = b; a > 3 |- b > 3", "yes, it follows"),
    ],
)
def test_logic(tools: dict[str, Tool], query: str, answer: str) -> None:
    assert tools["logic"].call(query).text == answer


@pytest.mark.parametrize("query", ["p; p > 3", "import os", "f(p)", "p |- q |- r", ";;", "x ** y > 1", "p.q"])
def test_logic_refuses(tools: dict[str, Tool], query: str) -> None:
    assert not tools["logic"].call(query).ok


def test_what_is_undecided_does_not_depend_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deduction, "SOLVER_EFFORT", 200_000)
    with pytest.raises(ToolFailed, match="undecided within the limit of effort"):
        deduction.decide("x*x*x + y*y*y + z*z*z = 114; x > 0")
    assert deduction.decide("x + 1 = 2") == "possible: x = 1"


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("1 mile to meter", "1 mile = 1609.344 meter"),
        ("convert 100 degC to degF", "100 degree_Celsius = 212 degree_Fahrenheit"),
        ("72 kilometers per hour to meters per second", "72 kilometer per hour = 20 meter per second"),
    ],
)
def test_units(tools: dict[str, Tool], query: str, answer: str) -> None:
    assert tools["units"].call(query).text == answer


@pytest.mark.parametrize(
    "query", ["3 m to s", "9 m**99999 to s", "1 'a' to m", "5", "1 blorp to m", "1e300 m to femtometer", "1 m.to to m"]
)
def test_units_refuses(tools: dict[str, Tool], query: str) -> None:
    assert not tools["units"].call(query).ok


@pytest.mark.parametrize("unit", ["a" + "^0" * 29 + "!", "a" + "**00" * 14 + "!", "a" + "*" * 58, "a" + " " * 57 + "!"])
def test_no_unit_takes_long_to_refuse(tools: dict[str, Tool], unit: str) -> None:
    start = time.monotonic()
    assert not tools["units"].call(f"5 {unit} to m").ok
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("weekday of 2024-02-29", "Thursday"),
        ("2024-01-31 + 1 month", "2024-02-29, a Thursday"),
        ("2024-05-01 12:00 Europe/Berlin to Asia/Tokyo", "2024-05-01 19:00 in Asia/Tokyo"),  # +2 and +9 hours
        ("leap 1900", "1900 is not a leap year"),
        ("day of year 2024-03-01", "day 61"),  # 31 + 29 + 1
        ("last Friday of 2024-05", "2024-05-31"),
        ("weeks between 2024-01-01 and 2024-01-17", "2 weeks and 2 days"),
        ("years between 2000-03-01 and 2001-02-28", "0 years, 11 months and 27 days"),
        ("easter 2025", "2025-04-20"),
    ],
)
def test_dates(tools: dict[str, Tool], query: str, answer: str) -> None:
    assert tools["dates"].call(query).text == answer


@pytest.mark.parametrize(
    "query",
    [
        "weekday of 2023-02-29", "2024-13-01 + 1 day", "5th Monday of 2024-05", "easter 0001", "tomorrow",
        "9999-12-31 + 1 day", "2024-05-01 12:00 Europe/Atlantis to UTC", "2024-05-01 25:00 UTC to UTC",
    ],
)  # fmt: skip
def test_dates_refuses(tools: dict[str, Tool], query: str) -> None:
    assert not tools["dates"].call(query).ok


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("element iron", "iron: atomic number 26, atomic mass 55.845 gram per mole"),
        ("Fe", "iron: atomic number 26, atomic mass 55.845 gram per mole"),
        ("elementary charge", "elementary charge: 1.602176634e-19 coulomb"),
        ("molar mass of C6H12O6", "180.156 gram per mole"),
    ],
)
def test_reference(tools: dict[str, Tool], query: str, answer: str) -> None:
    assert tools["reference"].call(query).text == answer


@pytest.mark.parametrize("query", ["nonsense words", "molar mass of Zz9", "mass of " + "H999" * 20])
def test_reference_refuses(tools: dict[str, Tool], query: str) -> None:
    assert not tools["reference"].call(query).ok


# Search


def test_search_ranks_by_words(tools: dict[str, Tool]) -> None:
    assert tools["search"].call("harbour of Velmora").text.startswith(f"[1] {TOWNS[0]}")
    assert tools["search"].call("zzz").text == "nothing found"


def test_search_reads_a_folder_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Apples are red.\n\nPears are green.")
    (tmp_path / "b.jsonl").write_text('{"text": "Plums are blue.", "title": "Fruit"}\n')
    search = Search(tmp_path, num_results=1)
    assert search.passages == ["Apples are red.", "Pears are green.", "Fruit: Plums are blue."]
    assert search.call("plums").text == "[1] Fruit: Plums are blue."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; give a folder"),
        ("", "has no text; give a folder or a JSONL file"),
        ("not json\n", "line 1: wanted a JSON object, got 'not json'"),
        ('{"body": "x"}\n', "line 1: wanted an object with a text under 'text'"),
    ],
)
def test_a_bad_corpus_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StoreError, match=message):
        Search(path)


def test_an_empty_list_is_an_empty_corpus() -> None:
    with pytest.raises(StoreError, match="the search corpus the given texts has no text"):
        Search([])


# Dictionary: a WordNet of two nouns and a verb, with the offsets that its index names


def write_wordnet(folder: Path) -> None:
    licence = "  1 This is the licence.  \n"
    ship = '03 n 02 ship 0 vessel(p) 0 000 | something that sails; "the ship sank"\n'
    pier = "06 n 01 pier 0 000 | where ships land\n"
    first = len(licence)
    second = first + len(f"{first:08d} ") + len(ship)
    (folder / "data.noun").write_text(f"{licence}{first:08d} {ship}{second:08d} {pier}")
    (folder / "index.noun").write_text(
        f"{licence}pier n 1 0 1 0 {second:08d}  \n"
        f"ship n 2 0 2 0 {first:08d} {second:08d}  \n"
        f"vessel n 1 0 1 0 {first:08d}  \n"
    )
    (folder / "data.verb").write_text(f"{licence}{first:08d} 30 v 01 ship 0 000 | to send\n")
    (folder / "index.verb").write_text(f"{licence}ship v 1 0 1 0 {first:08d}  \n")
    for part in ("adj", "adv"):
        (folder / f"data.{part}").write_text(licence)
        (folder / f"index.{part}").write_text(licence)


def test_dictionary_reads_the_files_of_wordnet(tmp_path: Path) -> None:
    write_wordnet(tmp_path)
    dictionary = Dictionary(tmp_path)
    assert dictionary.call("define Ship?").text.splitlines() == [
        'ship (noun): something that sails; "the ship sank"; also: vessel',
        "ship (noun): where ships land; also: pier",
        "ship (verb): to send",
    ]
    assert dictionary.call("pier").text == "pier (noun): where ships land"
    assert [dictionary.call(word).text for word in ("a", "pies", "zoo")] == [
        f"no entry for '{word}'" for word in ("a", "pies", "zoo")
    ]


def test_a_folder_without_the_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a folder of WordNet's files: index.noun"):
        WordNet(tmp_path)


def test_without_wordnet_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firesteel.tools.dictionary.find_wordnet", lambda: None)
    with pytest.raises(MissingDependency, match="apt-get install wordnet-base.*WNSEARCHDIR"):
        Dictionary()


def test_a_glossary_needs_no_wordnet(tools: dict[str, Tool]) -> None:
    assert tools["dictionary"].call("meaning of Harbinger").text == "harbinger: one that goes before"


# Networked tools


@pytest.mark.parametrize("tool", [Wikipedia(), SemanticScholar(), WolframAlpha()])
def test_networked_tools_are_off(tool: Tool) -> None:
    assert tool.call("anything").text == (
        f"error: the networked tool '{tool.name}' is off; set its option enabled=true to use it"
    )


def test_a_networked_tool_reads_what_a_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"query": {"search": [{"title": "Pier", "snippet": 'a <span class="x">pier</span> is'}]}}
    replies = [(200, json.dumps(found).encode()), (200, b"<html>"), (200, b'{"query": 3}'), (503, b"")]
    monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.reply(*replies.pop(0)), raising=False)
    with running_server() as server:
        wikipedia = Wikipedia(enabled=True, base_url=server.url)
        assert wikipedia.call("pier").text == "Pier: a pier is"
        for _ in range(2):
            assert wikipedia.call("pier").text == "error: 'wikipedia' answered in another form than expected"
        assert wikipedia.call("pier").text == "error: 'wikipedia' answered with status 503"
    assert wikipedia.call("pier").text == "error: 'wikipedia' did not answer: ConnectError"
