"""Data sets of tool-calling tasks, read record by record. A bad record is rejected by its id, never a crash."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from firesteel.annotate import Rejection
from firesteel.environments.tool_calls.formats import CallFormat
from firesteel.environments.tool_calls.parsers import read_python
from firesteel.environments.tool_calls.schema import tool_of
from firesteel.environments.tool_calls.task_file import TaskFile
from firesteel.environments.tool_calls.tasks import Call, ToolTask, call_of, shortened
from firesteel.errors import MissingDependency, TaskError
from firesteel.plugins import load

Outcomes = Iterator[ToolTask | Rejection]

FILE_SPLITS = {"train": range(0, 90), "validation": range(90, 95), "test": range(95, 100), "all": range(100)}
"""How one file is divided, in hundredths of all ids by their hash."""

_READ_CHARACTERS = 1 << 16
_LONGEST_WORD = 12
"""How far before the end of a cut text its mistake may be: "-Infinity" and a pair of escapes are the longest."""

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_BETWEEN = re.compile(r"[ \t\r\n,]*")


def load_tasks(source: str, path: str, split: str, count: int | None, form: CallFormat | None = None) -> TaskFile:
    """The good tasks of a split of a source (`SOURCES`); the rest is in the result's `rejected`.

    `path` is a file or directory, or "hub:OWNER/DATASET/FILE" for a file of the Hugging Face Hub; "bfcl" needs none.
    With a `form`, tasks whose accepted answer it cannot hold are not good, but for BFCL's, which all count.
    """
    reader: Callable[[str, str], Outcomes] = load(source, SOURCES, kind="source of tool_calls")
    # BFCL's ground truths are judged by its own checker, which reports those that fail (`label_errors`).
    strict = source != "bfcl"
    return TaskFile(reader(path, split), count=count, strict=strict, form=form if strict else None)


def local_path(path: str) -> Path:
    """The file or directory that a path names; files of the Hub are downloaded once, into its cache."""
    if not path:
        raise TaskError("this source of tool_calls reads files: set environment.options.path")
    if not path.startswith("hub:"):
        found = Path(path)
        if not found.exists():
            raise TaskError(f"'{path}' does not exist; give a file or directory, or hub:OWNER/DATASET/FILE")
        return found
    parts = path.removeprefix("hub:").split("/", 2)
    if len(parts) != 3:
        raise TaskError(f"'{path}': a file of the Hub is hub:OWNER/DATASET/FILE")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingDependency("files of the Hub need huggingface_hub: pip install huggingface_hub") from error
    return Path(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))


def json_records(path: Path) -> Iterator[Any]:
    """The objects of a JSON file: a list of them, or one after the other, on lines of their own or not.

    Only a window of the file is in memory, and of a record that is longer all of it. What cannot be read is yielded as
    a `ValueError`: outside of a list, reading goes on with the next line, in a list nothing after it is read.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_READ_CHARACTERS).lstrip().removeprefix("\ufeff")
        in_list = text.startswith("[")
        place = int(in_list)
        while True:
            between = _BETWEEN.match(text, place)
            place = between.end() if between else place
            if place == len(text):
                text, place = file.read(_READ_CHARACTERS), 0
                if not text:
                    return
                continue
            if in_list and text[place] == "]":
                return
            try:
                value, end = decoder.raw_decode(text, place)
            except (ValueError, RecursionError) as error:
                # As much again as there is, so that a long record is decoded few times.
                if _is_cut(error, text) and (more := file.read(max(_READ_CHARACTERS, len(text) - place))):
                    text, place = text[place:] + more, 0
                    continue
                yield ValueError(f"not JSON: {getattr(error, 'msg', error)}"[:100])
                if in_list:
                    return
                while (place := text.find("\n", place)) < 0:
                    text, place = file.read(_READ_CHARACTERS), 0
                    if not text:
                        return
            else:
                yield value
                place = end


def _is_cut(error: Exception, text: str) -> bool:
    """Whether a text may have failed as JSON only because it goes on: the mistake is at its end, or an open string."""
    at_end = len(text) - _LONGEST_WORD
    return isinstance(error, json.JSONDecodeError) and (error.pos >= at_end or error.msg.startswith("Unterminated"))


