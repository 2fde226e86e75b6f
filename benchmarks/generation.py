"""Tokens per second of `TorchGenerator` and of `model.generate`, in one process, interleaved; prints JSON.

Random weights and random prompts of one length; every response has the full length. Turns: a second turn that
adds a short observation, once with the caches of the first passed back and once without.

    python benchmarks/generation.py --batches 8 32 128 --repeats 3
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from firesteel.generators.torch import TorchGenerator
from firesteel.types import Completion, Request, SamplingParams

NEVER = 10**9


def build_model(arguments: argparse.Namespace) -> torch.nn.Module:
    """A randomly initialised model of the asked size, in evaluation mode."""
    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    config_class, model_class = kinds[arguments.family]
    config = config_class(
        vocab_size=arguments.vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 11 // 4,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.key_value_heads or arguments.heads,
        head_dim=arguments.hidden // arguments.heads,
        max_position_embeddings=4096,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return model_class(config).to(arguments.device, getattr(torch, arguments.dtype)).eval()


def random_prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """`count` distinct prompts, the same in every run."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, vocabulary, (count, length), generator=generator).tolist()


def with_generate(model: torch.nn.Module, prompts: Sequence[Sequence[int]], new: int, cache: str) -> Callable[[], None]:
    """One call of `model.generate` at temperature 1 over the whole vocabulary."""
    inputs = torch.tensor(prompts, device=model.device)

    def run() -> None:
        options = {"cache_implementation": "static"} if cache == "static" else {}
        with torch.inference_mode():
            model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=transformers.GenerationConfig(
                    max_new_tokens=new, do_sample=True, top_k=0, pad_token_id=0, disable_compile=True, **options
                ),
            )

    return run


def with_hand_loop(model: torch.nn.Module, prompts: Sequence[Sequence[int]], new: int) -> Callable[[], None]:
    """The shortest loop over the model's own forward pass and cache that samples at temperature 1."""
    inputs = torch.tensor(prompts, device=model.device)

    def run() -> None:
        with torch.inference_mode():
            cache, tokens = transformers.DynamicCache(), inputs
            for _ in range(new):
                logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                tokens = torch.multinomial(logits[:, -1].float().softmax(-1), 1)

    return run


def seconds(run: Callable[[], object], device: str) -> tuple[float, float]:
    """CPU seconds of this process, and wall seconds, of one call."""
    if device != "cpu":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def compare(
    runs: dict[str, Callable[[], object]], tokens: int, repeats: int, device: str
) -> dict[str, dict[str, float]]:
    """Median tokens per second of each run, interleaved A B A B after one warm-up of each."""
    for run in runs.values():
        run()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(seconds(run, device))
    return {
        name: {
            "tokens_per_cpu_second": round(tokens / statistics.median(cpu for cpu, _ in times)),
            "tokens_per_wall_second": round(tokens / statistics.median(wall for _, wall in times)),
        }
        for name, times in taken.items()
    }


def second_turn(prompts: Sequence[Sequence[int]], first: Sequence[Completion], new: int, kept: bool) -> list[Request]:
    """The next requests: context, response and an observation of 32 tokens."""
    return [
        Request([*prompt, *done.token_ids, *prompt[:32]], row, SamplingParams(new), done.cache if kept else None)
        for row, (prompt, done) in enumerate(zip(prompts, first, strict=True))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("llama", "qwen3"), default="llama")
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--key-value-heads", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=600)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    model = build_model(arguments)
    generator = TorchGenerator(model, end_token_ids=(NEVER,))
    report: dict[str, object] = {
        "settings": vars(arguments),
        "parameters": sum(each.numel() for each in model.parameters()),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "threads": torch.get_num_threads(),
    }
    for batch in arguments.batches:
        prompts = random_prompts(batch, arguments.prompt, arguments.vocabulary)
        requests = [Request(prompt, row, SamplingParams(arguments.new)) for row, prompt in enumerate(prompts)]
        first = generator.generate(requests)
        kept, again = (second_turn(prompts, first, arguments.new, kept) for kept in (True, False))
        runs: dict[str, Callable[[], object]] = {
            "generate_dynamic": with_generate(model, prompts, arguments.new, "dynamic"),
            "generate_static": with_generate(model, prompts, arguments.new, "static"),
            "hand_loop": with_hand_loop(model, prompts, arguments.new),
            "firesteel": lambda requests=requests: generator.generate(requests),
            "firesteel_second_turn_kept": lambda kept=kept: generator.generate(kept),
            "firesteel_second_turn_again": lambda again=again: generator.generate(again),
        }
        report[f"batch_{batch}"] = compare(runs, batch * arguments.new, arguments.repeats, arguments.device)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
