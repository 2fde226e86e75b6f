"""Prompts as token ids, responses as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from firesteel.context import ContextBuilder, HistoryStep, parse_response
from firesteel.errors import ConfigError, ContextOverflow, ModelError
from firesteel.models import COMPACT_CHAT_TEMPLATE, load_tokenizer, train_tokenizer, write_random_hub_model
from firesteel.plugins import load
from firesteel.prompts import PROMPTS, format_response, format_step
from firesteel.types import ExpertStep, Observation

TEXTS = ["put a mug in cabinet 12\nYou see a cabinet 12 and a desk 1.\n> go to desk 1", "a.\n\nb\n \nc\n\n\n1"] * 4
KINDS = ("compact", "chatml")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = write_random_hub_model(tmp_path_factory.mktemp("hub"), texts=TEXTS, vocab_size=400, hidden=16, layers=1)
    return {"compact": train_tokenizer(TEXTS, vocab_size=400), "chatml": load_tokenizer(directory)}


@pytest.fixture(scope="module")
def builders(tokenizers: dict[str, Any]) -> dict[str, ContextBuilder]:
    return {kind: ContextBuilder(tokenizer, "compact") for kind, tokenizer in tokenizers.items()}


@pytest.fixture
def tokenizer(tokenizers: dict[str, Any]) -> Any:
    return tokenizers["compact"]


def with_template(template: str, tokenizer: Any) -> PreTrainedTokenizerFast:
    """A copy of the compact tokenizer that speaks another template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|eos|>", pad_token="<|pad|>", chat_template=template
    )


