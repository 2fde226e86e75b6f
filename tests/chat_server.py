"""A real HTTP server on this machine that speaks the OpenAI chat protocol, and plays whatever a test scripts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Step = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Plays the next step of the server's script; the last one is played again and again."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ChatServer

    def do_POST(self) -> None:
        self.body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.next_step(self)(self)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: pytest's output is not the place."""


class ChatServer(ThreadingHTTPServer):
    """An OpenAI-shaped chat server that follows a script and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Step] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.moments: list[float] = []
        self.finished = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_step(self, handler: Handler) -> Step:
        with self.lock:
            self.requests.append(handler.body)
            self.headers.append({"path": handler.path, **handler.headers})
            self.moments.append(time.monotonic())
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


def completion(text: str | None, usage: dict[str, Any] | None = None) -> bytes:
    payload: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return json.dumps(payload | ({} if usage is None else {"usage": usage})).encode()


def answer(text: str | None = '{"score": 7}', prompt: int = 10, generated: int = 5, cached: int = 0) -> Step:
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": generated}
    if cached:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return lambda handler: handler.reply(200, completion(text, usage))


def status(code: int, retry_after: str | None = None, text: str = "no") -> Step:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return lambda handler: handler.reply(code, json.dumps({"error": text}).encode(), headers)


@contextmanager
def running_server() -> Iterator[ChatServer]:
    """A server in a thread, ended with everything that hangs on it."""
    with ChatServer() as chat:
        thread = threading.Thread(target=chat.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield chat
        finally:
            chat.finished.set()
            chat.shutdown()
            thread.join()
