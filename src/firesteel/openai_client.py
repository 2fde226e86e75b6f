"""One small client for any server that speaks the OpenAI chat protocol: retries, limits, cache, ledger.

Used by the teacher of the cold start and by judges. Safe to call from several threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from firesteel.errors import AnswerInvalid, BudgetSpent, ConfigError, FiresteelError, ServerFailed
from firesteel.files import write_json_atomic

API_KEY_VARIABLE = "FIRESTEEL_API_KEY"
CACHE_VERSION = 1
CHARACTERS_PER_TOKEN = 4
EXCERPT_CHARACTERS = 300

Message = Mapping[str, str]
Validator = Callable[[dict[str, Any]], object]
Parsed = TypeVar("Parsed")

# What a refused answer may raise while it is parsed and checked; RecursionError comes from absurdly nested JSON.
_REFUSALS = (ValueError, KeyError, TypeError, RecursionError)
_OBJECT_START = re.compile(r'\{\s*["}]')
_LEADING_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


@dataclass(slots=True)
class Ledger:
    """What a client has cost so far.

    `calls_sent` counts every request that left, also those that timed out (the server may bill them). Tokens are
    those of the servers' `usage`; an answer without one is counted in `answers_without_usage` and estimated at one
    token per four characters. `cached_prompt_tokens` is the part of `prompt_tokens` that the server had cached.
    """

    calls_sent: int = 0
    cache_hits: int = 0
    answers_invalid: int = 0
    answers_without_usage: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together: what a budget limits."""
        return self.prompt_tokens + self.completion_tokens


