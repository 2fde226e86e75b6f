"""CPU and wall seconds of `TorchGenerator` and of vLLM's CPU engine for the same work, interleaved; a table and JSON.

Both have one thread, float32 and the same random weights; prompts and lengths are those of `generation.py`, and end
tokens are ignored. vLLM runs in its own Python as an in-process engine, without server and tokenizer, with prefix
caching, warm, and its caches are emptied before every run, as ours are: once as it is by default, with `torch.compile`,
and once eager. `vllm` and `vllm_eager` return the log-probability of each token, which training needs; `vllm_tokens`
does not. Ours returns two log-probabilities and the entropy, and draws each request by its own seed, which is not asked
of vLLM. Seconds are those of the engine: JSON between the processes is not counted. Blocks of 32 tokens are the
smallest of vLLM's prefix cache on a CPU and its quickest here, against 64 and 128.

    tools/install_vllm.sh python3.11 .venv/vllm
    python benchmarks/generation_vllm.py --vllm-python .venv/vllm/bin/python --sizes 1M 10M
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from _run import run
from generation import NEVER, SIZES, ask, build_model, play_ours, random_tokens, spread

from firesteel.errors import MissingDependency
from firesteel.generators.torch import TorchGenerator

ROOT = Path(__file__).parents[1]
MAX_CONTEXT = 4096
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "3", "VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip
"""One thread, and the engine in the process that asks it: a second process would only pass messages on."""

Measured = dict[str, Any]
"""`cpu_s`, `wall_s` and `tokens` of one run."""

Run = Callable[[], Measured]


class Vllm:
    """vLLM's engine for one model."""

    def __init__(self, python: Path, model: str, options: Sequence[str]) -> None:
        engine = [str(python), str(Path(__file__).with_name("_vllm_engine.py")), "--model", model, *options]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            engine, env={**environment, **ENVIRONMENT}, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"vLLM's engine ended with {self._process.wait()}; what it wrote is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __call__(self, do: str, **arguments: Any) -> Measured:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()


# --- what is measured -----------------------------------------------------------------------------------------


def ours(generator: TorchGenerator, work: Callable[[], object]) -> Measured:
    before, cpu, wall = generator.stats["generated_tokens"], time.process_time(), time.perf_counter()
    work()
    taken = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    return {**taken, "tokens": generator.stats["generated_tokens"] - before}


def rows(
    generator: TorchGenerator, vllm: Vllm, eager: Vllm, arguments: argparse.Namespace
) -> dict[str, dict[str, Run]]:
    """The arms of each row: the rows of `generation.py` that begin without a cache."""

    def arms(work: Callable[[], object], **asked: Any) -> dict[str, Run]:
        return {
            "firesteel": lambda: ours(generator, work),
            "vllm": lambda: vllm(**asked, logprobs=True),
            "vllm_eager": lambda: eager(**asked, logprobs=True),
            "vllm_tokens": lambda: vllm(**asked, logprobs=False),
        }

    def batch(prompts: list[list[int]], new: int) -> dict[str, Run]:
        return arms(lambda: generator.generate(ask(prompts, new)), do="generate", contexts=prompts, new=new)

    first = random_tokens(4, 256)
    seen = [random_tokens(4, 64, seed=10 + turn) for turn in range(arguments.turns)]
    found = {
        "plain, batch 8": batch(random_tokens(8, 128), arguments.new),
        f"{arguments.turns} turns, full": arms(
            lambda: play_ours(generator, first, seen, 48, True), do="play", first=first, seen=seen, new=48
        ),
    }
    (prefix,) = random_tokens(1, arguments.prefix)
    for count, new in ((8, 48), (32, 32)):
        found[f"{count} branches from {arguments.prefix} tokens"] = batch([prefix] * count, new)
    return found


