"""How tools are shown and calls are written: one `CallFormat` per name in `FORMATS`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from keyword import iskeyword
from typing import Any

from firesteel.environments.tool_calls.parsers import Parsed, read_hermes, read_llama3, read_python
from firesteel.environments.tool_calls.tasks import Call, ToolTask, same_calls
from firesteel.errors import ConfigError
from firesteel.plugins import load

Tools = Sequence[Mapping[str, Any]]

SCHEMAS = ("json", "signature")


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One way of writing calls. `read(text, tools)` gives back what `write(calls)` wrote.

    `rule` is the sentence that tells an instruction-tuned model how to write them. With `is_by_template` the model's
    chat template shows the tools and says how to call them.
    """

    name: str
    rule: str
    write: Callable[[Sequence[Call]], str]
    read: Callable[[str, Tools], Parsed]
    is_by_template: bool = False


def write_hermes(calls: Sequence[Call]) -> str:
    """One `<tool_call>` element a call, a line each."""
    return "\n".join(f"<tool_call>{_json(call.to_dict())}</tool_call>" for call in calls)


def write_llama3(calls: Sequence[Call]) -> str:
    """One object a call, separated by "; "."""
    return "; ".join(_json({"name": call.name, "parameters": dict(call.arguments)}) for call in calls)


def write_python(calls: Sequence[Call]) -> str:
    """A list of Python calls with named arguments.

    Raises:
        ConfigError: a name or an argument's name is no Python name, so that the format cannot hold it.
    """
    for call in calls:
        words = [*call.name.split("."), *call.arguments]
        wrong = next((word for word in words if not word.isidentifier() or iskeyword(word)), None)
        if wrong is not None:
            raise ConfigError(f"the format 'python' cannot write '{call.name}': {wrong!r} is not a name; use 'hermes'")
    texts = [f"{call.name}({', '.join(f'{key}={value!r}' for key, value in call.arguments.items())})" for call in calls]
    return f"[{', '.join(texts)}]"


FORMATS: dict[str, CallFormat] = {
    "hermes": CallFormat(
        "hermes",
        'Write each call as <tool_call>{"name": NAME, "arguments": {...}}</tool_call> and nothing else.',
        write_hermes,
        read_hermes,
    ),
    "llama3": CallFormat(
        "llama3",
        'Write each call as {"name": NAME, "parameters": {...}}, several separated by "; ", and nothing else.',
        write_llama3,
        read_llama3,
    ),
    "python": CallFormat(
        "python",
        "Write the calls as one Python list, [NAME(parameter=value, ...), ...], and nothing else.",
        write_python,
        read_python,
    ),
}
"""Qwen's and Hermes's form, Llama 3's, and Python's, as BFCL prompts for it. Each also as `template_NAME`: the form of
the calls, while the tools are shown by the model's own chat template (`tools=`)."""

BASE_FORMATS = dict(FORMATS)
FORMATS |= {
    f"template_{name}": replace(form, name=f"template_{name}", rule="", is_by_template=True)
    for name, form in BASE_FORMATS.items()
}


def call_format(given: str | CallFormat) -> CallFormat:
    """The format of a name.

    Raises:
        ConfigError: there is no such format, or it is "template", which only the tokenizer of a model can tell.
    """
    if given == "template":
        raise ConfigError(
            "format=template is told by the chat template of a model, and there is none here; name the form of its "
            f"calls: {', '.join(name for name in FORMATS if name.startswith('template_'))}"
        )
    if not isinstance(given, (str, CallFormat)):
        raise ConfigError(f"format must be template or one of {', '.join(BASE_FORMATS)}; got {given!r}")
    form: CallFormat = load(given, FORMATS, kind="call format") if isinstance(given, str) else given
    return form


def format_flaws(form: CallFormat, task: ToolTask) -> list[str]:
    """Why a format cannot hold a task's first accepted answer, which demonstrations and experts write; else empty."""
    answer = task.reference
    if not answer:
        return []
    try:
        parsed = form.read(form.write(answer), task.tools)
    except ConfigError as error:
        return [str(error)]
    if parsed.problem is None and same_calls(parsed.calls, answer):
        return []
    return [f"the format '{form.name}' does not give back the accepted answer ({parsed.problem or 'it reads another'})"]


def show_tools(tools: Tools, schemas: str) -> str:
    """The tools as text, a line each: their JSON, or a signature that a small model can afford."""
    return "\n".join(_json(tool) if schemas == "json" else signature(tool) for tool in tools)


def signature(tool: Mapping[str, Any]) -> str:
    """`name(parameter: type, other?: type) description`, with descriptions of parameters in brackets.

    A "?" marks what is not required; an enumeration stands in place of its type.
    """
    parameters = tool["parameters"]
    required = parameters.get("required", ())
    shown = []
    for name, entry in parameters.get("properties", {}).items():
        kind = "|".join(map(str, entry["enum"])) if "enum" in entry else entry.get("type", "any")
        note = f" ({entry['description']})" if entry.get("description") else ""
        shown.append(f"{name}{'' if name in required else '?'}: {kind}{note}")
    return f"{tool['name']}({', '.join(shown)}) {tool['description']}".rstrip()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