def in_split(name: str, split: str) -> bool:
    """Whether a record of a file belongs to a split of `FILE_SPLITS`; it depends on its id alone."""
    if split not in FILE_SPLITS:
        raise TaskError(f"a file of tasks has no split '{split}'; known: {', '.join(FILE_SPLITS)}")
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 in FILE_SPLITS[split]


def _each(records: Iterable[tuple[str, Any]], split: str, read: Callable[[str, Any], Iterable[ToolTask]]) -> Outcomes:
    """Reads the records of a split; what is wrong with one becomes its rejection."""
    for name, record in records:
        if not in_split(name, split):
            continue
        if isinstance(record, ValueError):
            yield Rejection(name, str(record))
            continue
        try:
            yield from read(name, record)
        except (TaskError, KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
            yield Rejection(name, _reason(error))


def _reason(error: Exception) -> str:
    """What is wrong with a record, in words where the loader knows them."""
    if isinstance(error, TaskError):
        return str(error)
    if isinstance(error, KeyError):
        return f"a record or a part of it has no {error}"
    if isinstance(error, json.JSONDecodeError):
        return f"a part of the record is not JSON: {error}"
    return f"{type(error).__name__}: {shortened(str(error), 200)}"


def _numbered(prefix: str, path: Path) -> Iterator[tuple[str, Any]]:
    if path.is_dir():
        raise TaskError(f"'{path}' is a directory; the source {prefix} reads one file")
    for number, record in enumerate(json_records(path)):
        given = record.get("id") if isinstance(record, Mapping) else None
        if not isinstance(record, (Mapping, ValueError)):
            record = ValueError(f"a record must be an object, got {shortened(record)}")
        yield f"{prefix}-{number if given is None else given}", record


def _decoded(value: Any) -> Any:
    """JSON that may come as text."""
    return json.loads(value) if isinstance(value, str) else value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise TaskError(f"{name} must be a list, got {shortened(value)}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TaskError(f"{name} must be text, got {shortened(value)}")
    return value


# xLAM: {"id", "query", "tools": text, "answers": text}


def read_xlam(path: str, split: str) -> Outcomes:
    """Salesforce's xlam-function-calling-60k, and files of the same form."""

    def read(name: str, record: Any) -> Iterator[ToolTask]:
        tools = tuple(map(tool_of, _list(_decoded(record["tools"]), "tools")))
        answer = tuple(map(call_of, _list(_decoded(record["answers"]), "answers")))
        messages = ({"role": "user", "content": _text(record["query"], "query")},)
        yield ToolTask(name, messages, tools, (answer,), kind=kind_of(tools, answer), split=split)

    return _each(_numbered("xlam", local_path(path)), split, read)


def kind_of(tools: Sequence[Any], answer: Sequence[Any]) -> str:
    """BFCL's name for a task: "irrelevance", or one or several calls with one or several tools on offer."""
    if not answer:
        return "irrelevance"
    parallel = "parallel" if len(answer) > 1 else ""
    return "_".join(filter(None, (parallel, "multiple" if len(tools) > 1 else ""))) or "simple"


# ToolACE: {"system": text with a list of tools, "conversations": [{"from", "value"}]}


def read_toolace(path: str, split: str) -> Outcomes:
    """ToolACE: the first answer of a conversation that calls tools (all that the paper's single-turn mix uses)."""

    def read(name: str, record: Any) -> Iterator[ToolTask]:
        tools = tuple(map(tool_of, _tools_in(record["system"])))
        messages: list[dict[str, str]] = []
        for turn in record["conversations"]:
            role = _role(turn.get("from", turn.get("role")))
            text = _text(turn.get("value", turn.get("content")), "the value of a turn")
            if role == "assistant" and text.strip().startswith("["):
                answer = read_spaced_calls(text, tools)
                yield ToolTask(name, tuple(messages), tools, (answer,), kind=kind_of(tools, answer), split=split)
                return
            messages.append({"role": role, "content": text})
        raise TaskError("no answer of the conversation calls a tool")

    return _each(_numbered("toolace", local_path(path)), split, read)


def _role(given: Any) -> str:
    """A role by the name that chat templates know it by (`ROLES`), where it has one."""
    role = _text(given, "the role of a message")
    return {"developer": "system", "function": "tool", "human": "user", "gpt": "assistant"}.get(role, role)


def _tools_in(text: str) -> Any:
    """The first JSON list of objects in a text."""
    for match in re.finditer(r"\[\s*\{", text):
        try:
            return json.JSONDecoder().raw_decode(text, match.start())[0]
        except ValueError:
            continue
    raise TaskError("the system text holds no list of tools")


def read_spaced_calls(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[Call, ...]:
    """Python calls of tools whose names may hold blanks and other characters ("[Market Trends API(country='us')]").

    Names within quoted arguments are text.

    Raises:
        TaskError: the text cannot be read.
    """
    prefix = "tool_"
    while prefix in text:
        prefix += "_"
    stand_ins = {tool["name"]: f"{prefix}{number}" for number, tool in enumerate(tools)}
    # In one pass, the longest name first: what was put in is not read again.
    longest = "|".join(map(re.escape, sorted(stand_ins, key=len, reverse=True)))
    spaceless = re.sub(
        rf"(?<![\w.])(?P<name>{longest or '(?!)'})\s*\(|{_QUOTED}",
        lambda found: f"{stand_ins[found['name']]}(" if found["name"] else found[0],
        text,
        flags=re.DOTALL,
    )
    renamed = [{**tool, "name": stand_ins[tool["name"]]} for tool in tools]
    parsed = read_python(spaceless, renamed)
    if parsed.problem is not None or not parsed.calls:
        raise TaskError(f"the calls cannot be read ({parsed.problem or 'there are none'})")
    names = {stand_in: name for name, stand_in in stand_ins.items()}
    return tuple(Call(names.get(call.name, call.name), call.arguments) for call in parsed.calls)


# OpenAI's fine-tuning format: {"messages": [..., {"role": "assistant", "tool_calls"}], "tools"}


def read_openai(path: str, split: str) -> Outcomes:
    """Function-calling JSONL: one task for each assistant message with tool calls, the messages before as context."""

    def read(name: str, record: Any) -> Iterator[ToolTask]:
        tools = tuple(map(tool_of, _list(record.get("tools") or record.get("functions") or [], "tools")))
        messages: list[dict[str, Any]] = []
        found = 0
        for message in _list(record["messages"], "messages"):
            calls = _openai_calls(message) if message["role"] == "assistant" else ()
            if calls:
                identity = f"{name}-{found}" if found else name
                found += 1
                yield ToolTask(identity, tuple(messages), tools, (calls,), kind=kind_of(tools, calls), split=split)
            said = {"role": _role(message["role"]), "content": _openai_text(message.get("content"), calls)}
            messages.append(said | {"calls": [call.to_dict() for call in calls]} if calls else said)
        if not found:
            raise TaskError("no message of the assistant calls a tool")

    return _each(_numbered("openai", local_path(path)), split, read)


def _openai_text(content: Any, calls: Sequence[Call]) -> str:
    """The text of a message: its content, or its text parts joined; it may have none beside calls."""
    if calls and not content:
        return ""
    if isinstance(content, list):
        for part in content:
            if part.get("type") != "text":
                raise TaskError(f"a part of a message's content must be text, got {shortened(part)}")
        return "".join(_text(part["text"], "a part of a message's content") for part in content)
    return _text(content, "the content of a message")


def _openai_calls(message: Mapping[str, Any]) -> tuple[Call, ...]:
    given = [entry["function"] for entry in message.get("tool_calls") or ()]
    given += [message["function_call"]] if message.get("function_call") else []
    return tuple(call_of({"name": call["name"], "arguments": _decoded(call["arguments"])}) for call in given)


# ACEBench: data_normal_*.json, and possible_answer/ beside them


def read_acebench(path: str, split: str) -> Outcomes:
    """ACEBench's English or Chinese directory. `split` is a category such as "normal_atom_bool", or a beginning of
    several ("normal", "normal_single_turn"); the categories that are not "normal" have no accepted calls to load.
    """
    directory = local_path(path)
    files = sorted(directory.glob(f"data_{split}*.json")) if split.startswith("normal") else []
    if not files:
        known = ", ".join(file.stem.removeprefix("data_") for file in sorted(directory.glob("data_normal*.json")))
        raise TaskError(f"'{path}' has no split '{split}' of ACEBench; known: normal, {known}")
    return (outcome for file in files for outcome in _read_acebench_file(file))


def _read_acebench_file(file: Path) -> Outcomes:
    kind = file.stem.removeprefix("data_")
    beside = file.parent / "possible_answer" / file.name
    if not beside.is_file():
        raise TaskError(f"'{file}' has no answers: '{beside}' does not exist; copy possible_answer/ beside the data")
    answers = {
        str(record.get("id")): record["ground_truth"]
        for record in json_records(beside)
        if isinstance(record, Mapping) and "ground_truth" in record
    }

    def read(name: str, record: Any) -> Iterator[ToolTask]:
        tools = tuple(map(tool_of, _list(record["function"], "function")))
        if name not in answers:
            raise TaskError(f"'{beside.name}' in possible_answer/ has no readable ground_truth with this id")
        truth = answers[name]
        alternatives = truth if isinstance(truth, list) else [truth]
        if not all(isinstance(answer, Mapping) and answer for answer in alternatives):
            raise TaskError(f"ground_truth must be an object of calls or a list of them, got {shortened(truth)}")
        accepted = tuple(_ace_calls(answer, {tool["name"] for tool in tools}) for answer in alternatives)
        yield ToolTask(name, tuple(_ace_messages(record["question"])), tools, accepted, kind=kind, split=kind)

    records = ((str(record["id"]) if isinstance(record, Mapping) and "id" in record else f"{kind}-{number}", record)
               for number, record in enumerate(json_records(file)))  # fmt: skip
    return _each(records, "all", read)


def _ace_calls(answer: Mapping[str, Any], names: set[str]) -> tuple[Call, ...]:
    """The calls of one ground truth; a tool that is called again has a number after its name."""
    calls = []
    for name, arguments in answer.items():
        plain = name if name in names else re.sub(r"_\d+$", "", name)
        calls.append(call_of({"name": plain, "arguments": arguments}))
    return tuple(calls)


def _ace_messages(text: str) -> Iterator[dict[str, str]]:
    """The turns of "user: ...\\nsystem: ...\\nuser: ..."; its "system" is the assistant."""
    parts = re.split(r"(?m)^(user|system): ?", text)
    for role, content in zip(parts[1::2], parts[2::2], strict=True):
        yield {"role": "assistant" if role == "system" else "user", "content": content.strip()}


# API-Bank: one dialogue a file, {"role": "User" | "AI" | "API", ...}


def read_api_bank(path: str, split: str) -> Outcomes:
    """API-Bank's dialogues of a directory such as level-1-given-desc: every call is a task, with what was said before.

    `split` is "level-1" (or any name; a directory has one). Tools on offer are those of the dialogue's file; their
    schemas are read from `apis/*.py` of the same copy, beside or above, without running it; an API that is not there
    gets one from all of its calls. Calls made before are shown with their results. What cannot be read in `apis` is
    rejected by its file, before the dialogues.
    """
    directory = local_path(path)
    files = sorted(directory.glob("*.jsonl"))
    if not files:
        raise TaskError(f"'{path}' holds no dialogue (*.jsonl) of API-Bank; give its level-1-given-desc")
    tools, unread = _api_bank_tools(directory)

    def read(name: str, record: Any) -> Iterator[ToolTask]:
        turns = [turn for turn in record if isinstance(turn, Mapping)]
        if len(turns) != len(record):
            raise TaskError("a line is not JSON")
        used = dict.fromkeys(turn["api_name"] for turn in turns if turn["role"] == "API")
        offered = tuple(tools[api] for api in used)
        said: list[dict[str, Any]] = []
        number = 0
        for turn in turns:
            if turn["role"] != "API":
                said.append(
                    {
                        "role": "user" if turn["role"] == "User" else "assistant",
                        "content": _text(turn["text"], "the text of a turn"),
                    }
                )
                continue
            call = call_of({"name": turn["api_name"], "arguments": turn["param_dict"]})
            kind = "level-2" if "level-2" in name else "level-1"
            yield ToolTask(f"{name}-{number}", tuple(said), offered, ((call,),), kind=kind, split=split)
            number += 1
            said.append({"role": "assistant", "content": "", "calls": [call.to_dict()]})
            said.append({"role": "tool", "content": json.dumps(turn.get("result", {}).get("output"))})

    dialogues = ((file.stem, list(json_records(file))) for file in files)
    return itertools.chain(unread, _each(dialogues, "all", read))


@lru_cache(maxsize=4)
def _api_bank_tools(directory: Path) -> tuple[dict[str, dict[str, Any]], tuple[Rejection, ...]]:
    """A tool for every API that the dialogues of a directory call, and what of `apis` is left out."""
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for file in sorted(directory.glob("*.jsonl")):
        for turn in json_records(file):
            if isinstance(turn, Mapping) and turn.get("role") == "API" and isinstance(turn.get("param_dict"), Mapping):
                seen.setdefault(str(turn.get("api_name")), []).append(turn["param_dict"])
    tools: dict[str, dict[str, Any]] = {}
    for name, calls in seen.items():
        keys = dict.fromkeys(key for call in calls for key in call)
        properties = {key: {"type": "string"} for key in keys}
        required = [key for key in keys if all(key in call for call in calls)]
        parameters = {"type": "object", "properties": properties, "required": required}
        tools[name] = {"name": name, "description": "", "parameters": parameters}
    unread: list[Rejection] = []
    for folder in (directory / "apis", directory.parent / "apis", directory.parent.parent / "apis"):
        for file in sorted(folder.glob("*.py")):
            for declared in declared_apis(file):
                if isinstance(declared, Rejection):
                    unread.append(declared)
                elif declared["name"] in tools:
                    tools[declared["name"]] = declared
    return tools, tuple(unread)


def declared_apis(file: Path) -> Iterator[dict[str, Any] | Rejection]:
    """The tools that the classes of a Python file declare (`description`, `input_parameters`); nothing is run.

    A file or a class that cannot be read is a rejection. Differs from the files: optional parameters are not marked
    there, so none is required.
    """
    name = f"{file.parent.name}/{file.name}"
    try:
        nodes = ast.parse(file.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
        yield Rejection(name, f"{type(error).__name__}: {shortened(str(error), 200)}")
        return
    for node in nodes:
        try:
            tool = _declared(node) if isinstance(node, ast.ClassDef) else None
        except (TaskError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            yield Rejection(f"{name}:{node.lineno}", f"{type(error).__name__}: {shortened(str(error), 200)}")
            continue
        if tool is not None:
            yield tool


def _declared(node: ast.ClassDef) -> dict[str, Any] | None:
    fields: dict[str, Any] = {}
    for statement in node.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in ("description", "input_parameters"):
            fields[target.id] = ast.literal_eval(statement.value)  # type: ignore[attr-defined]
    if "input_parameters" not in fields:
        return None
    tool = tool_of({"name": node.name, "description": fields.get("description", ""),
                    "parameters": fields["input_parameters"]})  # fmt: skip
    tool["parameters"]["required"] = []
    return tool


def read_bfcl(path: str, split: str) -> Outcomes:
    """BFCL v4's single-turn categories, from the package `bfcl-eval`; `split` is a category, `path` is not used."""
    del path
    from firesteel.environments.bfcl.single_turn import single_turn_tasks  # the benchmark is an extra

    return single_turn_tasks(split)


SOURCES: dict[str, Callable[[str, str], Outcomes]] = {
    "bfcl": read_bfcl,
    "api_bank": read_api_bank,
    "acebench": read_acebench,
    "toolace": read_toolace,
    "xlam": read_xlam,
    "openai": read_openai,
}
