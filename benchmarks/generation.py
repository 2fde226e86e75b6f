"""CPU seconds of `TorchGenerator` and of `model.generate` for the same tokens, interleaved; a table and JSON.

Random weights and random prompts; every response has its full length. `plain`: one batch. `turns`: episodes of six
turns, which trainers built on `generate` prefill anew every turn; `window`: the same with a prompt that is rendered
anew. `branches`: K continuations of one context. The floor of a row is the time for the products alone at the speed
that this machine reaches in large ones, or for reading the weights, whichever is longer.

    python benchmarks/generation.py --sizes 1M 10M --repeats 3 --output benchmarks/results/generation.json
    python benchmarks/generation.py --quick
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from firesteel.generators.torch import TorchGenerator
from firesteel.types import Completion, Request, SamplingParams

SIZES: dict[str, dict[str, int]] = {
    "1M": {"hidden": 128, "intermediate": 352, "layers": 4, "heads": 4, "kv_heads": 2, "vocabulary": 2048},
    "10M": {"hidden": 320, "intermediate": 864, "layers": 8, "heads": 5, "kv_heads": 1, "vocabulary": 4096},
    "100M": {"hidden": 768, "intermediate": 2048, "layers": 12, "heads": 12, "kv_heads": 4, "vocabulary": 32000},
}
MAX_CONTEXT = 9216
NEVER = 10**9
SECTIONS = ("plain", "turns", "branches")

Run = Callable[[], object]


def build_model(size: str, dtype: str) -> Any:
    """A randomly initialised Llama of about `size` parameters, in evaluation mode."""
    sizes = SIZES[size]
    config = LlamaConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["intermediate"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=MAX_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()


def random_tokens(count: int, length: int, seed: int = 1) -> list[list[int]]:
    """`count` rows of `length` tokens, the same in every run."""
    return torch.randint(1, 2000, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()


def hugging_face(model: Any, prompts: Sequence[Sequence[int]], new: int, cache: str = "dynamic") -> list[list[int]]:
    """One call of `generate` at temperature 1 over the whole vocabulary; returns the new tokens."""
    inputs = torch.tensor(prompts)
    options = {"cache_implementation": "static"} if cache == "static" else {}
    config = transformers.GenerationConfig(
        max_new_tokens=new, do_sample=True, top_k=0, pad_token_id=0, disable_compile=True, **options
    )
    with torch.inference_mode():
        output = model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
    return output[:, inputs.shape[1] :].tolist()


def ask(prompts: Sequence[Sequence[int]], new: int, caches: Sequence[Any] | None = None) -> list[Request]:
    """One request a prompt."""
    kept = caches or [None] * len(prompts)
    return [Request(ids, row, SamplingParams(new), kept[row]) for row, ids in enumerate(prompts)]


# --- measuring ------------------------------------------------------------------------------------------------


def cpu_seconds(run: Run) -> float:
    gc.collect()
    begin = time.process_time()
    run()
    return time.process_time() - begin


def interleaved(runs: dict[str, Run], repeats: int, *, is_warm: bool = True) -> dict[str, list[float]]:
    """CPU seconds of each run, A B C A B C, after one warm-up of each."""
    for run in runs.values() if is_warm else ():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(cpu_seconds(run))
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def compared(taken: dict[str, list[float]], ours: str, tokens: int, **more: Any) -> dict[str, Any]:
    """Seconds, and how many times longer than ours each other run took, repetition by repetition."""
    ratios = {
        name: spread([one / other for one, other in zip(values, taken[ours], strict=True)])
        for name, values in taken.items()
        if name != ours
    }
    return {
        "generated_tokens": tokens,
        "cpu_seconds": {name: spread(values) for name, values in taken.items()},
        "times_ours": ratios,
        **more,
    }


class Floor:
    """What this machine reaches at best in this process: large products, and reading memory."""

    def __init__(self) -> None:
        one, other = torch.randn(1024, 1024), torch.randn(1024, 1024)
        block = torch.randn(16 * 2**20)
        self.flops = 2 * 1024**3 / min(cpu_seconds(lambda: one @ other) for _ in range(5))
        self.bytes = block.nbytes / min(cpu_seconds(block.sum) for _ in range(5))

    def seconds(self, model: Any, passes: Sequence[int]) -> float:
        """For forward passes over so many tokens each. The embedding is looked up; tied, it is the head."""
        count = sum(each.numel() for each in model.parameters())
        return sum(max(2 * count * tokens / self.flops, 4 * count / self.bytes) for tokens in passes)


# --- what is measured -----------------------------------------------------------------------------------------


def plain(size: str, model: Any, floor: Floor, arguments: argparse.Namespace) -> dict[str, Any]:
    """One batch, against `generate` with both of its caches."""
    batch, length, new = 8, 128, arguments.new
    prompts, generator = random_tokens(batch, length), TorchGenerator(model, end_token_ids=(NEVER,))
    runs: dict[str, Run] = {
        "generate_dynamic": lambda: hugging_face(model, prompts, new),
        "generate_static": lambda: hugging_face(model, prompts, new, "static"),
        "firesteel": lambda: generator.generate(ask(prompts, new)),
    }
    taken = interleaved(runs, arguments.repeats)
    passes = [batch * length] + [batch] * (new - 1)
    best = round(floor.seconds(model, passes), 4)
    return {f"{size} plain, batch 8": compared(taken, "firesteel", batch * new, floor_seconds=best)}


def play(model: Any, first: Sequence[list[int]], seen: Sequence[list[list[int]]], new: int) -> None:
    """Episodes with `generate`: the whole history goes in at every turn."""
    contexts = [list(ids) for ids in first]
    for observations in seen:
        contexts = [ids + more for ids, more in zip(contexts, observations, strict=True)]
        responses = hugging_face(model, contexts, new)
        contexts = [ids + more for ids, more in zip(contexts, responses, strict=True)]


def play_ours(
    generator: TorchGenerator, first: Sequence[list[int]], seen: Sequence[list[list[int]]], new: int, is_kept: bool
) -> None:
    """The same, with the caches of the turn before or without."""
    contexts, caches = [list(ids) for ids in first], [None] * len(first)
    for observations in seen:
        contexts = [ids + more for ids, more in zip(contexts, observations, strict=True)]
        done: list[Completion] = generator.generate(ask(contexts, new, caches))
        contexts = [ids + each.token_ids for ids, each in zip(contexts, done, strict=True)]
        caches = [each.cache if is_kept else None for each in done]


def turns(size: str, model: Any, floor: Floor, arguments: argparse.Namespace) -> dict[str, Any]:
    """Four episodes: 256 tokens, then six turns of an observation of 64 and a response of 48."""
    batch, system, new, count = 4, 256, 48, arguments.turns
    generator = TorchGenerator(model, end_token_ids=(NEVER,))
    first = random_tokens(batch, system)
    seen = [random_tokens(batch, 64, seed=10 + turn) for turn in range(count)]
    # A window shows the same 256 tokens and what was seen last: nothing of it survives the turn.
    windows = [[ids + more for ids, more in zip(first[:1] * batch, each, strict=True)] for each in seen]
    full: dict[str, Run] = {
        "generate": lambda: play(model, first, seen, new),
        "firesteel_again": lambda: play_ours(generator, first, seen, new, False),
        "firesteel_kept": lambda: play_ours(generator, first, seen, new, True),
    }
    window: dict[str, Run] = {
        "generate": lambda: [hugging_face(model, each, new) for each in windows],
        "firesteel": lambda: [generator.generate(ask(each, new)) for each in windows],
    }
    repeats = arguments.repeats if size == "1M" else max(1, arguments.repeats - 1)
    tokens = batch * new * count
    decoding = [batch] * (new - 1) * count
    kept = floor.seconds(model, [batch * (system + 64), *[batch * 65] * (count - 1), *decoding])
    again = floor.seconds(model, [(system + batch * 64)] * count + decoding)
    return {
        f"{size} {count} turns, full": compared(
            interleaved(full, repeats), "firesteel_kept", tokens, floor_seconds=round(kept, 4)
        ),
        f"{size} {count} turns, window": compared(
            interleaved(window, repeats), "firesteel", tokens, floor_seconds=round(again, 4)
        ),
    }


def branches(size: str, model: Any, floor: Floor, arguments: argparse.Namespace) -> dict[str, Any]:
    """K continuations of one context of 2,048 tokens; recomputing is K contexts that differ in their first token."""
    results = {}
    generator = TorchGenerator(model, end_token_ids=(NEVER,))
    (prefix,) = random_tokens(1, arguments.prefix)
    for count, new in ((8, 48), (32, 32)):
        same, apart = [prefix] * count, [[1 + row, *prefix[1:]] for row in range(count)]
        runs: dict[str, Run] = {
            "generate": lambda same=same, new=new: hugging_face(model, same, new),
            "recomputing": lambda apart=apart, new=new: generator.generate(ask(apart, new)),
            "firesteel": lambda same=same, new=new: generator.generate(ask(same, new)),
        }
        repeats = arguments.repeats if size == "1M" else 1
        taken = interleaved(runs, repeats, is_warm=size == "1M")
        best = round(floor.seconds(model, [arguments.prefix] + [count] * (new - 1)), 4)
        name = f"{size} {count} branches from {arguments.prefix} tokens"
        results[name] = compared(taken, "firesteel", count * new, floor_seconds=best)
    return results


# --- reporting ------------------------------------------------------------------------------------------------


def print_result(name: str, result: dict[str, Any]) -> None:
    seconds = result["cpu_seconds"]
    print(name)
    for run, values in seconds.items():
        ratio = result.get("times_ours", {}).get(run)
        more = f"  {ratio['median']:.2f}x ours ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""
        print(f"    {run:18} {values['median']:8.3f} s ({values['min']:.3f} to {values['max']:.3f}){more}")
    if "floor_seconds" in result:
        print(f"    {'floor':18} {result['floor_seconds']:8.3f} s")
    sys.stdout.flush()


def write(arguments: argparse.Namespace, results: dict[str, Any], floor: Floor) -> None:
    """Adds the results to the file, each with its date, versions and machine."""
    record = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    about = {
        "date": date.today().isoformat(),
        "machine": arguments.machine,
        "threads": torch.get_num_threads(),
        "dtype": arguments.dtype,
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()
        },
        "reached": {"gflops": round(floor.flops / 1e9, 1), "gb_per_s": round(floor.bytes / 1e9, 1)},
    }  # fmt: skip
    record |= {name: {**about, **result} for name, result in results.items()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=sorted(SIZES), default=["1M", "10M"])
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new", type=int, default=64, help="tokens of a response of `plain`")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--prefix", type=int, default=2048, help="tokens that branches share")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--quick", action="store_true", help="the smallest model and a little of everything")
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="the machine, in words")
    parser.add_argument("--output", type=Path, help="JSON file to write (results of the same name are replaced)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.repeats = ["1M"], 1
        arguments.new, arguments.turns, arguments.prefix = 16, 3, 512
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    floor = Floor()
    print(f"this machine reaches {floor.flops / 1e9:.0f} GFLOP/s and reads {floor.bytes / 1e9:.0f} GB/s in one thread")
    measures = {"plain": plain, "turns": turns, "branches": branches}
    for size in arguments.sizes:
        model = build_model(size, arguments.dtype)
        for section in arguments.sections:
            results = measures[section](size, model, floor, arguments)
            for name, result in results.items():
                print_result(name, result)
            if arguments.output:
                write(arguments, results, floor)


if __name__ == "__main__":
    main()
