"""Chat templates with tools: which form of calls they write, and what they are given."""

from __future__ import annotations

import pytest

from firesteel.environments.tool_calls.formats import FORMATS
from firesteel.environments.tool_calls.tasks import Call, Demonstration, ToolTask
from firesteel.environments.tool_calls.template import render, template_format, template_messages
from firesteel.errors import ModelError
from firesteel.models import train_tokenizer

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
    assert (form.name, form.rule) == (name, "")
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
