"""The contract of all tools: a query in, a short text out, and never an exception for what a model wrote."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from firesteel.errors import MissingDependency, ToolFailed

MAX_QUERY_CHARACTERS = 2000
MAX_OUTPUT_CHARACTERS = 1000
CUT_MARK = " [cut]"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call yielded. `ok` is False where the tool could not answer; `text` then begins with "error: "."""

    text: str
    ok: bool = True


class Tool(ABC):
    """One tool of an agent. A query is one string; `schema` describes the call as JSON for models that write calls.

    `example` is a query that works, `example_output` the text that it gives. Subclasses write `answer`; it raises
    `ToolFailed` for what cannot be answered, and the message becomes the observation.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    example: ClassVar[str]
    example_output: ClassVar[str]
    max_query_characters: ClassVar[int] = MAX_QUERY_CHARACTERS

    def __init__(self, *, max_output_characters: int = MAX_OUTPUT_CHARACTERS) -> None:
        self.max_output_characters = max_output_characters

    @property
    def schema(self) -> dict[str, Any]:
        """The call as an OpenAI function description; its only argument is `query`."""
        parameter = {"type": "string", "maxLength": self.max_query_characters, "description": f"such as {self.example}"}
        return {
            "name": self.name,
            "description": self.description,
            "parameters": {
                "type": "object",
                "properties": {"query": parameter},
                "required": ["query"],
                "additionalProperties": False,
            },
        }

    @abstractmethod
    def answer(self, query: str) -> str:
        """The tool's own work on a query that is neither empty nor too long."""

    def call(self, query: str) -> ToolResult:
        """Runs one query. What goes wrong with it is a result with `ok` False; the text has at most
        `max_output_characters` characters.

        Raises:
            MissingDependency: the tool cannot work on this machine at all, so that no run goes on without it.
        """
        try:
            return ToolResult(bounded(self.answer(self._checked(query)), self.max_output_characters))
        except MissingDependency:
            raise
        except ToolFailed as error:
            return ToolResult(bounded(f"error: {error}", self.max_output_characters), ok=False)
        except Exception as error:  # boundary: a library may raise anything on text that a model wrote
            said = f"error: {type(error).__name__}: {error}"
            return ToolResult(bounded(said, self.max_output_characters), ok=False)

    def close(self) -> None:  # noqa: B027 (most tools hold nothing)
        """Ends what the tool started. Calling it twice is fine; a later call starts it again."""

    def _checked(self, query: object) -> str:
        if not isinstance(query, str) or not query.strip():
            raise ToolFailed("the query is empty")
        if len(query) > self.max_query_characters:
            raise ToolFailed(f"the query has {len(query)} characters, the limit is {self.max_query_characters}")
        return query.strip()


def bounded(text: str, limit: int) -> str:
    """The text without control characters, cut to `limit` characters with a mark where it was cut."""
    text = "".join(character for character in text if character in "\n\t" or character.isprintable()).strip()
    if len(text) <= limit:
        return text
    return text[: max(0, limit - len(CUT_MARK))] + CUT_MARK


def query_of(arguments: str | dict[str, Any]) -> str:
    """The query of a call that a model wrote as text, or as JSON arguments ({"query": "..."}).

    Raises:
        ToolFailed: the JSON is not an object with the one key "query" and a text as its value.
    """
    parsed: object = arguments
    if isinstance(arguments, str):
        if not arguments.lstrip().startswith('{"query"'):
            return arguments
        try:
            parsed = json.loads(arguments)
        except ValueError as error:
            raise ToolFailed(f"the arguments are not JSON: {error}") from error
    if not isinstance(parsed, dict) or set(parsed) != {"query"} or not isinstance(parsed["query"], str):
        raise ToolFailed('the arguments must be {"query": "..."}')
    return parsed["query"]
