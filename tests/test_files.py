"""Tests of firesteel.files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from faults import outlives, recorded, survives
from hypothesis import given, settings
from hypothesis import strategies as st

from firesteel.errors import StoreError
from firesteel.files import (
    append_line,
    exact_json,
    find_inexact,
    flatten,
    read_jsonl,
    remove_directory,
    remove_temporaries,
    sha256_of,
    truncate_jsonl,
    write_atomic,
    write_json_atomic,
)

# Whole files


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


def test_write_atomic_follows_the_umask(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_write_atomic_flushes_the_file_before_and_the_directory_after_the_move(tmp_path: Path) -> None:
    with recorded() as calls:
        write_atomic(tmp_path / "a", b"x")
    names = [name for name, _ in calls]
    assert names == ["write", "fsync", "replace", "unlink", "fsync"]
    temporary = os.fspath(calls[2][1][0])
    assert calls[1][1] == (temporary,)
    assert calls[4][1] == (os.fspath(tmp_path),)


@pytest.mark.parametrize("disturb", ["fail", "kill"])
def test_write_atomic_gives_the_old_or_the_new_bytes_at_every_fault(tmp_path: Path, disturb: str) -> None:
    old, new = b"old" * 1000, b"new" * 1000
    seen = []
    for at in range(20):
        path = tmp_path / str(at) / "a"
        path.parent.mkdir()
        path.write_bytes(old)

        def work(path: Path = path) -> None:
            write_atomic(path, new)

        done = survives(work, failing=at) if disturb == "fail" else outlives(work, killed_at=at)
        seen.append(path.read_bytes())
        assert seen[-1] in (old, new)
        if done:
            break
        left = [name for name in os.listdir(path.parent) if name != "a"]
        if disturb == "fail":
            # The clean-up can fail too, in its own call; then the temporary file is what the next start removes.
            assert all(name.startswith(".tmp-") for name in left)
        remove_temporaries(path.parent)
        assert os.listdir(path.parent) == ["a"]
    # write, fsync, replace do not get through; unlink and the directory's fsync come after the move; then all is well.
    assert seen == [old, old, old, new, new, new]


def test_write_json_atomic_refuses_before_it_touches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"b": 0.1, "a": [1, None]})
    assert path.read_text() == '{\n  "b": 0.1,\n  "a": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(StoreError, match=r"'.*a\.json' cannot be stored exactly: b\[1\] is inf"):
        write_json_atomic(path, {"b": [0.0, float("inf")]})
    assert json.loads(path.read_text()) == {"a": [1, None], "b": 0.1}


def test_remove_directory_is_all_or_nothing(tmp_path: Path) -> None:
    for at in range(20):
        directory = tmp_path / str(at) / "full"
        directory.mkdir(parents=True)
        for name in ("a", "b"):
            (directory / name).touch()
        done = outlives(lambda directory=directory: remove_directory(directory), killed_at=at)
        assert not directory.exists() or sorted(os.listdir(directory)) == ["a", "b"]
        if done:
            break
    assert os.listdir(tmp_path / str(at)) == []
    # Move, delete a, delete b, delete the directory; the fifth try gets through.
    assert at == 4


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


# Exact JSON

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


@settings(deadline=None, max_examples=50)
@given(JSON_VALUES)
def test_exact_json_reads_back_equal_in_value_type_and_order(value: object) -> None:
    text = exact_json(value, name="it")
    # repr tells 1 from 1.0, 0.0 from -0.0, and one order of keys from another.
    assert repr(json.loads(text)) == repr(value)
    assert "\n" not in text and text.isascii()


@pytest.mark.parametrize(
    ("value", "flaw"),
    [
        (float("nan"), "the value itself is nan; store None or a string instead"),
        ({"a": {"b": [0, -float("inf")]}}, "a.b[1] is -inf; store None or a string instead"),
        ({"a": (1,)}, "a is a tuple; use None, bool, int, float, str, list or dict"),
        ({"a": {1: 2}}, "a has the key 1; keys must be strings"),
        ([b""], "[0] is a bytes; use None, bool, int, float, str, list or dict"),
        ([1.0, float("nan"), 2.0], "[1] is nan; store None or a string instead"),
    ],
)
def test_find_inexact_names_the_place(value: object, flaw: str) -> None:
    assert find_inexact(value) == flaw


def test_find_inexact_allows_tuples_on_request() -> None:
    assert find_inexact({"a": (1, [2.0, "x"])}, allow_tuples=True) is None
    assert (
        find_inexact({"a": (1, (float("inf"),))}, allow_tuples=True) == "a[1][0] is inf; store None or a string instead"
    )


# Line files


def lines_of(*steps: int) -> bytes:
    return b"".join(f'{{"loss": 0.1, "step": {step}}}\n'.encode() for step in steps)


def test_append_line_and_read_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert read_jsonl(path) == []
    append_line(path, '{"step": 0}')
    append_line(path, '{"step": 1}')
    assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n'
    assert read_jsonl(path) == [{"step": 0}, {"step": 1}]


def test_append_line_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, '{"step": 0}')
    for at in range(2):  # the write, the flush
        assert not survives(lambda: append_line(path, '{"step": 1}'), failing=at)
        assert path.read_bytes() == b'{"step": 0}\n'
    assert survives(lambda: append_line(path, '{"step": 1}'), failing=2)
    assert read_jsonl(path) == [{"step": 0}, {"step": 1}]


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    append_line(path, '{"step": 0}')
    assert not outlives(lambda: append_line(path, '{"step": 1}'), killed_at=0)
    assert path.read_bytes() == b'{"step": 0}\n{"step'
    assert read_jsonl(path) == [{"step": 0}]


@pytest.mark.parametrize("tail", [b"", b'{"step": 2', b"\0\0\0", b"\0\0\0\n"])
def test_truncate_keeps_the_bytes_before_the_step(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(0, 0, 1, 3) + tail)
    truncate_jsonl(path, before_step=10)
    assert path.read_bytes() == lines_of(0, 0, 1, 3)
    truncate_jsonl(path, before_step=3)
    assert path.read_bytes() == lines_of(0, 0, 1)
    truncate_jsonl(path, before_step=0)
    assert path.read_bytes() == b""
    truncate_jsonl(tmp_path / "missing", before_step=0)
    assert not (tmp_path / "missing").exists()


def test_truncate_is_old_or_new_at_every_fault(tmp_path: Path) -> None:
    for at in range(20):
        path = tmp_path / f"{at}.jsonl"
        path.write_bytes(lines_of(0, 1, 2))
        done = outlives(lambda path=path: truncate_jsonl(path, before_step=1), killed_at=at)
        assert path.read_bytes() in (lines_of(0, 1, 2), lines_of(0))
        if done:
            break
    assert at == 5


def test_a_damaged_line_before_the_last_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step"; 1}\n{"step": 2}\n')
    with pytest.raises(StoreError, match=r"a\.jsonl', line 2: wanted a JSON object, got b'\{\"step\"; 1\}'"):
        read_jsonl(path)
    with pytest.raises(StoreError, match="line 2"):
        truncate_jsonl(path, before_step=9)
    # What is dropped anyway need not be whole.
    truncate_jsonl(path, before_step=0)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "message"), [(b"[1]", "got list"), (b'{"loss": 1}', "wanted an integer 'step', got None")]
)
def test_truncate_wants_objects_with_a_step(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(0) + line + b"\n")
    with pytest.raises(StoreError, match=f"line 2: .*{message}"):
        truncate_jsonl(path, before_step=5)


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}