class _Transient(Exception):
    """A failure that another attempt may cure; `error_class` is what it becomes when no attempt is left."""

    def __init__(self, error_class: type[FiresteelError], message: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class _FormatRefused(Exception):
    """The server answered 400 or 422 to the first request that asked for structured output."""


class _Pacer:
    """Hands out the moments at which requests may leave, evenly spaced, for all threads of a client."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._spacing_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            moment = max(self._next, time.monotonic())
            self._next = moment + self._spacing_s
        time.sleep(max(0.0, moment - time.monotonic()))

    def hold(self, seconds: float) -> None:
        """Lets nothing leave for the next `seconds`."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def first_json_object(text: str) -> dict[str, Any]:
    """The first JSON object in a text, prose and code fences around it ignored; `ValueError` if it has none.

    A leading `<think>...</think>` block is skipped. An object that begins and does not parse (cut off, say) is an
    error: the objects inside it are not taken in its place.
    """
    text = _LEADING_THOUGHT.sub("", text)
    start = _OBJECT_START.search(text)
    if start is None:
        raise ValueError("no JSON object in the answer")
    return dict(json.JSONDecoder().raw_decode(text, start.start())[0])


def retry_after_s(header: str | None) -> float | None:
    """The seconds that a Retry-After header (a number, or an HTTP date) asks to wait; None if it says nothing."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


@cache
def _ssl_context() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes far longer than the rest of making a client."""
    return httpx.create_ssl_context()


def _check_url(base_url: str) -> None:
    try:
        scheme = httpx.URL(base_url).scheme
    except httpx.InvalidURL:
        scheme = ""
    if scheme not in ("http", "https"):
        raise ConfigError(f"base_url: wanted 'http://host:port/v1' or the like, got '{base_url}'")


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + "..."


def _text_of(payload: Any) -> str:
    """The text of a chat completion; `ValueError` if it has none."""
    try:
        choice = payload["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("not a chat completion") from error
    if not isinstance(text, str) or not text.strip():
        raise ValueError("no text (a refusal, a tool call, or cut off while thinking)")
    return text


def _check_required(answer: Mapping[str, Any], schema: Mapping[str, Any] | None) -> None:
    missing = [key for key in (schema or {}).get("required", ()) if key not in answer]
    if missing:
        raise ValueError(f"the answer lacks {', '.join(map(repr, missing))}")


class ChatClient:
    """A client of one model on one server.

    Requests that time out, lose their connection or get 408, 429 or 5xx are repeated, as are answers that are not
    what was asked for, at most `max_attempts` times in all, with exponential back-off and jitter from
    `backoff_s` up to `max_wait_s`. A Retry-After is obeyed by all threads; one that asks for more than `max_wait_s` is
    a `ServerFailed` at once, as is every other 4xx.

    Args:
        base_url: Up to and with the version, such as "http://127.0.0.1:8000/v1".
        model: The model's name on the server.
        api_key: The bearer token. None: the environment variable FIRESTEEL_API_KEY, or no token if that is unset.
        timeout_s: Limit of one whole request, from the connection to the last byte.
        max_attempts: Requests per answer, retries included.
        requests_per_minute: Requests leave evenly spaced at this rate; None is unlimited.
        cache_dir: Where valid answers are kept, by a hash of model, messages and parameters. None: no cache.
        budget_tokens: Once the ledger holds this many tokens, the next request raises `BudgetSpent`. Requests that
            are under way when it is reached are still counted, so each thread may pass it by one answer.
        backoff_s: The first wait is between half of it and all of it; each further one is twice as long.
        max_wait_s: The longest single wait.
        structured_output: Ask for JSON by `response_format`. A server that answers 400 or 422 to the first such
            request is asked without from then on.
        extra_body: Further fields of every request, such as {"reasoning_effort": "low"}; None takes a field out.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 60.0,
        max_attempts: int = 5,
        requests_per_minute: float | None = None,
        cache_dir: str | Path | None = None,
        budget_tokens: int | None = None,
        backoff_s: float = 0.5,
        max_wait_s: float = 60.0,
        structured_output: bool = True,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        _check_url(base_url)
        if max_attempts < 1:
            raise ConfigError(f"max_attempts must be at least 1, got {max_attempts}")
        if requests_per_minute is not None and requests_per_minute <= 0:
            raise ConfigError(f"requests_per_minute must be positive or None, got {requests_per_minute}")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model = model
        self.timeout_s = timeout_s
        self.max_attempts = max_attempts
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.budget_tokens = budget_tokens
        self.backoff_s, self.max_wait_s = backoff_s, max_wait_s
        self.structured_output = structured_output
        self._format_accepted = False
        self._extra_body = dict(extra_body or {})
        key = (os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key).strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(timeout=timeout_s, headers=headers, verify=_ssl_context())
        self._pacer = _Pacer(requests_per_minute)
        # Its own generator: the waits must not move the random numbers of a seeded run.
        self._jitter = random.Random()
        self._ledger = Ledger()
        self._ledger_lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. Calling it twice is fine."""
        self._http.close()

    @property
    def ledger(self) -> Ledger:
        """A copy of the account as it stands now."""
        with self._ledger_lock:
            return replace(self._ledger)

    def complete_text(
        self,
        messages: Sequence[Message],
        *,
        temperature: float = 0.0,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> str:
        """The text of one answer; an empty one is invalid and asked for again.

        Equal calls give the cached answer: pass different seeds to draw several.
        Raises `ServerFailed`, `AnswerInvalid` or `BudgetSpent`.
        """
        body = self._body(messages, temperature, max_tokens, seed)
        return self._answer(body, None, str)

    def complete_json(
        self,
        messages: Sequence[Message],
        *,
        schema: Mapping[str, Any] | None = None,
        validator: Validator | None = None,
        temperature: float = 0.0,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """One JSON object as an answer.

        `schema` (JSON Schema) goes to the server where it takes one; here only the top-level `required` keys are
        checked, so say the form in the messages, too. `validator` is called with the object and refuses it by a
        `ValueError`, `KeyError` or `TypeError` (pydantic's `Model.model_validate` fits). Equal calls give the cached
        answer: pass different seeds to draw several. Raises `ServerFailed`, `AnswerInvalid` or `BudgetSpent`.
        """

        def parse(text: str) -> dict[str, Any]:
            answer = first_json_object(text)
            _check_required(answer, schema)
            if validator is not None:
                validator(answer)
            return answer

        response_format: dict[str, Any] = {"type": "json_object"}
        if schema is not None:
            response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}
        body = self._body(messages, temperature, max_tokens, seed)
        return self._answer(body, response_format, parse)

    def _body(
        self, messages: Sequence[Message], temperature: float, max_tokens: int | None, seed: int | None
    ) -> dict[str, Any]:
        body = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
        }
        return {name: value for name, value in (body | self._extra_body).items() if value is not None}

    def _answer(
        self, body: dict[str, Any], response_format: dict[str, Any] | None, parse: Callable[[str], Parsed]
    ) -> Parsed:
        path = self._cache_path(body, response_format)
        cached = self._read_cache(path, parse)
        if cached is not None:
            self._count(cache_hits=1)
            return cached
        retrying = Retrying(
            stop=stop_after_attempt(self.max_attempts),
            wait=self._wait_s,
            retry=retry_if_exception_type(_Transient),
            reraise=True,
        )
        try:
            text = retrying(self._attempt, body, response_format, parse)
        except _Transient as last:
            raise last.error_class(
                f"{self.url}: no usable answer of model '{self.model}' in {self.max_attempts} attempts; last: {last}"
            ) from last
        self._write_cache(path, text)
        return parse(text)

    def _wait_s(self, state: RetryCallState) -> float:
        longest = min(self.max_wait_s, self.backoff_s * 2.0 ** (state.attempt_number - 1))
        return longest * self._jitter.uniform(0.5, 1.0)

    def _attempt(
        self, body: dict[str, Any], response_format: dict[str, Any] | None, parse: Callable[[str], object]
    ) -> str:
        """The text of one request's answer, which `parse` has accepted."""
        try:
            payload = self._post(body, response_format if self.structured_output else None)
        except _FormatRefused:
            payload = self._post(body, None)
            self.structured_output = False
        self._enter_usage(payload, body)
        try:
            text = _text_of(payload)
            parse(text)
            return text
        except _REFUSALS as error:
            self._count(answers_invalid=1)
            said = (
                f"{type(error).__name__}: {error}; the answer was: {_excerpt(json.dumps(payload, ensure_ascii=False))}"
            )
            raise _Transient(AnswerInvalid, said) from error

    def _post(self, body: dict[str, Any], response_format: dict[str, Any] | None) -> Any:
        """Sends one request and returns the decoded JSON of a 200."""
        self._check_budget()
        self._pacer.wait()
        self._count(calls_sent=1)
        sent = body if response_format is None else {**body, "response_format": response_format}
        try:
            response, text = self._exchange(sent)
        except httpx.RequestError as error:
            raise _Transient(ServerFailed, f"{type(error).__name__}: {error}") from error
        status = response.status_code
        if status in (400, 422) and response_format is not None and not self._format_accepted:
            raise _FormatRefused
        if status != 200:
            raise self._refusal(response, text)
        self._format_accepted = self._format_accepted or response_format is not None
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            self._count(answers_invalid=1)
            raise _Transient(AnswerInvalid, f"status 200 with a body that is not JSON: {_excerpt(text)}") from error

    def _exchange(self, body: dict[str, Any]) -> tuple[httpx.Response, str]:
        """Status, headers and text of one request, whole within about `timeout_s`.

        The client library limits each read, not their sum: a server that sends one byte a second would never end.
        """
        deadline = time.monotonic() + self.timeout_s
        with self._http.stream("POST", self.url, json=body) as response:
            pieces = []
            for piece in response.iter_text():
                pieces.append(piece)
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"the answer was not complete after {self.timeout_s} s")
            return response, "".join(pieces)

    def _refusal(self, response: httpx.Response, text: str) -> Exception:
        """What a status other than 200 becomes: a failure to try again, or the final error."""
        status = response.status_code
        said = f"{self.url}: status {status} for model '{self.model}': {_excerpt(text)}"
        if not (status in (408, 429) or status >= 500):
            return ServerFailed(f"{said}; check base_url, the model's name, the key and the request")
        pause_s = retry_after_s(response.headers.get("Retry-After"))
        if pause_s is not None:
            if pause_s > self.max_wait_s:
                return ServerFailed(
                    f"{said}; it asks to wait {pause_s:.0f} s, max_wait_s is {self.max_wait_s:.0f}: try again later"
                )
            self._pacer.hold(pause_s)
        return _Transient(ServerFailed, said)

    def _enter_usage(self, payload: Any, body: dict[str, Any]) -> None:
        usage = payload.get("usage") if isinstance(payload, dict) else None
        if isinstance(usage, dict) and isinstance(usage.get("prompt_tokens"), int):
            self._count(
                prompt_tokens=usage["prompt_tokens"],
                cached_prompt_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
                completion_tokens=usage.get("completion_tokens") or 0,
            )
        else:
            self._count(
                answers_without_usage=1,
                prompt_tokens=len(json.dumps(body["messages"])) // CHARACTERS_PER_TOKEN,
                completion_tokens=len(json.dumps(payload)) // CHARACTERS_PER_TOKEN,
            )

    def _count(self, **amounts: int) -> None:
        with self._ledger_lock:
            for name, amount in amounts.items():
                setattr(self._ledger, name, getattr(self._ledger, name) + amount)

    def _check_budget(self) -> None:
        spent = self.ledger.tokens
        if self.budget_tokens is not None and spent >= self.budget_tokens:
            raise BudgetSpent(
                f"{self.url}: {spent} tokens of model '{self.model}' used, budget_tokens is {self.budget_tokens}; "
                "raise it and run again (with a cache_dir, answers already given are free)"
            )

    def _cache_path(self, body: dict[str, Any], response_format: dict[str, Any] | None) -> Path | None:
        if self.cache_dir is None:
            return None
        content = json.dumps([CACHE_VERSION, body, response_format], sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()
        return self.cache_dir / key[:2] / f"{key}.json"

    def _read_cache(self, path: Path | None, parse: Callable[[str], Parsed]) -> Parsed | None:
        """The cached answer, or None where there is none that can be read and passes today's checks."""
        if path is None:
            return None
        try:
            return parse(json.loads(path.read_text(encoding="utf-8"))["text"])
        except (FileNotFoundError, *_REFUSALS):
            return None

    def _write_cache(self, path: Path | None, text: str) -> None:
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, {"model": self.model, "text": text})
