"""Chat templates with tools: which form of calls they write, and what they are given."""

from __future__ import annotations

import json

import pytest
from tool_runs import random_model, tool_config

from firesteel.config import Config
from firesteel.context import ContextBuilder
from firesteel.environments.tool_calls import ToolCalls
from firesteel.environments.tool_calls.formats import FORMATS
from firesteel.environments.tool_calls.tasks import Call, Demonstration, ToolTask, tool_task
from firesteel.environments.tool_calls.template import render, template_format, template_messages, with_call_format
from firesteel.errors import ConfigError, EnvironmentFailed, ModelError
from firesteel.models import load_tokenizer, train_tokenizer
from firesteel.recipes import RecipeSession
from firesteel.store import TreeStore
from firesteel.train import train
from firesteel.types import Observation

TOOL = {"name": "f", "description": "F.", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}

QWEN = """{%- if tools %}<|im_start|>system
Tools:{% for tool in tools %}
{{ tool | tojson }}{% endfor %}<|im_end|>
{% endif %}{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% if message.tool_calls %}{% for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA = (
    QWEN.replace("<|im_end|>", "{{ eos_token }}")
    .replace("<tool_call>\n", "")
    .replace("\n</tool_call>", "")
    .replace('"arguments"', '"parameters"')
)
STRANGE = QWEN.replace("<tool_call>", "<call>").replace("</tool_call>", "</call>").replace('"arguments"', '"args"')


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Tools: f x 1 user assistant system"], vocab_size=300)


def with_template(tokenizer, template: str):
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(("template", "name"), [(QWEN, "hermes"), (LLAMA, "llama3")])
def test_the_form_of_calls_is_found(tokenizer, template, name):
    form = template_format(with_template(tokenizer, template))
    assert (form.name, form.rule, form.is_by_template) == (f"template_{name}", "", True)
    assert form.write is FORMATS[name].write


def test_templates_that_cannot_be_used_are_named(tokenizer):
    with pytest.raises(ModelError, match="calls in no known form .*args"):
        template_format(with_template(tokenizer, STRANGE))
    with pytest.raises(ModelError, match="ignores tools="):
        template_format(with_template(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}"))
    with pytest.raises(ModelError, match="refuses a conversation with tools: no tools here"):
        template_format(with_template(tokenizer, "{{ raise_exception('no tools here') }}"))


def test_demonstrations_are_turns_and_the_hint_stands_before_the_query(tokenizer):
    task = ToolTask("t", ({"role": "user", "content": "do 1"},), (TOOL,), ((Call("f", {"x": 1}),),))
    messages = template_messages(task, [Demonstration("do 2", (Call("f", {"x": 2}),))], "Think.")
    text = render(with_template(tokenizer, QWEN), messages, task.tools)
    head, _, rest = text.partition("<|im_end|>\n")
    assert '"name": "f"' in head
    assert rest == (
        '<|im_start|>user\ndo 2<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": "f", "arguments": {"x": 2}}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\nThink.\ndo 1<|im_end|>\n<|im_start|>assistant\n"
    )
    assert task.messages[0]["content"] == "do 1"


# As a setting


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of a random model whose chat template is Qwen's."""
    folder = tmp_path_factory.mktemp("template") / "model"
    random_model(folder)
    (folder / "chat_template.jinja").write_text(QWEN)
    return folder


def settings(model, tmp_path, *changes):
    template = {"environment": {"options": {"format": "template", "terse": False, "schemas": "json"}}}
    return tool_config(model, tmp_path, template, *changes)


