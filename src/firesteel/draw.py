"""A rollout tree in the terminal: one line a step, branches where it branched, the reward at each leaf."""

from __future__ import annotations

from rich.markup import escape
from rich.tree import Tree as Drawing

from firesteel.tree import Leaf, Node, Tree

LONGEST = 100


def draw_tree(tree: Tree) -> Drawing:
    """The tree as a `rich` drawing."""
    drawing = Drawing(f"[bold]{escape(tree.task.id)}[/]  {escape(tree.goal)}")
    drawing.add(f"[dim]{escape(_short(tree.observation))}[/]")
    children: dict[int, list[Node]] = {}
    for node in tree.nodes:
        children.setdefault(node.parent, []).append(node)
    ends: dict[int, list[Leaf]] = {}
    for leaf in tree.leaves:
        ends.setdefault(leaf.node, []).append(leaf)
    for line in _lines(tree.nodes[0], ends):
        drawing.add(line)
    _draw(drawing, 0, children, ends)
    return drawing


def _draw(drawing: Drawing, index: int, children: dict[int, list[Node]], ends: dict[int, list[Leaf]]) -> None:
    """What lies below node `index`. Chains stay on one level; only a branching indents."""
    while True:
        below = children.get(index, [])
        if len(below) != 1:
            break
        index = below[0].index
        for line in _lines(below[0], ends):
            drawing.add(line)
    for child in below:
        lines = _lines(child, ends)
        _draw(drawing.add(lines[0]) if lines else drawing, child.index, children, ends)


def _lines(node: Node, ends: dict[int, list[Leaf]]) -> list[str]:
    """The line of a step, with the leaf that ended there; of what was fed, a line for every leaf that ended there."""
    leaves = ends.get(node.index, [])
    if node.step is None:
        return [f"[dim]no further:[/] {_outcome(leaf)}" for leaf in leaves]
    colour = "yellow" if node.step.explore else "cyan"
    said, seen = escape(node.step.reasoning or "-"), escape(_short(node.step.observation))
    step = f"[{colour}]{said}[/] [bold]{escape(node.step.action)}[/] [dim]{seen}[/]"
    return ["  ".join([step, *map(_outcome, leaves)])]


def _outcome(leaf: Leaf) -> str:
    mark = "[green]success[/]" if leaf.success else f"[red]{leaf.status}[/]"
    reward = "" if leaf.reward is None else f" reward {leaf.reward:g}"
    return f"{mark}{reward}{f' ({escape(_short(leaf.failure))})' if leaf.failure else ''}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
