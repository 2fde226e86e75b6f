"""A model's own chat template with `tools=`: what it writes for tools, and in which form it wants calls.

`format=template` of an environment stands for it: `with_call_format` finds the form in which the template of the
configured model writes calls. Environments then show tools and messages as JSON text, which `TOOL_TEMPLATE` renders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from firesteel.environments.tool_calls.formats import BASE_FORMATS, FORMATS, CallFormat
from firesteel.environments.tool_calls.prompts import TOOL_CALLS
from firesteel.environments.tool_calls.tasks import Call, Demonstration, ToolTask, calls_made
from firesteel.errors import ConfigError, EnvironmentFailed, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from firesteel.config import Config

_TAGS = {"<tool_call>", "</tool_call>", "<|python_tag|>"}
_PROBE = (Call("probe_one", {"text": "a b", "number": 3}),)
_ASKED: list[dict[str, Any]] = [{"role": "user", "content": "q"}]
_PROBE_TOOL = {
    "name": "probe_one",
    "description": "",
    "parameters": {"type": "object", "properties": {"text": {"type": "string"}, "number": {"type": "integer"}}},
}


def with_call_format(config: Config) -> Config:
    """The settings with `format=template` of the environment replaced by the form that the model's template writes.

    Formats by a template get the prompts "tool_template", whatever `context.prompts` was.

    Raises:
        ConfigError: there is no `model.path` whose template could tell, or the prompts "tool_template" are given with a
            format of text.
        ModelError: the template takes no tools, or writes calls in none of the known forms.
    """
    name = config.environment.options.get("format")
    form = FORMATS.get(name) if isinstance(name, str) else None
    if name != "template" and (form is None or not form.is_by_template):
        if config.context.prompts == "tool_template":
            raise ConfigError(
                "context.prompts=tool_template goes with environment.options.format=template (of tool_calls or bfcl), "
                "which chooses it"
            )
        return config
    tokenizer = _tokenizer_of(config)
    found = template_format(tokenizer, **config.context.template_options) if form is None else form
    require_tools(tokenizer, **config.context.template_options)
    options = {"format": found.name}
    return config.updated({"environment": {"options": options}, "context": {"prompts": "tool_template"}})


def _tokenizer_of(config: Config) -> PreTrainedTokenizerBase:
    from firesteel.models import load_tokenizer

    model = config.model
    if model.path is None:
        raise ConfigError(
            f"environment.options.format={config.environment.options['format']} shows tools by the model's own chat "
            "template: set model.path to a model that has one with tools, or format to hermes, llama3 or python"
        )
    return load_tokenizer(model.path, trust_remote_code=model.trust_remote_code)


def require_tools(tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    """What a chat template writes for a question with one tool; `ModelError` where the tool is not in it."""
    text = render(tokenizer, _ASKED, [_PROBE_TOOL], **options)
    if "probe_one" not in text:
        raise ModelError("the chat template ignores tools=; use format=hermes, llama3 or python with prompts of text")
    return text


def template_format(tokenizer: PreTrainedTokenizerBase, **options: Any) -> CallFormat:
    """The format of `FORMATS` in which a chat template writes an assistant's calls.

    A conversation with one call is rendered, and the format that reads the same call back from the assistant's turn
    is taken.

    Raises:
        ModelError: the template takes no tools, or writes calls in none of the known forms.
    """
    answered = [*_ASKED, {"role": "assistant", "content": "", "tool_calls": as_tool_calls(_PROBE)}]
    before = require_tools(tokenizer, **options)
    after = render(tokenizer, answered, [_PROBE_TOOL], add_generation_prompt=False, **options)
    written = after[_common_length(before, after) :]
    for token in sorted({*tokenizer.get_added_vocab()} - _TAGS, key=len, reverse=True):
        written = written.replace(token, "")
    for name, form in BASE_FORMATS.items():
        parsed = form.read(_from_first_call(written, form), [_PROBE_TOOL])
        if [call.key() for call in parsed.calls] == [call.key() for call in _PROBE]:
            return FORMATS[f"template_{name}"]
    raise ModelError(
        f"the chat template writes calls in no known form ({written[:80]!r}); known: {', '.join(BASE_FORMATS)}"
    )


def _common_length(left: str, right: str) -> int:
    return next((place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))


def _from_first_call(text: str, form: CallFormat) -> str:
    """The text from where a call of a format begins; what a template puts before it is its own."""
    start = text.find(form.write(_PROBE)[:1])
    return text[max(start, 0) :].strip()


def as_tool_calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Calls as the messages of chat templates hold them."""
    return [{"type": "function", "function": call.to_dict()} for call in calls]


def template_messages(task: ToolTask, demonstrations: Sequence[Demonstration] = (), hint: str = "") -> list[Any]:
    """The conversation that a chat template renders: solved queries as turns, then the task's own messages.

    A hint stands before the text of the user's last message, or is a message of the user where there is none.
    """
    messages: list[dict[str, Any]] = []
    for shown in demonstrations:
        messages.append({"role": "user", "content": shown.query})
        messages.append({"role": "assistant", "content": "", "tool_calls": as_tool_calls(shown.calls)})
    own = [_as_template(message) for message in task.messages]
    if hint:
        asked = next((message for message in reversed(own) if message["role"] == "user"), None)
        if asked is None:
            own.append({"role": "user", "content": hint})
        else:
            asked["content"] = f"{hint}\n{asked['content']}"
    return messages + own


def _as_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of a task as chat templates hold it."""
    kept = {key: value for key, value in message.items() if key != "calls"}
    return kept | {"tool_calls": as_tool_calls(calls_made(message))} if "calls" in message else kept


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    **options: Any,
) -> str:
    """The template's text for a conversation with tools; `ModelError` where the template refuses it."""
    listed: list[Any] = [{"type": "function", "function": dict(tool)} for tool in tools]
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tools=listed or None, tokenize=False,
            add_generation_prompt=add_generation_prompt, **options,
        )  # fmt: skip
    except TemplateError as error:
        raise ModelError(f"the chat template refuses a conversation with tools: {error}") from error
    return str(text)


def conversation_text(task: ToolTask, demonstrations: Sequence[Demonstration] = (), hint: str = "") -> str:
    """Tools and messages as JSON: the observation that `TOOL_TEMPLATE` renders."""
    messages = template_messages(task, demonstrations, hint)
    return json.dumps({"tools": [dict(tool) for tool in task.tools], "messages": messages}, ensure_ascii=False)


def render_conversation(tokenizer: PreTrainedTokenizerBase, observation: str, options: Mapping[str, Any]) -> str:
    """The first prompt of an episode whose observation is `conversation_text`.

    Raises:
        EnvironmentFailed: the observation is something else, or the template refuses this conversation.
    """
    try:
        shown = json.loads(observation)
        messages, tools = shown["messages"], shown["tools"]
    except (ValueError, TypeError, KeyError) as error:
        raise EnvironmentFailed(
            "the prompts 'tool_template' show conversations with tools, and the environment shows something else; set "
            "environment.options.format=template with tool_calls or bfcl's single-turn tasks, or other context.prompts"
        ) from error
    try:
        return render(tokenizer, messages, tools, **options)
    except ModelError as error:
        raise EnvironmentFailed(str(error)) from error


TOOL_TEMPLATE = replace(TOOL_CALLS, whole=render_conversation)
"""The model's own chat template with `tools=`, for episodes of one response."""
