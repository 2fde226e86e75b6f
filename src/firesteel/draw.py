"""A rollout tree in the terminal: one line a step, branches where it branched, the reward at each leaf."""

from __future__ import annotations

from rich.markup import escape
from rich.tree import Tree as Drawing

from firesteel.tree import Node, Tree

LONGEST = 100


def draw_tree(tree: Tree) -> Drawing:
    """The tree as a `rich` drawing."""
    drawing = Drawing(f"[bold]{escape(tree.task.id)}[/]  {escape(tree.goal)}")
    drawing.add(f"[dim]{escape(_short(tree.observation))}[/]")
    children: dict[int, list[Node]] = {}
    for node in tree.nodes:
        children.setdefault(node.parent, []).append(node)
    ends = {leaf.node: leaf for leaf in tree.leaves}
    _draw(drawing, 0, children, ends)
    return drawing


def _draw(drawing: Drawing, index: int, children: dict[int, list[Node]], ends: dict[int, object]) -> None:
    """Chains stay on one level; only a branching indents."""
    while True:
        below = children.get(index, [])
        if len(below) != 1:
            break
        drawing.add(_line(below[0], ends)) if below[0].role == "response" else None
        index = below[0].index
    for child in below:
        _draw(drawing.add(_line(child, ends)), child.index, children, ends)


def _line(node: Node, ends: dict[int, object]) -> str:
    step = node.step
    if step is None:
        return ""
    colour = "yellow" if step.explore else "cyan"
    text = f"[{colour}]{escape(step.reasoning or '-')}[/] [bold]{escape(step.action)}[/] [dim]{escape(_short(step.observation))}[/]"
    leaf = ends.get(node.index)
    if leaf is not None:
        mark = "[green]success[/]" if leaf.success else f"[red]{leaf.status}[/]"  # type: ignore[attr-defined]
        text += f"  {mark} reward {leaf.reward}"  # type: ignore[attr-defined]
    return text


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
