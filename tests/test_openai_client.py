"""The client against a real HTTP server on this machine that answers, stalls, lies and hangs up as told."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Handler, Step, answer, completion, running_server, status

from firesteel.errors import AnswerInvalid, BudgetSpent, ConfigError, FiresteelError, ServerFailed
from firesteel.openai_client import ChatClient, first_json_object, retry_after_s

QUESTION = [{"role": "user", "content": "How good? Answer in JSON."}]
SCHEMA = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}


def malformed(handler: Handler) -> None:
    handler.reply(200, b"<html>busy</html>")


def truncated(handler: Handler) -> None:
    body = completion('{"score": 7}')
    handler.reply(200, body[: len(body) // 2], length=len(body))
    handler.close_connection = True


def dropped(handler: Handler) -> None:
    # A linger time of 0 makes close() send a reset instead of an orderly end.
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def slow_bytes(handler: Handler) -> None:
    """Each single byte comes well within the client's limit, the whole answer does not."""
    handler.send_response(200)
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    handler.close_connection = True
    while not handler.server.finished.wait(0.05):
        try:
            handler.wfile.write(b" ")
        except OSError:
            return


def silent(handler: Handler) -> None:
    handler.server.finished.wait(10)
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("FIRESTEEL_API_KEY", raising=False)
    with running_server() as chat:
        yield chat


@pytest.fixture
def make_client(server: ChatServer) -> Iterator[Callable[..., ChatClient]]:
    clients: list[ChatClient] = []

    def make(*script: Step, **options: Any) -> ChatClient:
        server.script = list(script)
        clients.append(ChatClient(server.url, "judge-1", **{"backoff_s": 0.001, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


MakeClient = Callable[..., ChatClient]


def test_one_answer_and_its_account(server: ChatServer, make_client: MakeClient) -> None:
    client = make_client(answer(prompt=100, generated=20, cached=64))
    assert client.complete_json(QUESTION, schema=SCHEMA, max_tokens=50, seed=3) == {"score": 7}
    assert server.requests == [
        {
            "model": "judge-1",
            "messages": QUESTION,
            "temperature": 0.0,
            "max_tokens": 50,
            "seed": 3,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
        }
    ]
    assert server.headers[0]["path"] == "/v1/chat/completions"
    ledger = client.ledger
    assert (ledger.calls_sent, ledger.cache_hits, ledger.answers_invalid) == (1, 0, 0)
    assert (ledger.prompt_tokens, ledger.cached_prompt_tokens, ledger.completion_tokens) == (100, 64, 20)
    assert ledger.tokens == 120


def test_complete_text_asks_for_no_format(server: ChatServer, make_client: MakeClient) -> None:
    client = make_client(answer("seven"), extra_body={"temperature": None, "max_completion_tokens": 9})
    assert client.complete_text(QUESTION) == "seven"
    assert server.requests == [{"model": "judge-1", "messages": QUESTION, "max_completion_tokens": 9}]


def test_the_key_comes_from_the_argument_or_the_environment(
    server: ChatServer, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_client(answer()).complete_json(QUESTION)
    monkeypatch.setenv("FIRESTEEL_API_KEY", "from-environment\n")
    make_client(answer()).complete_json(QUESTION)
    make_client(answer(), api_key="from-argument").complete_json(QUESTION)
    keys = [headers.get("Authorization") for headers in server.headers]
    assert keys == [None, "Bearer from-environment", "Bearer from-argument"]


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(503),
        status(429),
        status(408),
        malformed,
        truncated,
        dropped,
        answer("I would give it a seven."),
        answer('{"score": '),
        answer('{"mark": 7}'),
        answer(""),
        answer(None),
        lambda handler: handler.reply(200, b"[]"),
        lambda handler: handler.reply(200, b'{"choices": []}'),
        lambda handler: handler.reply(200, b"[" * 200_000),
    ],
)
def test_a_passing_fault_is_retried(server: ChatServer, make_client: MakeClient, fault: Step) -> None:
    client = make_client(fault, fault, answer())
    assert client.complete_json(QUESTION, schema=SCHEMA) == {"score": 7}
    assert client.ledger.calls_sent == len(server.requests) == 3


@pytest.mark.parametrize("fault", [slow_bytes, silent])
def test_a_request_that_takes_too_long_is_retried(server: ChatServer, make_client: MakeClient, fault: Step) -> None:
    client = make_client(fault, answer(), timeout_s=0.3)
    assert client.complete_json(QUESTION) == {"score": 7}
    assert client.ledger.calls_sent == 2


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (status(500), ServerFailed, r"no usable answer of model 'judge-1' in 3 attempts; last: .*status 500"),
        (dropped, ServerFailed, "in 3 attempts"),
        (answer("no JSON here"), AnswerInvalid, "in 3 attempts; last: .*no JSON object"),
    ],
)
def test_a_lasting_fault_ends_in_one_error(
    server: ChatServer, make_client: MakeClient, fault: Step, error: type[FiresteelError], message: str
) -> None:
    client = make_client(fault, max_attempts=3)
    with pytest.raises(error, match=message):
        client.complete_json(QUESTION)
    assert len(server.requests) == 3