def interleaved(arms: dict[str, Run], repeats: int) -> dict[str, Any]:
    """Seconds of every arm, A B C A B C, after one warm-up of each, and how many times ours the others took."""
    for work in arms.values():
        work()
    taken: dict[str, list[Measured]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, work in arms.items():
            taken[name].append(work())
    result: dict[str, Any] = {"generated_tokens": {name: runs[-1]["tokens"] for name, runs in taken.items()}}
    for what, label in (("cpu_s", "cpu_seconds"), ("wall_s", "wall_seconds")):
        seconds = {name: [each[what] for each in runs] for name, runs in taken.items()}
        result[label] = {name: spread(values) for name, values in seconds.items()}
        result[f"{label}_times_ours"] = {
            name: spread([other / one for other, one in zip(values, seconds["firesteel"], strict=True)])
            for name, values in seconds.items()
            if name != "firesteel"
        }
    cached = {name: runs[-1]["cached_tokens"] for name, runs in taken.items() if "cached_tokens" in runs[-1]}
    return {**result, "context_tokens_from_cache": cached}


def measure(size: str, arguments: argparse.Namespace, about: dict[str, Any]) -> dict[str, Any]:
    """All rows of one size."""
    model = build_model(size, "float32")
    generator = TorchGenerator(model, end_token_ids=(NEVER,))
    options = ["--block-size", str(arguments.block_size), "--max-context", str(MAX_CONTEXT)]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        vllm, eager = (Vllm(arguments.vllm_python, folder, [*options, *more]) for more in ([], ["--eager"]))
        about["versions"].update(vllm=vllm.about["versions"]["vllm"], vllm_torch=vllm.about["versions"]["torch"])
        about["vllm_threads"] = vllm.about["threads"]
        for name, arms in rows(generator, vllm, eager, arguments).items():
            if arguments.rows and not any(part in name for part in arguments.rows):
                continue
            results[f"{size} {name}"] = {**about, **interleaved(arms, arguments.repeats)}
            print_result(f"{size} {name}", results[f"{size} {name}"])
        vllm.close()
        eager.close()
    return results


# --- reporting ------------------------------------------------------------------------------------------------


def print_result(name: str, result: dict[str, Any]) -> None:
    print(name)
    for arm, tokens in result["generated_tokens"].items():
        parts = [f"{tokens:5} tokens"]
        for label in ("cpu_seconds", "wall_seconds"):
            values, ratio = result[label][arm], result[f"{label}_times_ours"].get(arm)
            more = f" = {ratio['median']:.2f}x ours ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
            parts.append(f"{label[:-8]} {values['median']:.3f} s ({values['min']:.3f} to {values['max']:.3f}){more}")
        print(f"    {arm:12} {'; '.join(parts)}", flush=True)


def check_installed(python: Path | None) -> None:
    """Raises `MissingDependency` where `python` does not have vLLM."""
    program = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        is_there = python is not None and subprocess.run([str(python), "-c", program], check=False).returncode == 0
    except OSError:
        is_there = False
    if not is_there:
        raise MissingDependency(
            "vLLM is not installed: tools/install_vllm.sh python3.11 .venv/vllm; --vllm-python names another place"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = ROOT / ".venv" / "vllm" / "bin" / "python"
    parser.add_argument("--vllm-python", type=Path, default=installed, help="Python of the environment with vLLM")
    parser.add_argument("--sizes", nargs="*", choices=sorted(SIZES), default=["1M", "10M"])
    parser.add_argument("--rows", nargs="*", help="parts of the names of rows, such as plain; all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new", type=int, default=64, help="tokens of a response of the plain batch")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--prefix", type=int, default=2048, help="tokens that branches share")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a block of vLLM's prefix cache")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="the machine, in words")
    parser.add_argument("--output", type=Path, help="JSON file to write (results of the same name are replaced)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    check_installed(arguments.vllm_python)
    torch.set_num_threads(1)
    about = {
        "date": date.today().isoformat(), "machine": arguments.machine, "threads": torch.get_num_threads(),
        "dtype": "float32", "block_size": arguments.block_size,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "python": platform.python_version()},
    }  # fmt: skip
    for size in arguments.sizes:
        results = measure(size, arguments, about)
        if arguments.output:
            record = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(record | results, indent=1) + "\n")


if __name__ == "__main__":
    run(__file__, main)
