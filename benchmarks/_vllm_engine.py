"""vLLM in a process of its own: a request a line of JSON on standard input, an answer a line on standard output.

Run by `generation_vllm.py` with the Python that has vLLM; needs nothing of firesteel.

    {"do": "generate", "contexts": [[5, 7]], "new": 48, "logprobs": true}
    {"do": "play", "first": [[5, 7]], "seen": [[[9]], [[8]]], "new": 48, "logprobs": true}

Both begin with an empty prefix cache and generate exactly `new` tokens a context (and turn). The answer has what ran
between, without reading and writing JSON: `cpu_s` of all threads of this process, `wall_s`, `tokens`, and
`cached_tokens`, those of the contexts that came from the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


class Engine:
    """One engine, in this process: its threads are all that it has."""

    def __init__(self, model: str, block_size: int, max_context: int, is_eager: bool) -> None:
        from vllm import LLM

        self._llm = LLM(
            model, skip_tokenizer_init=True, dtype="float32", max_model_len=max_context, enable_prefix_caching=True,
            block_size=block_size, enforce_eager=is_eager, seed=0, max_num_seqs=64, disable_log_stats=True,
        )  # fmt: skip
        self._cached = 0

    def generate(self, contexts: Sequence[list[int]], new: int, logprobs: bool) -> list[list[int]]:
        from vllm import SamplingParams, TokensPrompt

        # Without `logprobs` vLLM computes none; 0 asks for that of the sampled token alone.
        sampling = SamplingParams(
            max_tokens=new, ignore_eos=True, temperature=1.0, detokenize=False, logprobs=0 if logprobs else None
        )
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in contexts]
        outputs = self._llm.generate(prompts, sampling, use_tqdm=False)
        self._cached += sum(each.num_cached_tokens or 0 for each in outputs)
        return [list(each.outputs[0].token_ids) for each in outputs]

    def play(
        self, first: Sequence[list[int]], seen: Sequence[Sequence[list[int]]], new: int, logprobs: bool
    ) -> list[list[int]]:
        """Episodes: the context of a turn is that of the turn before, the response, and what is seen next."""
        contexts, responses = [list(ids) for ids in first], [[] for _ in first]
        for observations in seen:
            contexts = [ids + more for ids, more in zip(contexts, observations, strict=True)]
            found = self.generate(contexts, new, logprobs)
            contexts = [ids + more for ids, more in zip(contexts, found, strict=True)]
            responses = [ids + more for ids, more in zip(responses, found, strict=True)]
        return responses

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        run: Callable[..., list[list[int]]] = getattr(self, asked.pop("do"))
        self._llm.reset_prefix_cache()
        self._cached = 0
        cpu, wall = time.process_time(), time.perf_counter()
        responses = run(**asked)
        taken = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
        return {**taken, "tokens": sum(map(len, responses)), "cached_tokens": self._cached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder with weights and config.json")
    parser.add_argument("--block-size", type=int, required=True)
    parser.add_argument("--max-context", type=int, required=True)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    # vLLM prints; the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    import torch
    import vllm

    engine = Engine(options.model, options.block_size, options.max_context, options.eager)
    versions = {"vllm": vllm.__version__, "torch": torch.__version__}
    print(json.dumps({"versions": versions, "threads": torch.get_num_threads()}), file=answers)
    for line in sys.stdin:
        print(json.dumps(engine.answer(json.loads(line))), file=answers)


if __name__ == "__main__":
    main()
