"""A data set of the paper's size on disk: what loading it and a whole probe keep in memory, in a process of its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLES = 62_687
"""The paper's."""

CHILD = """
import json, resource, sys, time
from firesteel.environments.tool_calls import ToolCalls
from firesteel.hard_sampling import HardSampling, Ledger
from firesteel.probing import Rollout
from pathlib import Path

def now_kb():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

def peak_kb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

path, ledger = sys.argv[1:]
list(ToolCalls.tasks("all", count=50, source="xlam", path=path))  # what is imported late
before, begin = now_kb(), time.perf_counter()
tasks = ToolCalls.tasks("all", source="xlam", path=path)
loaded, loaded_s = peak_kb(), time.perf_counter() - begin
curriculum = HardSampling(tasks, seed=0, mode="drop", rollouts=3)
curriculum.ledger = Ledger(Path(ledger))
played = 0

def play(chosen, rollouts, name):
    global played
    played += len(chosen) * rollouts
    return [[Rollout(hash(task.id) % 3 > 0, 10)] * rollouts for task in chosen]

curriculum.prepare(0, play)
step = curriculum.sample(1024)
print(json.dumps({"tasks": len(tasks), "step": len(step), "played": played, "before_mb": before / 1024,
                  "loaded_mb": (loaded - before) / 1024, "probed_mb": (peak_kb() - before) / 1024,
                  "load_s": loaded_s, "probe_s": time.perf_counter() - begin - loaded_s}))
"""


def write_samples(path: Path, count: int) -> int:
    """Samples as xLAM's are, one a line, each about its mean size; returns the bytes of the file."""
    rng = random.Random(0)
    describe = "what a caller of this tool has to know about it, " * 2
    tools = [
        {"name": f"tool_{number}", "description": describe, "parameters": {
            name: {"type": "str", "description": describe} for name in ("first", "second")}}
        for number in range(3_600)
    ]  # fmt: skip
    with path.open("w") as file:
        for number in range(count):
            offered = rng.sample(tools, 3)
            answer = [{"name": offered[0]["name"], "arguments": {"first": f"value {number}", "second": "more"}}]
            record = {"id": number, "query": f"{describe}: {number}", "tools": json.dumps(offered),
                      "answers": json.dumps(answer)}  # fmt: skip
            file.write(json.dumps(record) + "\n")
    return path.stat().st_size


def measured(folder: Path, count: int) -> dict[str, float]:
    path = folder / f"{count}.jsonl"
    size = write_samples(path, count)
    command = [sys.executable, "-c", CHILD, str(path), str(folder / f"{count}-ledger.jsonl")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    print(f"{count:,} samples, {size / 2**20:.0f} MB on disk: {found}")
    assert found["tasks"] == count
    return found | {"size_mb": size / 2**20}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    small, large = measured(tmp_path, 6_000), measured(tmp_path, SAMPLES)
    assert large["played"] >= SAMPLES and large["step"] == 1024
    assert large["size_mb"] > 80
    more = SAMPLES - 6_000
    # of a sample on 1,500 bytes of disk, memory has its place, its id's hash, its status and its users' places
    for what in ("loaded_mb", "probed_mb"):
        assert (large[what] - small[what]) * 2**20 / more < 300, what
    assert large["probed_mb"] < 60
