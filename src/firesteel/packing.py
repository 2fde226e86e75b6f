"""From scored trees to rows of tokens with the weights that the loss needs.

    L = -(1/D) sum_l sum_{n in path(l)} sum_{t in n} w(l,n) * min(r_t A(l,n), clip(r_t) A(l,n))

A row is one token stream: in `full` contexts the path of one leaf, in `window` contexts one rendered prompt and the
step sampled after it. A sampled node is trained in exactly one row, with the sums over all leaves below it
(`losses` shows why two sums suffice); other rows that hold it carry it as context only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from firesteel.advantages import leaf_weights
from firesteel.tree import Leaf, Node, Tree


@dataclass(slots=True)
class Row:
    """One token stream of T tokens. Float arrays have shape [T] and are 0 where `loss_mask` is False.

    `old_logprobs` are NaN for sampled nodes that have none.

    `positive` and `negative` are the sums over leaves of w*max(A,0) and w*min(A,0); `weight` is the sum of w. `tree` is
    the number of the tree in its batch.
    """

    token_ids: np.ndarray
    loss_mask: np.ndarray
    old_logprobs: np.ndarray
    temperature: np.ndarray
    weight: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    tree: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(slots=True)
class Batch:
    """Rows of one update. `stats` counts what packing saw, as metrics."""

    rows: list[Row]
    stats: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class NodeTerms:
    """What the leaves below one sampled node add up to."""

    weight: float = 0.0
    positive: float = 0.0
    negative: float = 0.0


def node_terms(tree: Tree, *, weighting: str, aggregation: str = "token_mean") -> dict[int, NodeTerms]:
    """For every sampled node below which a leaf counts, the sums over its leaves.

    `aggregation="sequence_mean"` divides a leaf's weight by its number of sampled tokens, so that every
    episode counts alike whatever its length.
    """
    weights = leaf_weights(tree, weighting)
    below = tree.leaves_below()
    terms: dict[int, NodeTerms] = {}
    for leaf in tree.counting_leaves():
        responses = tree.responses(leaf)
        advantages = leaf.advantages if leaf.advantages is not None else [0.0] * len(responses)
        length = sum(len(node.token_ids) for node in responses)
        for node, advantage in zip(responses, advantages, strict=True):
            weight = weights[leaf.index]
            if weighting == "node":
                weight /= len(below[node.index])
            if aggregation == "sequence_mean":
                weight /= max(1, length)
            term = terms.setdefault(node.index, NodeTerms())
            term.weight += weight
            term.positive += weight * max(advantage, 0.0)
            term.negative += weight * min(advantage, 0.0)
    return terms


def pack(
    trees: Sequence[Tree], *, weighting: str = "path", aggregation: str = "token_mean", prompt_weight: float = 0.0
) -> Batch:
    """Turns trees into rows: the form in which weights are written down and checked.

    The learner runs rows one by one or, with the same weights, as one stream in which what rows share stands once
    (`layout`); the row of a token decides its weight, never how often the token goes through the model.

    `prompt_weight` above 0 trains fed tokens too, with that weight (language pre-training); their advantages stay 0.
    """
    rows: list[Row] = []
    path_tokens = distinct_tokens = 0
    for number, tree in enumerate(trees):
        terms = node_terms(tree, weighting=weighting, aggregation=aggregation)
        trained: set[int] = set()
        for leaf in tree.counting_leaves():
            path_tokens += sum(len(node.token_ids) for node in tree.path(leaf.node))
            for segment in _streams(tree, leaf):
                row = _row(segment, terms, trained, prompt_weight)
                if row is not None:
                    row.tree = number
                    rows.append(row)
        distinct_tokens += sum(len(tree.nodes[index].token_ids) for index in tree.leaves_below())
    stats = {
        "pack/rows": float(len(rows)),
        "pack/row_tokens": float(sum(len(row) for row in rows)),
        "pack/tree_tokens": float(distinct_tokens),
        "pack/token_ratio": path_tokens / distinct_tokens if distinct_tokens else 1.0,
    }
    return Batch(rows, stats)


def _streams(tree: Tree, leaf: Leaf) -> list[list[Node]]:
    """The leaf's path, cut where the context restarts."""
    streams: list[list[Node]] = []
    for node in tree.path(leaf.node):
        if node.restart or not streams:
            streams.append([])
        streams[-1].append(node)
    return streams


def _row(nodes: list[Node], terms: dict[int, NodeTerms], trained: set[int], prompt_weight: float) -> Row | None:
    """One row, or None when every node in it was trained by an earlier row; trailing untrained nodes are cut off."""
    wanted = [node.index not in trained and (prompt_weight > 0 or node.index in terms) for node in nodes]
    nodes = nodes[: len(wanted) - wanted[::-1].index(True)] if any(wanted) else []
    if not nodes:
        return None
    size = sum(len(node.token_ids) for node in nodes)
    row = Row(
        token_ids=np.concatenate([np.asarray(node.token_ids, dtype=np.int64) for node in nodes]),
        loss_mask=np.zeros(size, dtype=bool),
        old_logprobs=np.zeros(size, dtype=np.float32),
        temperature=np.ones(size, dtype=np.float32),
        weight=np.zeros(size, dtype=np.float32),
        positive=np.zeros(size, dtype=np.float32),
        negative=np.zeros(size, dtype=np.float32),
    )
    end = 0
    for node in nodes:
        start, end = end, end + len(node.token_ids)
        if node.index in trained:
            continue
        if node.index in terms:
            _write(row, slice(start, end), node, terms[node.index])
        elif prompt_weight > 0 and node.role == "prompt":
            row.loss_mask[start:end] = True
            row.weight[start:end] = prompt_weight
        trained.add(node.index)
    if size:
        row.loss_mask[0] = False
        row.weight[0] = 0.0
    return row


def _write(row: Row, span: slice, node: Node, term: NodeTerms) -> None:
    if term.weight == 0.0:
        return
    row.loss_mask[span] = True
    row.weight[span] = term.weight
    row.positive[span] = term.positive
    row.negative[span] = term.negative
    row.temperature[span] = node.temperature if node.temperature > 0 else 1.0
    row.old_logprobs[span] = math.nan if node.sampling_logprobs is None else node.sampling_logprobs


def denominator(rows: Sequence[Row], aggregation: str, *, constant: float = 1.0) -> float:
    """D over one optimiser step: the sum of w over sampled tokens, or the given constant.

    Under `leaf` that is path tokens summed over leaves, under `node` the distinct trained tokens, under
    `path` the expected tokens per episode times the number of trees.
    """
    if aggregation == "constant":
        return constant
    return float(sum(float(row.weight.sum(dtype=np.float64)) for row in rows))
