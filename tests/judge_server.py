"""A judge behind HTTP in a process of its own: `judge_server.py FAULTS LATENCY_S` prints its address and serves.

It scores by the length of the queries, finds every step sound, and answers with the named fault on every third
request (comma-separated: 429, 500, malformed, truncated, slow, wrong).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chat_server import ChatServer, Handler, completion

CANDIDATE = re.compile(r"^- (\w+): (.*)$", re.MULTILINE)
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


def judge(text: str) -> str:
    """The answer to a judge's prompt."""
    if "process_ok" in text:
        return json.dumps({"process_ok": True})
    listed = text.rpartition("Candidate actions:")[2]
    return json.dumps({"scores": {action: len(query) % 11 for action, query in CANDIDATE.findall(listed)}})


def answer(handler: Handler, fault: str, latency_s: float) -> None:
    """Answers one request, or misbehaves."""
    time.sleep(latency_s)
    body = completion(judge(handler.body["messages"][-1]["content"]), USAGE)
    if fault in ("429", "500"):
        handler.reply(int(fault), b"{}", {"Retry-After": "0.01"} if fault == "429" else None)
    elif fault == "malformed":
        handler.reply(200, b"<html>")
    elif fault == "wrong":
        handler.reply(200, completion(json.dumps({"scores": {"cot": 99}, "process_ok": "perhaps"}), USAGE))
    elif fault == "truncated":
        handler.reply(200, body[: len(body) // 2], length=len(body))
        handler.close_connection = True
    elif fault == "slow":
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.close_connection = True
        for number in range(len(body)):
            handler.wfile.write(body[number : number + 1])
            if handler.server.finished.wait(0.05):
                return
    else:
        handler.reply(200, body)


def main() -> None:
    faults, latency_s = [name for name in sys.argv[1].split(",") if name], float(sys.argv[2])
    counted = [0]

    def step(handler: Handler) -> None:
        with handler.server.lock:
            counted[0] += 1
            number = counted[0]
        fault = faults[number // 3 % len(faults)] if faults and number % 3 == 0 else ""
        try:
            answer(handler, fault, latency_s)
        except OSError:  # the client has given up on a slow answer
            handler.close_connection = True

    with ChatServer() as server:
        server.script = [step]
        print(server.url, flush=True)
        server.serve_forever()


@contextmanager
def judge_server(faults: str = "", latency_s: float = 0.0) -> Iterator[str]:
    """The address of such a server in another process."""
    command = [sys.executable, str(Path(__file__)), faults, str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


if __name__ == "__main__":
    main()
