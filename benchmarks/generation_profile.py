"""What a decoding step of `TorchGenerator` spends its time on, by kind of operation; a table and JSON lines.

Shares are of the wall time that PyTorch's profiler sees, which makes small operations look dearer than they are;
`Python` is what lies between the operations. The contexts are kept from a call before. The milliseconds of a step are
measured without the profiler. The floor is reading the weights once, or the products at the speed of large ones,
whichever is longer.

    python benchmarks/generation_profile.py --sizes 1M 10M
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict

import torch
from generation import NEVER, SIZES, Floor, ask, build_model, cpu_seconds, random_tokens
from torch.profiler import ProfilerActivity, profile

from firesteel.generators.torch import TorchGenerator

KINDS: dict[str, tuple[str, ...]] = {
    "products": ("mm", "addmm", "linear", "_linear_pointwise", "t"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu", "scaled_dot_product_attention", "sigmoid", "lerp_"),
    "norms and gates": ("linalg_vector_norm", "hypot", "div", "mul_", "silu"),
    "rotation": ("mul", "addcmul", "roll", "cat", "index"),
    "drawing": ("_log_softmax", "log_softmax", "exp", "linalg_vecdot", "sum", "cumsum_", "searchsorted", "gather",
                "neg_", "clamp_min_", "argmax"),
}  # fmt: skip
"""Operations by kind; all others are views, copies, and lists made into tensors."""

SHAPES = {"batch of 8 behind 128 tokens": (8, 128), "4 rows behind 640 tokens": (4, 640), "3 rows behind 64": (3, 64)}


def kind_of(operation: str) -> str:
    name = operation.rpartition("::")[2]
    return next((kind for kind, names in KINDS.items() if name in names), "views, copies, lists")


def shares(size: str, shape: tuple[int, int], new: int, repeats: int, floor: Floor) -> dict[str, object]:
    """Milliseconds of a step, its floor, and what its time goes to."""
    model = build_model(size, "float32")
    generator = TorchGenerator(model, end_token_ids=(NEVER,))
    prompts = random_tokens(*shape)
    first = generator.generate(ask(prompts, 1))
    contexts = [ids + each.token_ids for ids, each in zip(prompts, first, strict=True)]
    caches = [each.cache for each in first]

    def decode() -> object:
        return generator.generate(ask(contexts, new, caches))

    decode()
    steps = [cpu_seconds(decode) / new for _ in range(repeats)]
    spent: dict[str, float] = defaultdict(float)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        begin = time.perf_counter()  # of an operation, too, the profiler takes the wall time
        for _ in range(repeats):
            decode()
        taken = time.perf_counter() - begin
    for each in found.key_averages():
        spent[kind_of(each.key)] += each.self_cpu_time_total / 1e6
    spent["Python"] = max(0.0, taken - sum(spent.values()))
    total = sum(spent.values())
    return {
        "step_ms": round(1e3 * statistics.median(steps), 2),
        "floor_ms": round(1e3 * floor.seconds(model, [shape[0]]), 2),
        "shares": {kind: round(seconds / total, 2) for kind, seconds in sorted(spent.items())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=sorted(SIZES), default=["1M", "10M"])
    parser.add_argument("--new", type=int, default=64, help="decoding steps of a run")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    floor = Floor()
    for size in arguments.sizes:
        for name, shape in SHAPES.items():
            found = shares(size, shape, arguments.new, arguments.repeats, floor)
            print(json.dumps({"benchmark": "generation_profile", "size": size, "rows": name, **found}), flush=True)


if __name__ == "__main__":
    main()
