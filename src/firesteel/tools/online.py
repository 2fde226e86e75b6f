"""Thin clients of public services, for the paper's set of tools. They are off unless `enabled=True` is set.

The services are asked one request a call, without retries; what they answer changes, so runs with them cannot be
repeated exactly.
"""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from typing import Any, ClassVar

import httpx

from firesteel.errors import ToolFailed
from firesteel.tools.base import MAX_OUTPUT_CHARACTERS, Tool

MAX_REPLY_BYTES = 1_000_000
USER_AGENT = "firesteel (research software)"
_TAG = re.compile(r"<[^>]+>")


class OnlineTool(Tool):
    """A tool that asks a service by one GET request.

    Args:
        enabled: Nothing is sent while this is False.
        base_url: Another address of the same service.
        timeout_s: Limit of one request.
    """

    address: ClassVar[str]
    max_query_characters: ClassVar[int] = 300

    def __init__(
        self,
        *,
        enabled: bool = False,
        base_url: str | None = None,
        timeout_s: float = 10.0,
        max_output_characters: int = MAX_OUTPUT_CHARACTERS,
    ) -> None:
        super().__init__(max_output_characters=max_output_characters)
        self.enabled, self.timeout_s = enabled, timeout_s
        self.base_url = base_url or self.address

    @abstractmethod
    def parameters(self, query: str) -> dict[str, str | int]:
        """The request's parameters."""

    @abstractmethod
    def read(self, reply: httpx.Response) -> str:
        """The text of a reply; what a malformed one raises is reported as such."""

    def answer(self, query: str) -> str:
        if not self.enabled:
            raise ToolFailed(f"the networked tool '{self.name}' is off; set its option enabled=true to use it")
        try:
            with httpx.stream(
                "GET", self.base_url, params=self.parameters(query), timeout=self.timeout_s,
                headers={"User-Agent": USER_AGENT}, follow_redirects=True,
            ) as reply:  # fmt: skip
                content = b""
                for piece in reply.iter_bytes():
                    content += piece
                    if len(content) > MAX_REPLY_BYTES:
                        raise ToolFailed(f"'{self.name}' answered with more than {MAX_REPLY_BYTES} bytes")
            if reply.status_code != 200:
                raise ToolFailed(f"'{self.name}' answered with status {reply.status_code}")
            return self.read(httpx.Response(200, content=content)) or "nothing found"
        except httpx.HTTPError as error:
            raise ToolFailed(f"'{self.name}' did not answer: {type(error).__name__}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ToolFailed(f"'{self.name}' answered in another form than expected") from error


class Wikipedia(OnlineTool):
    """Excerpts of articles that a full-text search finds."""

    name: ClassVar[str] = "wikipedia"
    description: ClassVar[str] = "Searches Wikipedia and shows excerpts of the best articles"
    example: ClassVar[str] = "capital of Burkina Faso"
    example_output: ClassVar[str] = "Ouagadougou: ..."
    address: ClassVar[str] = "https://en.wikipedia.org/w/api.php"

    def parameters(self, query: str) -> dict[str, str | int]:
        return {"action": "query", "list": "search", "srsearch": query, "srlimit": 3, "format": "json"}

    def read(self, reply: httpx.Response) -> str:
        found: list[dict[str, Any]] = reply.json()["query"]["search"]
        return "\n".join(f"{page['title']}: {_TAG.sub('', page['snippet'])}" for page in found)


class SemanticScholar(OnlineTool):
    """Titles and abstracts of papers."""

    name: ClassVar[str] = "semantic_scholar"
    description: ClassVar[str] = "Searches scientific papers and shows titles, years and abstracts"
    example: ClassVar[str] = "proximal policy optimization"
    example_output: ClassVar[str] = "Proximal Policy Optimization Algorithms (2017): ..."
    address: ClassVar[str] = "https://api.semanticscholar.org/graph/v1/paper/search"

    def parameters(self, query: str) -> dict[str, str | int]:
        return {"query": query, "limit": 3, "fields": "title,year,abstract"}

    def read(self, reply: httpx.Response) -> str:
        found: list[dict[str, Any]] = reply.json().get("data") or []
        return "\n".join(f"{paper['title']} ({paper['year']}): {(paper['abstract'] or '')[:300]}" for paper in found)


class WolframAlpha(OnlineTool):
    """A short computed answer; needs an application id in the environment variable WOLFRAM_APP_ID."""

    name: ClassVar[str] = "wolfram_alpha"
    description: ClassVar[str] = "Answers a question of mathematics, science or general knowledge by computation"
    example: ClassVar[str] = "distance from Earth to the Moon"
    example_output: ClassVar[str] = "about 239000 miles"
    address: ClassVar[str] = "https://api.wolframalpha.com/v1/result"

    def parameters(self, query: str) -> dict[str, str | int]:
        key = os.environ.get("WOLFRAM_APP_ID")
        if not key:
            raise ToolFailed("'wolfram_alpha' needs an application id in the environment variable WOLFRAM_APP_ID")
        return {"i": query, "appid": key}

    def read(self, reply: httpx.Response) -> str:
        return reply.text