def test_a_training_shows_tools_by_the_models_own_template(model, tmp_path):
    config = settings(model, tmp_path, {"steps": 2})
    summary = train(config)
    assert summary["steps"] == 2
    directory = tmp_path / config.name
    kept = Config.load(directory / "config.yaml")
    assert kept.environment.options["format"] == "template_hermes" and kept.context.prompts == "tool_template"
    tokenizer = load_tokenizer(model)
    seen = 0
    for tree in TreeStore(directory / "trees").read_trees(None):
        task = tool_task(tree.task)
        text = tokenizer.decode(tree.nodes[0].token_ids)
        wanted = render(tokenizer, template_messages(task), task.tools)
        assert text == tokenizer.decode(tokenizer.encode(wanted, add_special_tokens=False))
        assert text.startswith("<|im_start|>system\nTools:") and text.endswith("<|im_start|>assistant\n")
        assert all(tool["name"] in text for tool in task.tools) and task.query in text
        seen += 1
    assert seen == 6
    session = RecipeSession(True, lambda event, facts: None)
    assert session.train(config) == summary  # asked for as "template", known as what it stands for


def test_calls_of_a_template_are_read_and_examples_are_turns(model, tmp_path):
    config = with_call_format(settings(model, tmp_path))
    (task,) = ToolCalls.tasks("cold_start", count=1, seed=1, documented=1.0, max_demonstrations=2)
    environment = ToolCalls(**config.environment.options)
    observation = environment.reset(task, seed=0)
    shown = json.loads(observation.text)["messages"]
    assert [message["role"] for message in shown] == ["user", "assistant"] * len(task.demonstrations) + ["user"]
    assert environment.step(environment.expert().action).info["success"]


def test_the_whole_prompt_is_written_in_both_modes(model, tmp_path):
    tokenizer = load_tokenizer(model)
    (task,) = ToolCalls.tasks("train", count=1)
    environment = ToolCalls(format="template_hermes")
    observation = environment.reset(task, seed=0)
    full, window = (ContextBuilder(tokenizer, "tool_template", mode=mode) for mode in ("full", "window"))
    first = full.first(environment.goal, observation)
    assert window.render(environment.goal, [], observation) == first
    with pytest.raises(EnvironmentFailed, match="set environment.options.format=template"):
        full.first("goal", Observation("Tools: none"))
    refusing = load_tokenizer(model)
    refusing.chat_template = QWEN.replace("{%- if tools %}", "{% if tools %}{{ raise_exception('one tool!') }}")
    broken = ContextBuilder(refusing, "tool_template")
    with pytest.raises(EnvironmentFailed, match="refuses a conversation with tools: one tool!"):
        broken.first(environment.goal, observation)


def test_what_has_no_template_with_tools_is_refused(model, tmp_path):
    plain = random_model(tmp_path / "plain")
    with pytest.raises(ModelError, match="the chat template ignores tools=; use format=hermes"):
        train(settings(plain, tmp_path / "runs"))
    named = {"environment": {"options": {"format": "template_hermes"}}}
    with pytest.raises(ModelError, match="the chat template ignores tools="):
        train(settings(plain, tmp_path / "runs", named))
    text = {"environment": {"options": {"format": "hermes"}}, "context": {"prompts": "tool_template"}}
    with pytest.raises(ConfigError, match="tool_template goes with environment.options.format=template"):
        train(settings(model, tmp_path / "runs", text))
    assert not (tmp_path / "runs").exists()
    scratch = settings(model, tmp_path, {"model": {"path": None, "tiny": {"hidden": 8}}})
    with pytest.raises(ConfigError, match="set model.path to a model that has one with tools"):
        train(scratch)
    with pytest.raises(ConfigError, match="name the form of its calls: template_hermes, template_llama3"):
        ToolCalls(format="template")


def test_bfcl_shows_single_turn_tasks_by_a_template():
    bfcl = pytest.importorskip("firesteel.environments.bfcl")
    pytest.importorskip("bfcl_eval")
    (task,) = bfcl.Bfcl.tasks("simple_python", count=1, format="template_hermes")
    environment = bfcl.Bfcl(format="template_hermes")
    assert json.loads(environment.reset(task, seed=0).text)["messages"][-1]["content"] == environment.goal
    with pytest.raises(ConfigError, match="multi-turn tasks .* are shown as text"):
        bfcl.Bfcl.tasks("all", format="template_hermes")
