"""Trees in the terminal."""

from __future__ import annotations

import io

from rich.console import Console
from trees import uneven_tree

from firesteel.draw import draw_tree
from firesteel.tree import Leaf, Tree
from firesteel.types import Task


def drawn(tree: Tree) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    console.print(draw_tree(tree))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_only_branchings_indent_and_leaves_carry_their_outcomes() -> None:
    tree = uneven_tree()
    tree.goal, tree.observation = "clean the [mug]", "a  room\nwith a desk"
    for number, node in enumerate(node for node in tree.nodes if node.step):
        assert node.step is not None
        node.step.action, node.step.observation = f"act {number}", f"seen {number}"
    # steps in the order of their nodes: a, b, c, d, e
    assert drawn(tree) == [
        "t  clean the [mug]",
        "├── a room with a desk",
        "├── - act 0 seen 0",
        "│   ├── - act 1 seen 1  success reward 1",
        "│   └── - act 2 seen 2  finished reward 0",
        "└── - act 3 seen 3",
        "    └── - act 4 seen 4  success reward 1",
    ]


def test_leaves_that_ended_before_a_step_are_drawn_with_the_reason() -> None:
    tree = Tree(Task("t"), goal="g", observation="o")
    tree.add(-1, "prompt", 0, [])
    tree.leaves.append(Leaf(0, 0, 0, status="failed", failure="reset of task 't': [broken]"))
    assert drawn(tree) == ["t  g", "├── o", "└── no further: failed (reset of task 't': [broken])"]
    tree = uneven_tree()
    tree.leaves.append(Leaf(3, 2, 0, status="failed", failure="the fork died"))
    assert sum("no further: failed (the fork died)" in line for line in drawn(tree)) == 1


def test_long_texts_are_cut() -> None:
    tree = uneven_tree()
    tree.observation = "x" * 101
    assert drawn(tree)[1] == f"├── {'x' * 97}..."
    tree.observation = "x" * 100
    assert drawn(tree)[1] == f"├── {'x' * 100}"
