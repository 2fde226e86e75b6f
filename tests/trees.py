"""Small trees for tests, built by hand."""

from __future__ import annotations

from firesteel.tree import Leaf, Node, Step, Tree
from firesteel.types import Task


def respond(tree: Tree, parent: int, turn: int, tokens: list[int], logprobs: list[float] | None = None) -> Node:
    """A sampled node under `parent`."""
    values = [-1.0] * len(tokens) if logprobs is None else logprobs
    step = Step(text="", action="look", tag="think", explore=False, valid=True)
    return tree.add(parent, "response", turn, tokens, logprobs=values, sampling_logprobs=values, step=step)


def finish(tree: Tree, node: Node, root: int, reward: float, steps: list[float] | None = None) -> Leaf:
    """A finished leaf that ends with `node`."""
    leaf = Leaf(len(tree.leaves), node.index, root, status="finished", success=reward > 0, reward=reward)
    tree.leaves.append(leaf)
    leaf.step_rewards = steps if steps is not None else [0.0] * len(tree.responses(leaf))
    return leaf


def uneven_tree(name: str = "t") -> Tree:
    """Two roots; root 0 branches in two after its first step, root 1 does not.

    Tokens sampled: step nodes a (2 tokens) -> b (1), c (3); d (2) -> e (1). Rewards 1, 0, 1.
    """
    tree = Tree(task=Task(name), group=name)
    prompt = tree.add(-1, "prompt", 0, [7, 8], restart=True, width=2)
    a = respond(tree, prompt.index, 0, [1, 2])
    seen = tree.add(a.index, "prompt", 1, [9], width=2)
    b = respond(tree, seen.index, 1, [3])
    c = respond(tree, seen.index, 1, [4, 5, 6])
    d = respond(tree, prompt.index, 0, [2, 1])
    seen_d = tree.add(d.index, "prompt", 1, [9, 9])
    e = respond(tree, seen_d.index, 1, [3])
    finish(tree, b, 0, 1.0)
    finish(tree, c, 0, 0.0)
    finish(tree, e, 1, 1.0)
    return tree
