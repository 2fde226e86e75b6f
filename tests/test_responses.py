"""Complete sections between tags: the same as a lazy expression finds, in linear time whatever is repeated."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from firesteel.environments.tool_calls.examples import read_examples
from firesteel.environments.tool_calls.parsers import LONGEST_TEXT, read_hermes, without_sections
from firesteel.environments.tool_calls.prompts import read_whole_response
from firesteel.responses import parse_response, sections, text_outside

TAGS = ("think", "explore", "examples")
SLOW = 2.0
"""Seconds of CPU time, far above what linear reading takes; the expressions took minutes."""


def test_sections_by_hand() -> None:
    text = "<think>a<explore>b</think>c</explore><explore>d</explore><think>e"
    assert [(found.tag, found.body) for found in sections(text, *TAGS)] == [("think", "a<explore>b"), ("explore", "d")]
    assert text_outside(text, *TAGS) == "c</explore><think>e"
    assert [found.body for found in sections("<think><think></think>", "think")] == ["<think>"]


@pytest.mark.parametrize("tags", [("think",), ("think", "explore"), TAGS], ids="+".join)
def test_sections_are_what_the_lazy_expression_finds(tags: tuple[str, ...]) -> None:
    pattern = re.compile(rf"<({'|'.join(tags)})>(.*?)</\1>", re.DOTALL)
    pieces = ["a", "\n", "<", "think>", *(f"<{tag}>" for tag in TAGS), *(f"</{tag}>" for tag in TAGS)]
    rng = random.Random(0)
    num_found = 0
    for _ in range(5_000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 14)))
        wanted = [(match.group(1), match.group(2), *match.span()) for match in pattern.finditer(text)]
        found = [(section.tag, section.body, section.start, section.end) for section in sections(text, *tags)]
        assert found == wanted, text
        assert text_outside(text, *tags) == pattern.sub("", text)
        num_found += len(found)
    assert num_found > 500


@pytest.mark.parametrize("tag", ["tool_call", "think", "explore", "examples", "action"])
@pytest.mark.parametrize("read", [parse_response, without_sections, read_whole_response, read_hermes, read_examples])
def test_repeated_opening_tags_are_read_at_once(read: Callable[[str], Any], tag: str) -> None:
    longest = LONGEST_TEXT if read in (read_hermes, read_examples) else 200_000
    text = f"<{tag}>" * (longest // (len(tag) + 2))
    started = time.process_time()
    read(text)
    assert time.process_time() - started < SLOW


def test_blanks_between_examples_are_read_at_once() -> None:
    text = "<examples>" + "}" + " " * 90_000 + "</examples>"
    started = time.process_time()
    assert read_examples(text).problem is not None
    assert time.process_time() - started < SLOW
