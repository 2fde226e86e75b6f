"""Seconds of one update on packed trees and on rows, in one process, interleaved; prints a table and writes JSON.

Equal trees: 8 leaves of T tokens that share a prefix, random tokens, models from configs. Grown trees: real rollouts
of the committed household model (`--grown`). Three ways to run the same update: `tree`; `rows`, which is what this
library does without packing: every token trained in one row, so head and loss see it once; and `duplicated`, one row
a leaf, each trained in full, which is what row-based trainers do.

The token ratio is how many tokens of rows stand for one of the tree: the limit where all costs shrink with the
tokens. Attention does not (a leaf still looks at its whole prefix: it shrinks with the pairs of a query and a key),
head and loss do not against `rows`, and the optimiser never does; they are timed on their own, so that the missing
part has names, and `limit` is what rows take over what the tree would take if every part shrank as far as it can.
`missing` splits what lies between the token ratio and the measured one, in shares of the tree's time.

    python benchmarks/tree_packed.py --sizes 1M 10M --repeats 3
    python benchmarks/tree_packed.py --sizes 100M --length 256 --repeats 1
    python benchmarks/tree_packed.py --sizes 10M --shares 0.5625 --memory
    python benchmarks/tree_packed.py --sizes 1M --shares 0.5625 --leaves 64 --repeats 1
    python benchmarks/tree_packed.py --sizes 1M --shares 0.5625 --length 8192 --leaves 4 --repeats 1
    python benchmarks/tree_packed.py --sizes 1M --shares --grown 8
    python benchmarks/tree_packed.py --sizes 1M 10M --shares --runs runs/household_trees runs/scienceworld_trees/explore
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM

from firesteel.advantages import estimate_advantages
from firesteel.config import AdvantageConfig, Config, LearnerConfig, LossConfig
from firesteel.layout import lay_out
from firesteel.learners.learner import Learner
from firesteel.learners.passes import Pass
from firesteel.learners.policy_gradient import PolicyGradientObjective
from firesteel.learners.tree_attention import KERNELS, TreeStream
from firesteel.packing import Batch, pack
from firesteel.policy import grow_trees, load_policy, load_tasks
from firesteel.rewards import score_trees
from firesteel.store import TreeStore
from firesteel.tree import Leaf, Node, Tree
from firesteel.types import Task

HOUSEHOLD = Path(__file__).parent.parent / "recipes" / "models" / "household"

SIZES: dict[str, dict[str, int]] = {
    "1M": {"hidden": 128, "intermediate": 352, "layers": 4, "heads": 4, "kv_heads": 2, "vocabulary": 2048},
    "10M": {"hidden": 320, "intermediate": 864, "layers": 8, "heads": 5, "kv_heads": 1, "vocabulary": 4096},
    "100M": {"hidden": 768, "intermediate": 2048, "layers": 12, "heads": 12, "kv_heads": 4, "vocabulary": 32000},
}


def build_model(size: str) -> Any:
    """A randomly initialised Llama of about `size` parameters."""
    sizes = SIZES[size]
    config = LlamaConfig(
        vocab_size=sizes["vocabulary"],
        hidden_size=sizes["hidden"],
        intermediate_size=sizes["intermediate"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def build_learner(model: Any, packing: str) -> Learner:
    """A learner whose steps leave the model where it is, so that every repetition does the same work."""
    settings = LearnerConfig.model_validate({"packing": packing, "lr": 1e-12})
    return Learner(model, PolicyGradientObjective(LossConfig()), settings, LossConfig(), total_steps=1)


def equal_tree(length: int, share: float, leaves: int, vocabulary: int) -> Tree:
    """`leaves` leaves of `length` tokens, of which the first `share` are one prefix: half prompt, half sampled."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> list[int]:
        return rng.integers(vocabulary, size=count).tolist()

    def sampled(parent: Node, count: int, width: int = 1) -> Node:
        values = [-8.0] * count
        return tree.add(parent.index, "response", 0, draw(count), sampling_logprobs=values, width=width)

    tree = Tree(task=Task("equal"), group="equal")
    prefix = round(length * share)
    prompt = tree.add(-1, "prompt", 0, draw(prefix // 2), restart=True)
    branching = sampled(prompt, prefix - prefix // 2, leaves)
    for number in range(leaves):
        node = sampled(branching, length - prefix)
        advantages = [1.0 if number % 2 else -1.0] * 2
        tree.leaves.append(Leaf(number, node.index, 0, status="finished", reward=0.0, advantages=advantages))
    return tree


def duplicated(trees: Sequence[Tree]) -> Batch:
    """One row a leaf, in which everything sampled is trained: the same gradient under `leaf` weights."""
    alone = []
    for tree in trees:
        for leaf in tree.counting_leaves():
            path = Tree(task=tree.task)
            for node in tree.path(leaf.node):
                place = len(path.nodes)
                path.nodes.append(replace(node, index=place, parent=place - 1))
            path.leaves.append(replace(leaf, index=0, node=len(path.nodes) - 1))
            alone.append(path)
    return pack(alone, weighting="leaf")


def household_trees(num_tasks: int, num_leaves: int, mode: str) -> list[Tree]:
    """Trees that the committed household model grows, branching late: at random, any step up to the budget."""
    config = Config.build(
        {
            "model": {"path": str(HOUSEHOLD)},
            "environment": {"name": "household", "options": {"size": "small", "admissible": False}},
            "context": {"mode": mode, "prompts": "goal_last"},
            "rollout": {
                "criterion": "fixed_probability", "criterion_options": {"probability": 0.25}, "num_leaves": num_leaves,
                "num_roots": 2, "width": 2, "max_turns": 16, "max_response_tokens": 24,
            },
        }
    )  # fmt: skip
    policy = load_policy(config)
    trees = grow_trees(load_tasks(config, "train", num_tasks), policy, config)
    score_trees(trees, config.reward)
    estimate_advantages(trees, AdvantageConfig())
    return trees


def stored_trees(run: Path, count: int, least_levels: int, vocabulary: int) -> list[Tree]:
    """Trees of a run's last steps that trained something; token ids are folded into the model's vocabulary."""
    store = TreeStore(run / "trees")
    trees: list[Tree] = []
    for step in reversed(store.steps()):
        trees += [
            tree for tree in store.read_trees([step])
            if levels(tree) >= least_levels and any(any(leaf.advantages or ()) for leaf in tree.leaves)
        ]  # fmt: skip
    for tree in trees[:count]:
        for node in tree.nodes:
            node.token_ids = [token % vocabulary for token in node.token_ids]
    return trees[:count]


def levels(tree: Tree) -> int:
    """The most branching nodes on a path, plus one for the leaves."""
    return 1 + max(sum(node.width > 1 for node in tree.path(leaf.node)) for leaf in tree.leaves)


def cpu_seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each run, A B C A B C, after one warm-up of each."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            gc.collect()
            taken[name].append(cpu_seconds(run))
    return taken


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": round(statistics.median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def compare(model: Any, trees: Sequence[Tree], repeats: int) -> dict[str, Any]:
    """One update in the three ways, what each of its parts takes, and the token ratio."""
    batch, copies = pack(trees, weighting="leaf"), duplicated(trees)
    for each in (batch, copies):  # the others are left out of updates
        each.rows = [row for row in each.rows if row.positive.any() or row.negative.any()]
    learners = {packing: build_learner(model, packing) for packing in ("rows", "tree")}
    runs: dict[str, Callable[[], object]] = {
        "rows": lambda: learners["rows"].update(batch),
        "tree": lambda: learners["tree"].update(batch),
        "duplicated": lambda: learners["rows"].update(copies),
    }
    taken = interleaved(runs, repeats)
    plans = {packing: each.passes.plan(batch.rows) for packing, each in learners.items()}
    medians = {name: statistics.median(values) for name, values in taken.items()}
    timed = interleaved(part_runs(model, batch, {name: plan[0] for name, plan in plans.items()}), repeats)
    parts = {name: statistics.median(values) for name, values in timed.items()}
    tokens = {name: plan[1]["pack/forward_tokens"] for name, plan in plans.items()}

    def faster(than: str) -> dict[str, float]:
        return spread([one / other for one, other in zip(taken[than], taken["tree"], strict=True)])

    pairs = attention_pairs(batch, plans["rows"][0], plans["tree"][0])
    attention, fixed = parts["attention_rows"], parts["head"] + parts["optimiser"]
    token_ratio = sum(len(row) for row in batch.rows) / tokens["tree"]
    everything_else = medians["rows"] - attention - fixed
    limit = medians["rows"] / (fixed + attention / pairs + everything_else * tokens["tree"] / tokens["rows"])

    def split(packing: str) -> dict[str, float]:
        known = {"attention": parts[f"attention_{packing}"], "head_and_loss": parts["head"],
                 "optimiser": parts["optimiser"]}  # fmt: skip
        known["everything_else"] = medians[packing] - sum(known.values())
        return known

    split_of = {packing: split(packing) for packing in learners}
    return {
        "rows": len(batch.rows),
        "tokens": tokens,
        "trained_tokens": {
            name: sum(int(row.loss_mask.sum()) for row in each.rows)
            for name, each in (("tree", batch), ("duplicated", copies))
        },
        "token_ratio": round(token_ratio, 3),
        "attention_pair_ratio": round(pairs, 3),
        "limit_against_rows": round(limit, 3),
        "padded_token_ratio": round(tokens["rows"] / tokens["tree"], 3),
        "faster_than_rows": faster("rows"),
        "faster_than_duplicated": faster("duplicated"),
        "cpu_seconds": {name: spread(values) for name, values in taken.items()},
        "parts": {packing: rounded(each) for packing, each in split_of.items()},
        "missing": rounded(missing(split_of["rows"], split_of["tree"], token_ratio, pairs)),
    }


def missing(rows: dict[str, float], tree: dict[str, float], token_ratio: float, pairs: float) -> dict[str, float]:
    """What keeps the measured ratio from the token ratio, by cause, in shares of the tree's seconds.

    `reached`, the measured ratio over the token ratio, and the causes add up to 1. `attention_pairs` is that a leaf
    looks at its whole path: pairs of a query and a key shrink less than tokens. `attention_kernel` is what the tree's
    attention takes beyond the rows' seconds over the ratio of pairs.
    """
    total = sum(tree.values())
    causes = {name: tree[name] - rows[name] / token_ratio for name in tree}
    attention = causes.pop("attention")
    by_pairs = rows["attention"] * (1 / pairs - 1 / token_ratio)
    causes = {"attention_pairs": by_pairs, "attention_kernel": attention - by_pairs, **causes}
    return {
        "reached": sum(rows.values()) / token_ratio / total,
        **{name: each / total for name, each in causes.items()},
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def attention_pairs(batch: Batch, padded: Sequence[Pass], packed: Sequence[Pass]) -> float:
    """How many pairs of a query and a key padded rows hold for each of the tree's: what attention can save at most."""
    rows = sum(len(each.rows) * len(batch.rows[each.rows[0]]) ** 2 / 2 for each in padded)
    tree = 0.0
    for each in packed:
        assert each.shared is not None
        layout = lay_out([batch.rows[index].token_ids for index in each.rows], each.shared)
        tree += sum((end - start) ** 2 / 2 for start, end in layout.chains)
        tree += sum((end - start) * (last - first) for start, end, first, last in layout.parts)
    return rows / tree


def part_runs(model: Any, batch: Batch, plans: dict[str, list[Pass]]) -> dict[str, Callable[[], object]]:
    """Attention of all layers (forward and backward) in both layouts, head with loss, and the optimiser alone."""
    learner = build_learner(model, "rows")
    tokens = learner.passes.tokens(batch.rows)
    states = torch.randn(len(tokens.token_ids_T), model.config.hidden_size, requires_grad=True)
    for parameter in learner.trainable:
        parameter.grad = torch.zeros_like(parameter)
    lengths = [[len(batch.rows[index]) for index in each.rows] for each in plans["rows"]]
    layouts = [
        lay_out([batch.rows[index].token_ids for index in each.rows], each.shared)
        for each in plans["tree"]
        if each.shared is not None
    ]
    layers = model.config.num_hidden_layers
    padded = [heads(model, len(each), max(each)) for each in lengths]
    streams = [(heads(model, 1, len(layout)), TreeStream(layout, torch.device("cpu"))) for layout in layouts]

    def on_rows() -> None:
        for query, key, value in padded * layers:
            out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            out.backward(torch.ones_like(out))

    def on_tree() -> None:
        for (query, key, value), stream in streams * layers:
            out = KERNELS[stream.kernel](query, key, value, query.shape[-1] ** -0.5, stream)
            out.backward(torch.ones_like(out))

    return {
        "attention_rows": on_rows,
        "attention_tree": on_tree,
        "head": lambda: learner._accumulate(states * 1.0, model.lm_head, tokens, 1.0, {}),
        "optimiser": learner.optimizer.step,
    }


def heads(model: Any, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values of one layer, as the model makes them."""
    config = model.config
    width = config.hidden_size // config.num_attention_heads
    counts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    made = (torch.randn(batch, length, count, width).transpose(1, 2).requires_grad_() for count in counts)
    query, key, value = made
    return query, key, value


def peak_memory(size: str, length: int, share: float, leaves: int, packing: str) -> float:
    """MB by which one update raises the peak of resident memory, in a process of its own."""
    options = ["--memory-of", packing, "--sizes", size, "--length", str(length), "--shares", str(share)]
    command = [sys.executable, __file__, *options, "--leaves", str(leaves)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def memory_of_one_update(size: str, length: int, share: float, leaves: int, packing: str) -> float:
    model = build_model(size)
    learner = build_learner(model, packing)
    # gradients, moments and the libraries' own buffers are there before the measured update
    learner.update(pack([equal_tree(32, 0.5, 2, model.config.vocab_size)]))
    before = resident_kb("VmRSS")
    learner.update(pack([equal_tree(length, share, leaves, model.config.vocab_size)]))
    return (resident_kb("VmHWM") - before) / 1024


def resident_kb(name: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process. `getrusage` would give a child the peak of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def print_result(name: str, result: dict[str, Any]) -> None:
    parts, rows = result["parts"], result["faster_than_rows"]
    copies, seconds = result["faster_than_duplicated"], result["cpu_seconds"]
    split = "  ".join(f"{part} {parts['rows'][part]:.3f} > {parts['tree'][part]:.3f}" for part in parts["rows"])
    print(
        f"{name:30} tokens {result['token_ratio']:.2f}x (padded {result['padded_token_ratio']:.2f}x), attention pairs "
        f"{result['attention_pair_ratio']:.2f}x, limit {result['limit_against_rows']:.2f}x\n"
        f"    against rows       {rows['median']:.2f}x ({rows['min']:.2f} to {rows['max']:.2f})\n"
        f"    against duplicated {copies['median']:.2f}x ({copies['min']:.2f} to {copies['max']:.2f})\n"
        f"    rows {seconds['rows']['median']:.3f} s, tree {seconds['tree']['median']:.3f} s: {split}\n"
        "    of the token ratio " + "  ".join(f"{cause} {share:.1%}" for cause, share in result["missing"].items()),
        flush=True,
    )


def stored_name(run: Path) -> str:
    """The environment of a run, as a name for its trees."""
    return f"{Config.load(run / 'config.yaml').environment.name} run"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=sorted(SIZES), default=["1M", "10M"])
    parser.add_argument("--shares", type=float, nargs="*", default=[0.25, 0.5625, 0.875])
    parser.add_argument("--leaves", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--grown", type=int, default=0, help="how many household trees to grow and train on")
    parser.add_argument("--grown-leaves", type=int, default=16)
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="run directories whose trees to train on")
    parser.add_argument("--run-trees", type=int, default=4, help="how many of each")
    parser.add_argument("--least-levels", type=int, default=4, help="only their trees of so many levels")
    parser.add_argument("--mode", choices=("full", "window"), default="full")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory at the second share")
    parser.add_argument("--memory-of", choices=("rows", "tree"), help=argparse.SUPPRESS)
    parser.add_argument("--machine", default=platform.processor() or platform.machine(), help="the machine, in words")
    parser.add_argument("--output", type=Path, help="JSON file to write (results of the same name are replaced)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.memory_of:
        size, share = arguments.sizes[0], arguments.shares[0]
        print(memory_of_one_update(size, arguments.length, share, arguments.leaves, arguments.memory_of))
        return
    results: dict[str, Any] = {}
    trees = household_trees(arguments.grown, arguments.grown_leaves, arguments.mode) if arguments.grown else []
    for size in arguments.sizes:
        model = build_model(size)
        for share in arguments.shares:
            tree = equal_tree(arguments.length, share, arguments.leaves, model.config.vocab_size)
            name = f"{size} equal share {share} T={arguments.length} leaves={arguments.leaves}"
            results[name] = compare(model, [tree], arguments.repeats)
            print_result(name, results[name])
        if trees:
            name = f"{size} household {arguments.mode}"
            results[name] = compare(model, trees, arguments.repeats)
            results[name]["levels"] = sorted(levels(tree) for tree in trees)
            print_result(name, results[name])
        for run in arguments.runs:
            name = f"{size} {stored_name(run)}"
            stored = stored_trees(run, arguments.run_trees, arguments.least_levels, model.config.vocab_size)
            results[name] = compare(model, stored, arguments.repeats)
            results[name]["levels"] = sorted(levels(tree) for tree in stored)
            print_result(name, results[name])
        if arguments.memory:
            name = f"{size} peak memory share {arguments.shares[0]} T={arguments.length}"
            peaks = {packing: peak_memory(size, arguments.length, arguments.shares[0], arguments.leaves, packing)
                     for packing in ("rows", "tree")}  # fmt: skip
            results[name] = {**peaks, "ratio": round(peaks["tree"] / peaks["rows"], 3)}
            print(
                f"{name}: rows {peaks['rows']:.0f} MB, tree {peaks['tree']:.0f} MB, {results[name]['ratio']}",
                flush=True,
            )
    if arguments.output:
        write(arguments, results)


def write(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Adds the results to the file, each with its date, versions and machine."""
    record = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    about = {
        "date": date.today().isoformat(),
        "machine": arguments.machine,
        "threads": torch.get_num_threads(),
        "repeats": arguments.repeats,
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()
        },
    }  # fmt: skip
    record |= {name: {**about, **result} for name, result in results.items()}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
