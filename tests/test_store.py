"""Tests of firesteel.store."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults import outlives, recorded, survives
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import uneven_tree

from firesteel.errors import StoreError
from firesteel.store import TreeStore
from firesteel.tree import FORMAT_VERSION, Tree
from firesteel.types import Task


@dataclass
class Record:
    """The least that can be stored."""

    value: Any
    format_version: Any = 1

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "format_version": self.format_version}


def values(store: TreeStore) -> list[Any]:
    return [record["value"] for record in store.read()]


@pytest.fixture
def store(tmp_path: Path) -> TreeStore:
    return TreeStore(tmp_path / "trees")


# Reading what was written


def test_an_empty_store(store: TreeStore) -> None:
    assert (len(store), store.steps(), list(store.read())) == (0, [], [])
    assert store.append(0, []) == 0
    store.drop_from(0)
    assert not store.directory.exists()


def test_the_files_are_exactly_what_the_format_says(store: TreeStore) -> None:
    assert store.append(12, [Record(0.1), Record(None)]) == 2
    assert sorted(os.listdir(store.directory)) == ["step-000012.jsonl", "step-000012.sha256"]
    content = (store.directory / "step-000012.jsonl").read_text()
    assert content == '{"value":0.1,"format_version":1}\n{"value":null,"format_version":1}\n'
    # printf '%s\n' '{"value":0.1,"format_version":1}' '{"value":null,"format_version":1}' | sha256sum
    assert (store.directory / "step-000012.sha256").read_text() == (
        "# firesteel trees, format 1, step 12, 2 trees\n"
        "c8b7fc810f43802b5ad80a363ba8d1be4c64306746f308d697f0fd6303d6cd87  step-000012.jsonl\n"
    )


def test_sha256sum_accepts_the_checksums(store: TreeStore) -> None:
    store.append(0, [Record(1)])
    command = ["sha256sum", "--check", "--strict", "step-000000.sha256"]
    result = subprocess.run(command, cwd=store.directory, capture_output=True, text=True, timeout=20)
    assert (result.returncode, result.stdout) == (0, "step-000000.jsonl: OK\n")


def test_trees_come_back_equal(store: TreeStore) -> None:
    first, second = uneven_tree("a"), uneven_tree("b")
    second.task = Task("b", data={"text": "\u2028\ud800é\n", "n": 1 << 70}, demonstrations=("x", "y"))
    store.append(3, [first])
    store.append(4, [second])
    assert list(store.read_trees()) == [first, second]
    assert list(store.read_trees([4])) == [second]
    assert [record["task"]["id"] for record in store.read()] == ["a", "b"]
    assert (len(store), store.steps()) == (2, [3, 4])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_floats_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, floats: list[float]) -> None:
    store = TreeStore(tmp_path_factory.mktemp("trees"))
    store.append(0, [Record(floats)])
    assert [value.hex() for value in values(store)[0]] == [value.hex() for value in floats]


def test_steps_are_sorted_as_numbers(store: TreeStore) -> None:
    for step in (5, 999_999, 1_000_000):
        store.append(step, [Record(step)])
    (store.directory / "step-7.jsonl").touch()
    assert store.steps() == [5, 999_999, 1_000_000]
    assert values(store) == [5, 999_999, 1_000_000]


# Refusals


def test_steps_ascend_and_are_stored_once(store: TreeStore) -> None:
    store.append(3, [Record(1)])
    for step in (-1, 2, 3):
        with pytest.raises(StoreError, match=f"step {step} cannot be added after step 3"):
            store.append(step, [Record(2)])
    assert values(store) == [1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record({"a": [0.0, float("nan")]}), r"tree 1 of the step cannot be stored exactly: value\.a\[1\] is nan"),
        (Record({1: 2}), "value has the key 1; keys must be strings"),
        (Record(b"x"), "value is a bytes"),
        (Record(0, format_version=None), "tree 1: wanted an integer 'format_version', got None"),
    ],
)
def test_what_json_cannot_give_back_is_refused_whole(store: TreeStore, record: Record, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        store.append(0, [Record(1), record])
    assert not store.directory.exists()


def test_a_missing_step_names_those_that_exist(store: TreeStore) -> None:
    with pytest.raises(StoreError, match="has no step 5; it has none"):
        list(store.read([5]))
    store.append(1, [Record(1)])
    store.append(4, [Record(1)])
    with pytest.raises(StoreError, match="has no step 5; it has 2 steps from 1 to 4"):
        list(store.read([1, 5]))


def test_newer_formats_ask_for_an_upgrade(store: TreeStore) -> None:
    store.append(0, [Record(1)])
    sidecar = store.directory / "step-000000.sha256"
    sidecar.write_text("# firesteel trees, format 2, zstd\nwhatever comes\n")
    with pytest.raises(StoreError, match="shard format 2, but this firesteel reads up to 1; upgrade firesteel"):
        list(store.read())
    with pytest.raises(StoreError, match=f"tree 0: tree format {FORMAT_VERSION + 1}, .*upgrade"):
        store.append(1, [Record(1, format_version=FORMAT_VERSION + 1)])


# Damage


def test_every_damaged_byte_is_found(store: TreeStore) -> None:
    store.append(0, [Record(1.5)])
    for path in sorted(store.directory.iterdir()):
        content = path.read_bytes()
        for position in range(len(content)):
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            with pytest.raises(StoreError, match="step-000000"):
                list(store.read())
        for size in range(len(content)):
            path.write_bytes(content[:size])
            with pytest.raises(StoreError, match=r"restore both files of the step|it has none"):
                list(store.read())
        path.write_bytes(content)
    assert values(store) == [1.5]


def test_damage_names_the_line_the_checksums_and_what_to_do(store: TreeStore) -> None:
    store.append(0, [Record(1)])
    store.append(7, [Record(2), Record(3), Record(4)])
    path = store.directory / "step-000007.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'{"value":3', b'{"value";3'))
    with pytest.raises(StoreError) as caught:
        list(store.read())
    for part in ("step-000007.jsonl' is damaged at line 2", "sha256 wanted ", "drop_from(7)"):
        assert part in str(caught.value)
    path.write_bytes(content[:-5])
    with pytest.raises(StoreError, match="damaged at line 3: .* 3 lines wanted, 2 found"):
        list(store.read())
    path.write_bytes(content.replace(b"3", b"5"))
    with pytest.raises(StoreError, match="is damaged: sha256"):
        list(store.read())
    # A damaged shard gives nothing at all, and the others stay readable.
    assert [record["value"] for record in store.read([0])] == [1]
    store.drop_from(7)
    assert values(store) == [1]


def test_a_shard_without_its_checksum_is_an_error(store: TreeStore) -> None:
    store.append(0, [Record(1)])
    (store.directory / "step-000000.sha256").unlink()
    with pytest.raises(StoreError, match=r"step-000000\.sha256' is missing"):
        list(store.read())


# Crashes


@pytest.mark.parametrize("disturb", ["fail", "kill"])
def test_append_is_all_or_nothing_at_every_fault(tmp_path: Path, disturb: str) -> None:
    seen = []
    for at in range(40):
        store = TreeStore(tmp_path / str(at))
        store.append(0, [Record("old")])

        def work(store: TreeStore = store) -> None:
            store.append(1, [Record("new"), Record("new")])

        done = survives(work, failing=at) if disturb == "fail" else outlives(work, killed_at=at)
        seen.append(values(store))
        assert len(store) == len(seen[-1])
        if done:
            break
        # The interrupted step can be stored again, over whatever was left of it.
        store.drop_from(1)
        store.append(1, [Record("again")])
        assert values(store) == ["old", "again"]
    # Two files of five changes each; the shard exists from the third of the second file on.
    assert seen == [["old"]] * 8 + [["old", "new", "new"]] * 3


def test_drop_from_leaves_a_readable_beginning_at_every_fault(tmp_path: Path) -> None:
    for at in range(40):
        store = TreeStore(tmp_path / str(at))
        for step in range(4):
            store.append(step, [Record(step)])
        done = outlives(lambda store=store: store.drop_from(1), killed_at=at)
        assert values(store) == list(range(len(values(store)))) and len(store) >= 1
        store.drop_from(1)
        assert values(store) == [0]
        assert sorted(os.listdir(store.directory)) == ["step-000000.jsonl", "step-000000.sha256"]
        if done:
            break
    assert at == 6


def test_everything_is_flushed_before_it_is_moved_and_the_checksum_goes_first(store: TreeStore) -> None:
    with recorded() as calls:
        store.append(0, [Record(1)])
    flushed: set[str] = set()
    moved = []
    for name, arguments in calls:
        if name == "fsync":
            flushed.add(os.fspath(arguments[0]))
        if name == "replace":
            assert os.fspath(arguments[0]) in flushed
            moved.append(Path(arguments[1]).suffix)
            flushed.discard(os.fspath(store.directory))
    assert moved == [".sha256", ".jsonl"]
    assert os.fspath(store.directory) in flushed and os.fspath(store.directory.parent) in flushed


# Import


def test_import_takes_exported_trees(store: TreeStore, tmp_path: Path) -> None:
    trees = [uneven_tree("a"), uneven_tree("b")]
    source = tmp_path / "export.jsonl"
    source.write_text("".join(json.dumps(tree.to_dict()) + "\n" for tree in trees) + "\n")
    assert store.import_jsonl(source) == 2
    assert store.import_jsonl(source) == 2
    assert store.import_jsonl(source, step=8) == 2
    assert store.steps() == [0, 1, 8]
    assert list(store.read_trees([8])) == trees


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: wanted a JSON object"),
        ("[]", "line 2: wanted a JSON object, got list"),
        ('{"goal": ""}', "line 2: wanted an integer 'format_version', got None"),
        ('{"format_version": 1, "goal": ""}', "line 2: not a tree record: 'task' is missing"),
        (json.dumps(Tree(task=Task("a")).to_dict()).replace('"kind"', '"sort"'), "line 2: not a tree record: .*sort"),
    ],
)
def test_import_refuses_the_whole_file(store: TreeStore, tmp_path: Path, line: str, message: str) -> None:
    source = tmp_path / "export.jsonl"
    source.write_text(json.dumps(uneven_tree().to_dict()) + "\n" + line + "\n")
    with pytest.raises(StoreError, match=message):
        store.import_jsonl(source)
    assert store.steps() == []