def test_a_server_that_is_not_there(unused_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"http://127.0.0.1:{unused_port}/v1"
    with ChatClient(url, "judge-1", backoff_s=0.001, max_attempts=2) as client:
        with pytest.raises(ServerFailed, match="in 2 attempts; last: ConnectError"):
            client.complete_text(QUESTION)
        assert client.ledger.calls_sent == 2


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("code", [401, 403, 404, 301])
def test_other_refusals_raise_at_once(server: ChatServer, make_client: MakeClient, code: int) -> None:
    client = make_client(status(code, text="who are you?"), api_key="secret-key")
    with pytest.raises(ServerFailed, match=rf"status {code} .*who are you\?") as caught:
        client.complete_json(QUESTION)
    assert len(server.requests) == 1
    assert "secret-key" not in str(caught.value)


def test_retry_after_is_waited_for(server: ChatServer, make_client: MakeClient) -> None:
    client = make_client(status(429, "0.3"), answer())
    assert client.complete_json(QUESTION) == {"score": 7}
    # The pause begins when the refusal arrives, which is after the server stamped its request: never shorter.
    assert server.moments[1] - server.moments[0] >= 0.3


def test_retry_after_holds_back_every_thread(server: ChatServer, make_client: MakeClient) -> None:
    client = make_client(status(429, "0.3"), answer(), max_attempts=1)
    with pytest.raises(ServerFailed, match="status 429"):
        client.complete_json(QUESTION)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda seed: client.complete_json(QUESTION, seed=seed), range(3)))
    assert len(server.moments) == 4
    assert min(server.moments[1:]) - server.moments[0] >= 0.3


def test_a_longer_pause_than_allowed_raises_at_once(server: ChatServer, make_client: MakeClient) -> None:
    client = make_client(status(429, "3600"))
    with pytest.raises(ServerFailed, match="asks to wait 3600 s, max_wait_s is 60"):
        client.complete_json(QUESTION)
    assert len(server.requests) == 1


def test_retry_after_as_a_number_and_as_a_date() -> None:
    assert retry_after_s(None) is None
    assert retry_after_s("2.5") == 2.5
    assert retry_after_s("-3") == 0.0
    assert retry_after_s("soon") is None
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    in_a_minute = retry_after_s(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60


def test_requests_leave_evenly_spaced(server: ChatServer, make_client: MakeClient) -> None:
    client = make_client(answer(), requests_per_minute=1200)
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: client.complete_json(QUESTION, seed=seed), range(5)))
    # 1,200 a minute are 50 ms apart: the fifth leaves no earlier than 200 ms after the first.
    assert max(server.moments) - started >= 0.2


def test_a_server_without_structured_output_is_asked_without(server: ChatServer, make_client: MakeClient) -> None:
    client = make_client(
        status(400, text="response_format is not supported"), answer('Sure:\n```json\n{"score": 7}\n```')
    )
    assert client.complete_json(QUESTION, schema=SCHEMA) == {"score": 7}
    assert client.complete_json(QUESTION, schema=SCHEMA, seed=1) == {"score": 7}
    assert ["response_format" in request for request in server.requests] == [True, False, False]
    assert not client.structured_output


def test_a_bad_request_is_not_blamed_on_the_format(server: ChatServer, make_client: MakeClient) -> None:
    client = make_client(answer(), status(400, text="prompt too long"))
    client.complete_json(QUESTION)
    with pytest.raises(ServerFailed, match="prompt too long"):
        client.complete_json(QUESTION, seed=1)
    assert len(server.requests) == 2  # the format was accepted before, so nothing is tried without it
    fresh = make_client(status(400, text="prompt too long"))
    with pytest.raises(ServerFailed, match="prompt too long"):
        fresh.complete_json(QUESTION)
    assert fresh.structured_output  # both ways were refused: that says nothing about the format


def test_a_validator_refuses_answers(server: ChatServer, make_client: MakeClient) -> None:
    def in_range(found: dict[str, Any]) -> None:
        if not 0 <= found["score"] <= 10:
            raise ValueError(f"score {found['score']} is not in 0..10")

    client = make_client(answer('{"score": 11}'), answer('{"mark": 1}'), answer('{"score": "x"}'), answer())
    assert client.complete_json(QUESTION, validator=in_range) == {"score": 7}
    assert client.ledger.answers_invalid == 3
    client = make_client(answer('{"score": 11}'), max_attempts=2)
    with pytest.raises(AnswerInvalid, match=r"score 11 is not in 0\.\.10; the answer was: .*11"):
        client.complete_json(QUESTION, validator=in_range)


