"""Reading and writing calls: by hand, back and forth, and 10,000 damaged texts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firesteel.environments.tool_calls.examples import read_examples
from firesteel.environments.tool_calls.formats import FORMATS, show_tools, signature
from firesteel.environments.tool_calls.parsers import Parsed, read_hermes, read_llama3, read_python, without_sections
from firesteel.environments.tool_calls.tasks import Call, call_of, canonical, same_calls
from firesteel.errors import ConfigError, TaskError

WEATHER = {
    "name": "weather",
    "description": "Weather of a place.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "description": "1 to 7"},
                       "unit": {"type": "string", "enum": ["C", "F"]}},
        "required": ["city", "days"],
    },
}  # fmt: skip


def calls(text: str, name: str = "hermes") -> list[dict]:
    parsed = FORMATS[name].read(text, [WEATHER])
    assert parsed.problem is None, parsed.problem
    return [call.to_dict() for call in parsed.calls]


def test_equality_is_typed_and_blind_to_the_order_of_keys():
    assert canonical({"a": 1, "b": [2.0]}) == canonical({"b": [2], "a": 1})
    different = [1, "1", True, 1.5, None, [1], {"1": 1}, "True"]
    assert len({canonical(value) for value in different}) == len(different)
    assert canonical([1, 2]) != canonical([2, 1])


def test_sets_of_calls_are_blind_to_order_but_count():
    f1, f2, g = Call("f", {"x": 1}), Call("f", {"x": 2}), Call("g")
    assert same_calls([f1, g], [g, f1])
    assert not same_calls([f1, f1], [f1])
    assert not same_calls([f1, f1, f2], [f1, f2, f2])


@pytest.mark.parametrize("record", [None, [], {}, {"name": ""}, {"name": 3}, {"name": "f", "arguments": [1]}, "f"])
def test_what_is_no_call_is_refused(record):
    with pytest.raises(TaskError):
        call_of(record)


def test_hermes_by_hand():
    text = (
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'
        '<tool_call>{"name": "f"}</tool_call> Done'
    )
    parsed = read_hermes(text)
    assert parsed.calls == (Call("weather", {"city": "Oslo", "days": 2}), Call("f"))
    assert parsed.outside == "Let me see.\n Done"
    assert read_hermes("no tool fits") == Parsed((), "no tool fits")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<tool_call>{", "counterpart"),
        ("</tool_call>", "counterpart"),
        ('<tool_call><tool_call>{"name": "f"}</tool_call>', "counterpart"),
        ("<tool_call>f(x)</tool_call>", "not JSON"),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "not an object"),
        ('<tool_call>{"name": "f", "parameters": {}}</tool_call>', "other keys"),
        ('<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>', "NaN is not JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x": 1e999}}</tool_call>', "not finite"),
        ('<tool_call>{"name": "f", "arguments": {"x": 1, "x": 2}}</tool_call>', "twice"),
        ('<tool_call>{"name": "f"} {"name": "g"}</tool_call>', "after the JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>', "surrogate"),
        ('<tool_call>{"name": "f", "arguments": {"x": ' + "[" * 50 + "]" * 50 + "}}</tool_call>", "deep"),
        ('<tool_call>{"name": "f", "arguments": {"x": ' + "[" * 50_000 + "</tool_call>", "not JSON"),
        ('<tool_call>{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}</tool_call>", "not JSON"),
        ("x" * 200_000, "longer than"),
    ],
)
def test_hermes_mistakes_are_named_and_call_nothing(text, problem):
    parsed = read_hermes(text)
    assert problem in parsed.problem
    assert parsed.calls == ()


def test_llama3_by_hand():
    one, two = '{"name": "f", "parameters": {"x": 1}}', '{"name": "g", "parameters": {}}'
    both = [Call("f", {"x": 1}), Call("g")]
    for text in (f"{one}; {two}", f"{one}\n{two}", f"[{one}, {two}]", f"<|python_tag|>{one};{two}<|eom_id|>"):
        assert list(read_llama3(text).calls) == both
    assert read_llama3("I cannot.") == Parsed((), "I cannot.")
    assert "other keys" in read_llama3('{"name": "f", "arguments": {}}').problem
    assert "not JSON" in read_llama3(f"{one} and then").problem


def test_python_by_hand():
    text = "[weather('Oslo', days=2), a.b(x=-1.5, y=(1, [True, None]), z={'k': 'v'}, w=word, v=true)]"
    assert calls(text, "python") == [
        {"name": "weather", "arguments": {"city": "Oslo", "days": 2}},
        {"name": "a.b", "arguments": {"x": -1.5, "y": [1, [True, None]], "z": {"k": "v"}, "w": "word", "v": True}},
    ]
    assert calls("weather(city='Oslo', days=2)", "python") == calls("[weather('Oslo', 2)]", "python")
    assert read_python("no tool fits") == Parsed((), "no tool fits")
    assert read_python("[]") == Parsed()
    assert calls(r"[f(x='\d')]", "python") == [{"name": "f", "arguments": {"x": r"\d"}}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[f(", "SyntaxError"),
        ("[1]", "not a call"),
        ("[f(1)]", "parameters"),
        ("[weather('a', city='b')]", "twice"),
        ("[f(**x)]", "**"),
        ("[f(x=g(1))]", "is a Call"),
        ("[f(x=1 + 1)]", "is a BinOp"),
        ("[f(x=__import__('os').system('ls'))]", "is a Call"),
        ("[f(x=b'a')]", "bytes"),
        ("[f(x=1j)]", "complex"),
        ("[f(x=...)]", "ellipsis"),
        ("[f(x=1e999)]", "finite"),
        ("[f(x=0x" + "F" * 5000 + ")]", "bits"),
        ("[f(x=-0b" + "1" * 20_000 + ")]", "bits"),
        ("[f(x={1: 2})]", "key"),
        ("[f(x={'a': 1, 'a': 2})]", "twice"),
        ("[f(x='\\ud800')]", "surrogate"),
        ("[f()()]", "not a name"),
        ("[f(x=\0)]", "not a list"),
        ("[" * 5000, "not a list"),
        ("[f(x=" + "-" * 20_000 + "1)]", ""),
        ("[f(x=" + "[" * 60 + "]" * 60 + ")]", "deep"),
    ],
)
def test_python_mistakes_are_named_and_call_nothing(text, problem):
    parsed = read_python(text, [WEATHER])
    assert parsed.problem is not None
    assert problem.lower() in parsed.problem.lower()
    assert parsed.calls == ()


def test_sections_are_taken_out_where_they_are_complete():
    assert without_sections("<think>a<b></think>x<explore>\n</explore>y<examples>[]</examples>z<think>") == "xyz<think>"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>it's [1]</think>[f(x='<think>a</think>')]", "[f(x='<think>a</think>')]"),
        ('<think>"</think>{"x": "a\\"<think>b</think>"}<think>"</think>', '{"x": "a\\"<think>b</think>"}'),
        ("<tool_call><think>a</think></tool_call><think>b</think>", "<tool_call><think>a</think></tool_call>"),
        ("<think><tool_call>x</tool_call></think>y", "y"),
        ("[f()]<think>don't</think>", "[f()]"),
        ("[f(x='<think>a</think>)]", "[f(x=')]"),  # the quoted text does not end
        ('so "<think>a</think>" [f()]', 'so "" [f()]'),
    ],
)
def test_what_looks_like_a_section_in_an_argument_stays(text, left):
    assert without_sections(text) == left


def test_taking_sections_out_takes_linear_time():
    for piece in ("<think>", '\\"', '["', "<tool_call>", "'\\"):
        assert without_sections("[" + piece * 200_000) == "[" + piece * 200_000


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda word: word not in {"as", "if", "in", "is", "or", "and", "not", "for", "def", "del", "try", "true", "false",
                              "null", "from", "else", "elif", "with", "pass", "raise", "class", "while", "yield",
                              "async", "await", "break", "global", "import", "lambda", "return", "assert", "except",
                              "finally", "continue", "nonlocal"}
)  # fmt: skip
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(lambda text: "tool_call>" not in text)
NUMBERS = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.builds(Call, NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(CALLS)
def test_what_is_written_is_read(name, written):
    parsed = FORMATS[name].read(FORMATS[name].write(written), ())
    assert parsed.problem is None
    assert parsed.outside == ""
    assert [call.key() for call in parsed.calls] == [call.key() for call in written]


def test_python_refuses_what_it_cannot_write():
    for call in (Call("get-weather"), Call("f", {"class": 1}), Call("f", {"Content-Type": 1})):
        with pytest.raises(ConfigError, match="use 'hermes'"):
            FORMATS["python"].write([call])


GOOD = [
    '<tool_call>{"name": "weather", "arguments": {"city": "Oslo", "days": 2, "x": [1.5, null, {"a": true}]}}'
    "</tool_call>",
    '{"name": "weather", "parameters": {"city": "Oslo"}}; {"name": "f", "parameters": {}}',
    "[weather('Oslo', days=2), a.b(x=-1.5, y=(1, [True, None]), z={'k': 'v'})]",
    '<examples>[{"tool": "f", "question": "q", "answer": {"name": "f"}}, {"tool": "f", "question": "r", "answer": 1}]'
    "</examples><think>so</think><tool_call>{}</tool_call>",
]
PIECES = [
    "<tool_call>", "</tool_call>", "<examples>", "</examples>", "{", "}", "[", "]", "(", ")", '"', "'", "\\", ",", ":",
    "=", "\0", "\ud800", "\\ud800", "é", "NaN", "1e999", "-", "**", "lambda: 0", "__import__('os')", "\n", "9" * 400,
    "[" * 300, "{" * 300, "0x" + "F" * 4000, "#", "f'{x}'", "\\N{x}", "\x0c", "@", "0777", "\u2028",
]  # fmt: skip


def damaged(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        place, kind = rng.randrange(len(text) + 1), rng.randrange(5)
        end = min(len(text), place + rng.randint(1, 12))
        if kind == 0:
            text = text[:place] + text[end:]
        elif kind == 1:
            text = text[:place] + rng.choice(PIECES) + text[place:]
        elif kind == 2:
            text = text[:place] + rng.choice(PIECES) + text[end:]
        elif kind == 3:
            text = text[:place]
        else:
            text = text[:place] + text[place:end] * 3 + text[end:]
    return text


def test_twelve_thousand_damaged_texts_crash_no_parser():
    rng = random.Random(0)
    outcomes = {"calls": 0, "problem": 0, "nothing": 0}
    for number in range(12_000):
        text = damaged(GOOD[number % len(GOOD)], rng)
        for read in (read_hermes, read_llama3, read_python):
            parsed = read(text, [WEATHER])
            assert not (parsed.problem and parsed.calls)
            outcomes["problem" if parsed.problem else "calls" if parsed.calls else "nothing"] += 1
            assert all(call.key() for call in parsed.calls)
        examples = read_examples(text)
        assert examples.problem is not None or len(examples.distinct) <= examples.count
    assert sum(outcomes.values()) == 36_000
    assert min(outcomes.values()) > 100  # the damage is neither always fatal nor always harmless


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_answered(text):
    for read in (read_hermes, read_llama3, read_python):
        assert read(text, [WEATHER]).calls is not None


def test_tools_are_shown_as_json_or_as_a_signature():
    assert signature(WEATHER) == "weather(city: string, days: integer (1 to 7), unit?: C|F) Weather of a place."
    assert show_tools([WEATHER], "json").startswith('{"name": "weather", "description"')