def whole(tokenizer: Any, contents: Sequence[str]) -> list[int]:
    """The template's own rendering of a conversation that the user opens."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return token_ids


# wording


def test_compact_wording_by_hand() -> None:
    prompts = PROMPTS["compact"]
    assert prompts.opening(goal="G", observation="O", admissible=None) == "G\nO"
    assert prompts.opening(goal="G", observation="O", admissible=("a", "b")) == "G\nO\nActions: a; b"
    assert prompts.turn(goal="G", observation="O", admissible=None) == "O"
    window = prompts.window(
        goal="G", num_steps=7, history=[("O5", "a5"), ("O6", "a6")], observation="O7", admissible=("a",)
    )
    assert window == "G\n[7]\nO5\n> a5\nO6\n> a6\nO7\nActions: a"


def test_goal_last_wording_by_hand() -> None:
    prompts = PROMPTS["goal_last"]
    assert prompts.opening(goal="G", observation="O", admissible=None) == "O\nG"
    assert prompts.turn(goal="G", observation="O", admissible=("a", "b")) == "O\nActions: a; b\nG"
    window = prompts.window(goal="G", num_steps=7, history=[("O6", "a6")], observation="O7", admissible=None)
    assert window == "[7]\nO6\n> a6\nO7\nG"


def test_spark_wording_has_the_listed_contents_in_order() -> None:
    text = PROMPTS["spark"].window(
        goal="boil water", num_steps=7, history=[("a sink", "look"), ("a pot", "take pot")], observation="a stove",
        admissible=("wait", "light stove"),
    )  # fmt: skip
    contents = [
        "Task: boil water", "taken so far: 7", "The last 2", "[6] Observation: a sink", "[6] Action: look",
        "[7] Observation: a pot", "[7] Action: take pot", "Current observation: a stove", "- wait", "- light stove",
        "one short sentence", "exactly one of two tags", "<explore>...</explore>", "<think>...</think>",
        "exactly one action in <action>...</action>",
    ]  # fmt: skip
    positions = [text.find(content) for content in contents]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert all(text.count(content) == 1 for content in contents)


@pytest.mark.parametrize("name", ["compact", "spark", "tool_calls"])
def test_a_window_before_the_first_step_is_the_opening(name: str) -> None:
    prompts = load(name, PROMPTS, kind="prompts")
    window = prompts.window(goal="G", num_steps=0, history=[], observation="O", admissible=("a",))
    assert window == prompts.opening(goal="G", observation="O", admissible=("a",))


def test_format_response_by_hand() -> None:
    step = ExpertStep(action="go to desk 1", explore=True, reason="mug unseen")
    assert format_response(step) == "<explore>mug unseen</explore><action>go to desk 1</action>"
    step = ExpertStep(action="take mug", explore=False, reason="found it")
    assert format_response(step) == "<think>found it</think><action>take mug</action>"


# responses


def test_a_valid_response() -> None:
    parsed = parse_response(" so: <explore> odd\nresult </explore>\nthen <action> go to desk 1 </action> done")
    assert (parsed.action, parsed.reasoning, parsed.tag) == ("go to desk 1", "odd\nresult", "explore")
    assert (parsed.explore, parsed.valid, parsed.problem) == (True, True, None)
    parsed = parse_response("<think>去</think><action>走</action>")
    assert (parsed.action, parsed.tag, parsed.explore, parsed.valid) == ("走", "think", False, True)


@pytest.mark.parametrize(
    ("text", "action", "tag", "problem"),
    [
        ("<think>x</think>go", "<think>x</think>go", "think", "no complete <action>"),
        ("<think>x</think><action>go", "<think>x</think><action>go", "think", "no complete <action>"),
        ("<think>x</think><action>a</action><action>b</action>", "a", "think", "2 action tags"),
        ("<think>x</think><action>a</action></action>", "a", "think", "2 action tags"),
        ("<think>x</think><action> </action>", "<think>x</think><action> </action>", "think", "empty <action>"),
        ("<action>a</action>", "a", None, "no complete <explore>"),
        ("<think>x<action>a</action>", "a", None, "no complete <explore>"),
        ("<explore>x</think><action>a</action>", "a", None, "no complete <explore>"),
        ("<think>x</think><explore>y</explore><action>a</action>", "a", "think", "2 reasoning tags"),
        ("<think>x</think><think>y</think><action>a</action>", "a", "think", "2 reasoning tags"),
        ("<think>x</think><explore><action>a</action>", "a", "think", "2 reasoning tags"),
        ("<explore> </explore><action>a</action>", "a", "explore", "empty <explore>"),
        ("<action>a</action><think>x</think>", "a", "think", "not stand before"),
        ("<think>x <action>a</action></think>", "a", "think", "not stand before"),
    ],
)
def test_invalid_responses_still_act(text: str, action: str, tag: str | None, problem: str) -> None:
    parsed = parse_response(text)
    assert not parsed.valid
    assert parsed.problem is not None and problem in parsed.problem
    assert (parsed.action, parsed.tag) == (action, tag)


def test_without_an_action_the_last_line_is_cut_to_80() -> None:
    assert parse_response(f"first\n  {'y' * 90} \n\n").action == "y" * 80
    for empty in ("", " \n "):
        assert parse_response(empty).action is None
        assert not parse_response(empty).valid


def test_explore_is_a_complete_tag_even_in_an_invalid_response() -> None:
    assert parse_response("<think>x</think><explore>y</explore>").explore
    assert not parse_response("<explore>y").explore
    assert not parse_response("<explore>y</think><action>a</action>").explore


# mode full


def test_full_mode_by_hand(tokenizer: Any) -> None:
    builder = ContextBuilder(tokenizer, "compact")
    tokens = tokenizer.convert_ids_to_tokens(builder.first("put a mug", Observation("You see a desk 1.")))
    assert tokens == ["<|user|>", "put", "Ġa", "Ġmug", "Ċ", "You", "Ġsee", "Ġa", "Ġdesk", "Ġ1", ".", "<|assistant|>"]
    seen = ["<|user|>", "You", "Ġsee", "Ġa", "Ġdesk", "Ġ1", ".", "<|assistant|>"]
    assert tokenizer.convert_ids_to_tokens(builder.next_turn(True, "G", Observation("You see a desk 1."))) == seen
    cut = tokenizer.convert_ids_to_tokens(builder.next_turn(False, "G", Observation("You see a desk 1.")))
    assert cut == ["<|eos|>", *seen]


def test_chatml_by_hand(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["chatml"]
    builder = ContextBuilder(tokenizer, "compact", show_admissible=True)
    observation = Observation("You see.", ("go", "look"))
    turn = "\n<|im_start|>user\nYou see.\nActions: go; look<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(builder.next_turn(True, "G", observation)) == turn
    assert tokenizer.decode(builder.next_turn(False, "G", observation)) == f"<|im_end|>{turn}"
    assert builder.end_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert builder.stop_token_ids == (builder.end_token_id,)


@pytest.mark.parametrize("kind", KINDS)
def test_the_usual_templates_are_rendered_once(builders: dict[str, ContextBuilder], kind: str) -> None:
    bridge = builders[kind]._bridge
    assert bridge is not None
    assert bridge.is_constant and builders[kind]._opening.is_constant


def test_returned_lists_can_be_changed_without_harm(tokenizer: Any) -> None:
    builder = ContextBuilder(tokenizer, "compact")
    first = builder.next_turn(False, "G", Observation("desk"))
    first.append(-1)
    assert builder.next_turn(False, "G", Observation("desk")) == first[:-1]


TEXT = st.text(alphabet=" \n\tab12.<|>é→\u0301", max_size=12)
WORDS = st.text(alphabet="ab 1.é→", min_size=1, max_size=12)
TURN = st.tuples(st.sampled_from(["explore", "think"]), WORDS, WORDS, TEXT)


@pytest.mark.parametrize("kind", KINDS)
@given(goal=TEXT, opening=TEXT, turns=st.lists(TURN, max_size=3))
@settings(max_examples=40, deadline=None)
def test_full_mode_equals_the_whole_template(
    builders: dict[str, ContextBuilder], kind: str, goal: str, opening: str, turns: list[tuple[str, str, str, str]]
) -> None:
    builder = builders[kind]
    token_ids, contents = builder.first(goal, Observation(opening)), [f"{goal}\n{opening}"]
    for tag, reason, action, seen in turns:
        response = format_step(tag, reason, action)
        token_ids += builder.encode_response(response) + builder.next_turn(True, "G", Observation(seen))
        contents += [response, seen]
    assert token_ids == whole(builder.tokenizer, contents)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_response_is_closed_for_it(tokenizers: dict[str, Any], kind: str) -> None:
    tokenizer = tokenizers[kind]
    builder = ContextBuilder(tokenizer, "compact")
    complete = builder.encode_response("<think>a")
    assert builder.ended(complete) and not builder.ended(complete[:-1]) and not builder.ended([])
    joined = builder.first("G", Observation("O")) + complete[:-1] + builder.next_turn(False, "G", Observation("P"))
    assert joined == whole(tokenizer, ["G\nO", "<think>a", "P"])


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_keeps_tags_and_drops_the_end(tokenizers: dict[str, Any], kind: str) -> None:
    builder = ContextBuilder(tokenizers[kind], "spark")
    text = "<explore>a mug\n é</explore><action>go</action>"
    assert builder.decode_response(builder.encode_response(text)) == text
    assert builder.decode_response(builder.encode_response(text)[:-1]) == text


def test_tags_that_are_special_tokens_are_kept_too(tokenizer: Any) -> None:
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken("<think>", special=True), AddedToken("</think>", special=True)])
    changed = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|eos|>", chat_template=COMPACT_CHAT_TEMPLATE
    )
    text = "<think>a</think><action>go</action>"
    token_ids = changed.encode(text, add_special_tokens=False)
    assert changed.decode(token_ids, skip_special_tokens=True) == "a<action>go</action>"
    assert ContextBuilder(changed, "compact").decode_response([*token_ids, changed.eos_token_id]) == text


# other templates

TRIMMING = COMPACT_CHAT_TEMPLATE.replace("message['content']", "(message['content'] | trim)")
REWRITING = COMPACT_CHAT_TEMPLATE.replace("message['content']", "message['content'].replace('desk', 'table')")
THINKING = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}"
    "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>' if loop.last else '' }}"
    "{{ m['content'].split('</think>')[-1] + '<|eos|>\n' }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% if quiet %}{{ '<think></think>' }}{% endif %}{% endif %}"
)


@pytest.mark.parametrize("text", ["a desk 1", " \n a desk \n", "", "\n\n", "x\n"])
@pytest.mark.parametrize(("template", "is_constant"), [(TRIMMING, True), (REWRITING, False), (THINKING, True)])
def test_templates_that_alter_content(tokenizer: Any, template: str, is_constant: bool, text: str) -> None:
    changed = with_template(template, tokenizer)
    builder = ContextBuilder(changed, "compact")
    assert builder._opening.is_constant is is_constant
    assert builder.first("G", Observation(text)) == whole(changed, [f"G\n{text}"])
    joined = whole(changed, ["G"]) + builder.encode_response("r") + builder.next_turn(True, "G", Observation(text))
    assert joined == whole(changed, ["G", "r", text])


def test_template_options_reach_the_template(tokenizer: Any) -> None:
    changed = with_template(THINKING, tokenizer)
    builder = ContextBuilder(changed, "compact", template_options={"quiet": True})
    tokens = changed.convert_ids_to_tokens(builder.next_turn(True, "G", Observation("desk")))
    assert tokens[-4:] == ["<|assistant|>", "Ċ", "<think>", "</think>"]


def test_a_turn_closed_by_another_token_than_eos(tokenizer: Any) -> None:
    changed = with_template(COMPACT_CHAT_TEMPLATE.replace("<|eos|>", "<|system|>"), tokenizer)
    builder = ContextBuilder(changed, "compact")
    end, eos = (changed.get_vocab()[token] for token in ("<|system|>", "<|eos|>"))
    assert builder.end_token_id == end
    assert builder.stop_token_ids == tuple(sorted((end, eos)))
    assert builder.encode_response("go")[-1] == end
    assert builder.decode_response([*builder.encode_response("go"), eos]) == "go"
    assert builder.next_turn(False, "G", Observation("x"))[0] == end
    assert builder.next_turn(True, "G", Observation("x")) == builder.next_turn(False, "G", Observation("x"))[1:]


def test_whitespace_before_the_end_token_is_not_part_of_the_bridge(tokenizer: Any) -> None:
    changed = with_template(COMPACT_CHAT_TEMPLATE.replace("'<|eos|>'", "' <|eos|>'"), tokenizer)
    builder = ContextBuilder(changed, "compact")
    assert changed.decode(builder.next_turn(True, "G", Observation("x"))) == "<|user|>x<|assistant|>"
    assert changed.decode(builder.next_turn(False, "G", Observation("x"))) == "<|eos|><|user|>x<|assistant|>"


def test_a_template_without_end_tokens(tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    changed = with_template(template, tokenizer)
    builder = ContextBuilder(changed, "compact")
    assert builder.end_token_id == changed.eos_token_id
    for ended in (True, False):
        assert changed.decode(builder.next_turn(ended, "G", Observation("x"))) == "\nuser: x\nassistant:"


def test_a_tokenizer_that_puts_a_space_before_every_text() -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "▁": 2, "▁[U]": 3, "▁[A]": 4, "▁desk": 5, "▁go": 6}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    template = (
        "{% for m in messages %}{{ '[U] ' + m['content'] + ' [A]' if m['role'] == 'user' else ' ' + m['content'] }}"
        "{{ '</s>' if m['role'] == 'assistant' }}{% endfor %}"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", chat_template=template)
    builder = ContextBuilder(tokenizer, "compact")
    assert builder.first("desk", Observation("desk")) == whole(tokenizer, ["desk\ndesk"])
    bridge = builder.next_turn(False, "G", Observation("desk"))
    complete = whole(tokenizer, ["go", "go", "desk"])
    assert bridge == complete[complete.index(1) :]
    assert builder.next_turn(True, "G", Observation("desk")) == bridge[1:]


def test_a_response_is_tokenised_as_it_stands_after_the_prompt() -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "<a>": 2, "▁": 3, "▁go": 4, "go": 5, "▁desk": 6}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("</s>", "<a>")])
    template = "{% for m in messages %}{{ m['content'] + ('<a>' if m['role'] == 'user' else '</s>') }}{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", chat_template=template)
    assert tokenizer.encode("go", add_special_tokens=False) == [4]
    assert ContextBuilder(tokenizer, "compact").encode_response("go") == [5, 1]


def test_templates_that_lose_messages_are_refused(tokenizer: Any) -> None:
    deaf = COMPACT_CHAT_TEMPLATE.replace("+ message['content']", "")
    with pytest.raises(ModelError, match="shows the user's message 0 times"):
        ContextBuilder(with_template(deaf, tokenizer), "compact")
    mute = COMPACT_CHAT_TEMPLATE.replace(
        "+ message['content']", "+ ('' if message['role'] == 'assistant' else message['content'])"
    )
    with pytest.raises(ModelError, match="shows the assistant's message 0 times"):
        ContextBuilder(with_template(mute, tokenizer), "compact")
    window = ContextBuilder(with_template(mute, tokenizer), "compact", mode="window")
    assert window.end_token_id == tokenizer.eos_token_id
    with pytest.raises(ModelError, match="has no chat template"):
        ContextBuilder(PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer), "compact")
    refusing = "{{ raise_exception('only one message') if messages | length > 1 }}" + COMPACT_CHAT_TEMPLATE
    with pytest.raises(ModelError, match=r"refuses a conversation of 2 messages.*only one message"):
        ContextBuilder(with_template(refusing, tokenizer), "compact")


def test_different_ends_of_a_turn_are_refused(tokenizer: Any) -> None:
    template = COMPACT_CHAT_TEMPLATE.replace("'<|eos|>'", "'<|eos|>' if loop.last else '<|pad|>'")
    with pytest.raises(ModelError, match=r"closes an assistant turn with '<\|eos\|>' at the end"):
        ContextBuilder(with_template(template, tokenizer), "compact")


# mode window

STEPS = [HistoryStep(f"O{i}", f"a{i}", "why", "explore" if i == 2 else None) for i in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_one_complete_prompt(tokenizers: dict[str, Any], kind: str) -> None:
    builder = ContextBuilder(tokenizers[kind], "compact", mode="window", history_length=2)
    expected = whole(tokenizers[kind], ["G\n[3]\nO1\n> a1\nO2\n> a2\nO3"])
    assert builder.render("G", STEPS, Observation("O3", ("x",))) == expected
    assert builder.render("G", STEPS[1:], Observation("O3"), step_index=3) == expected
    assert builder.render("G", [], Observation("O")) == builder.first("G", Observation("O"))


def test_a_window_with_reasoning_and_actions(tokenizer: Any) -> None:
    builder = ContextBuilder(
        tokenizer, "compact", mode="window", history_length=2, history_reasoning=True, show_admissible=True
    )
    assert tokenizer.decode(builder.render("G", STEPS, Observation("O3", ("x", "y")))) == (
        "<|user|>G\n[3]\nO1\n> <think>why</think><action>a1</action>\n"
        "O2\n> <explore>why</explore><action>a2</action>\nO3\nActions: x; y<|assistant|>"
    )
    plain = [replace(step, reasoning="") for step in STEPS]
    assert "\n> a2\n" in tokenizer.decode(builder.render("G", plain, Observation("O3")))


def test_a_window_of_no_history(tokenizer: Any) -> None:
    builder = ContextBuilder(tokenizer, "compact", mode="window", history_length=0)
    assert tokenizer.decode(builder.render("G", STEPS, Observation("O3"))) == "<|user|>G\n[3]\nO3<|assistant|>"


def test_the_oldest_pairs_go_first_then_it_is_an_error(tokenizer: Any) -> None:
    def lengths(shown: int) -> int:
        builder = ContextBuilder(tokenizer, "compact", mode="window", history_length=shown)
        return len(builder.render("G", STEPS, Observation("O3")))

    def limited(limit: int) -> str:
        builder = ContextBuilder(tokenizer, "compact", mode="window", max_prompt_tokens=limit)
        text: str = tokenizer.decode(builder.render("G", STEPS, Observation("O3")))
        return text

    assert lengths(0) < lengths(1) < lengths(2) < lengths(3)
    assert limited(lengths(3)).count(">") - limited(lengths(0)).count(">") == 3
    assert "O0" not in limited(lengths(3) - 1) and "O1" in limited(lengths(3) - 1)
    assert "O1" not in limited(lengths(2) - 1) and "O2" in limited(lengths(2) - 1)
    with pytest.raises(ContextOverflow, match=rf"has {lengths(0)} tokens, but max_prompt_tokens is {lengths(0) - 1}"):
        limited(lengths(0) - 1)


def test_a_long_opening_is_an_error_in_full_mode(tokenizer: Any) -> None:
    opening = ContextBuilder(tokenizer, "compact").first("G", Observation("O"))
    assert ContextBuilder(tokenizer, "compact", max_prompt_tokens=len(opening)).first("G", Observation("O")) == opening
    with pytest.raises(ContextOverflow):
        ContextBuilder(tokenizer, "compact", max_prompt_tokens=len(opening) - 1).first("G", Observation("O"))


def test_wrong_settings_are_named(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="context mode 'ful' does not exist"):
        ContextBuilder(tokenizer, "compact", mode="ful")
    with pytest.raises(ConfigError, match=r"unknown prompts 'sprk'.*did you mean 'spark'"):
        ContextBuilder(tokenizer, "sprk")
    with pytest.raises(ConfigError, match="which mode 'window' never does"):
        ContextBuilder(tokenizer, "compact", mode="window").next_turn(True, "G", Observation("x"))


def test_own_prompts(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(PROMPTS["compact"], turn=lambda goal, observation, admissible: f"({observation})")
    text = tokenizer.decode(ContextBuilder(tokenizer, own).next_turn(True, "G", Observation("x")))
    assert text == "<|user|>(x)<|assistant|>"
    (tmp_path / "own_wording.py").write_text("from firesteel.prompts import PROMPTS\nMINE = PROMPTS['spark']\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert ContextBuilder(tokenizer, "own_wording:MINE").prompts is PROMPTS["spark"]