def test_equal_calls_are_answered_from_the_disk(server: ChatServer, make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client(answer(), cache_dir=tmp_path)
    first = client.complete_json(QUESTION, schema=SCHEMA)
    assert client.complete_json(QUESTION, schema=SCHEMA) == first
    assert (client.ledger.calls_sent, client.ledger.cache_hits, client.ledger.tokens) == (1, 1, 15)
    another = make_client(answer(), cache_dir=tmp_path, api_key="other")
    assert another.complete_json(QUESTION, schema=SCHEMA) == first
    assert len(server.requests) == 1
    for change in ({"seed": 1}, {"temperature": 0.5}, {"max_tokens": 7}, {"schema": None}):
        another.complete_json(QUESTION, **({"schema": SCHEMA} | change))
    assert (len(server.requests), another.ledger.cache_hits) == (5, 1)
    assert all(path.suffix == ".json" for path in tmp_path.rglob("*") if path.is_file())


def test_the_name_of_a_cached_answer_is_the_hash_of_the_call(make_client: MakeClient, tmp_path: Path) -> None:
    make_client(answer("seven"), cache_dir=tmp_path).complete_text(QUESTION)
    body = {"model": "judge-1", "messages": QUESTION, "temperature": 0.0}
    key = hashlib.sha256(json.dumps([1, body, None], sort_keys=True).encode()).hexdigest()
    assert json.loads((tmp_path / key[:2] / f"{key}.json").read_text()) == {"model": "judge-1", "text": "seven"}


def test_a_cached_answer_is_checked_again(server: ChatServer, make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client(answer('{"score": 7}'), answer('{"score": 8}'), answer('{"score": 9}'), cache_dir=tmp_path)
    client.complete_json(QUESTION)

    def even(found: dict[str, Any]) -> None:
        if found["score"] % 2:
            raise ValueError("odd")

    assert client.complete_json(QUESTION, validator=even) == {"score": 8}
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.write_text('{"text": "{')
    assert client.complete_json(QUESTION) == {"score": 9}
    assert len(server.requests) == 3


def test_invalid_answers_are_not_cached(server: ChatServer, make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client(answer("prose"), cache_dir=tmp_path, max_attempts=2)
    with pytest.raises(AnswerInvalid):
        client.complete_json(QUESTION)
    assert not list(tmp_path.rglob("*"))


def test_the_budget_stops_before_the_next_request(server: ChatServer, make_client: MakeClient, tmp_path: Path) -> None:
    client = make_client(answer(prompt=10, generated=5), budget_tokens=30, cache_dir=tmp_path)
    client.complete_json(QUESTION, seed=0)  # 15 tokens
    client.complete_json(QUESTION, seed=1)  # 30 tokens
    with pytest.raises(BudgetSpent, match="30 tokens of model 'judge-1' used, budget_tokens is 30"):
        client.complete_json(QUESTION, seed=2)
    assert len(server.requests) == 2
    assert client.complete_json(QUESTION, seed=1) == {"score": 7}  # cached answers stay free


def test_retries_of_invalid_answers_count_against_the_budget(server: ChatServer, make_client: MakeClient) -> None:
    client = make_client(answer("prose", prompt=10, generated=5), budget_tokens=30)
    with pytest.raises(BudgetSpent):
        client.complete_json(QUESTION)
    assert (len(server.requests), client.ledger.tokens, client.ledger.answers_invalid) == (2, 30, 2)


def test_tokens_are_estimated_where_the_server_gives_no_usage(server: ChatServer, make_client: MakeClient) -> None:
    body = completion("seven")
    client = make_client(lambda handler: handler.reply(200, body))
    client.complete_text([{"role": "user", "content": "x" * 400}])
    # [{"role": "user", "content": "xxx..."}] has 400 + 33 characters as JSON: 433 // 4 = 108
    assert (client.ledger.answers_without_usage, client.ledger.prompt_tokens) == (1, 108)
    assert client.ledger.completion_tokens == len(body) // 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": {"b": 1}} and {"c": 2}', {"a": {"b": 1}}),
        ('Take {this} set: {"a": "}"}.', {"a": "}"}),
        ('<think>maybe {"a": 1}?</think>\n{"a": 2}', {"a": 2}),
        ('{"reason": "<think>clear</think>"}', {"reason": "<think>clear</think>"}),
        ("{ }", {}),
    ],
)
def test_first_json_object(text: str, expected: dict[str, Any]) -> None:
    assert first_json_object(text) == expected


@pytest.mark.parametrize("text", ["", "none", "[1, 2]", '{"steps": [{"reason": "r", "action": "a"}, {"rea'])
def test_first_json_object_refuses_texts_without_a_whole_one(text: str) -> None:
    with pytest.raises(ValueError):
        first_json_object(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "127.0.0.1:8000/v1"}, "base_url: wanted"),
        ({"base_url": "http://host:port/v1"}, "base_url: wanted"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"requests_per_minute": 0}, "requests_per_minute must be positive"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChatClient(**({"base_url": "http://127.0.0.1:1/v1", "model": "judge-1"} | options))
