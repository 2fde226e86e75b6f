"""The rollout tree: a flat list of nodes with parent indices, from the first prompt to the gradient.

A node is a segment of the token stream: either fed (`role` "prompt": the opening prompt, an observation) or
sampled (`role` "response"). It holds exactly the token ids that it added; nothing is ever tokenised again.
A path from node 0 to a leaf's last node is one episode. A node with `restart` begins the token stream anew
(context mode "window"). `None` means "never computed" and is not `0.0`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from firesteel.errors import TreeError
from firesteel.types import Task

FORMAT_VERSION = 1
LEAF_STATUSES = ("active", "finished", "truncated", "overflow", "failed")


@dataclass(slots=True)
class Step:
    """What came of one response: how it was read, what the environment answered.

    Where it was chosen among candidates, `candidates` has the score of each label and `label` is its own.
    """

    text: str
    action: str
    tag: str | None
    explore: bool
    valid: bool
    reasoning: str = ""
    truncated_response: bool = False
    understood: bool = True
    observation: str = ""
    reward: float = 0.0
    entropy: float | None = None
    label: str = ""
    candidates: dict[str, float] | None = None


@dataclass(slots=True)
class Node:
    """One segment. `width` is the number of continuations granted below it (M at the root prompt, b at a branch).

    Where an environment was forked, `fork_rung` says how, and `fork_replayed_steps` how many steps its forks played
    again; the seconds that forks took are in `timings.jsonl`, since a tree holds nothing that differs between runs.
    """

    index: int
    parent: int
    role: str
    turn: int
    token_ids: list[int]
    logprobs: list[float] | None = None
    sampling_logprobs: list[float] | None = None
    temperature: float = 1.0
    restart: bool = False
    policy_version: int | None = None
    width: int = 1
    fork_rung: str | None = None
    fork_replayed_steps: int = 0
    step: Step | None = None


@dataclass(slots=True)
class Leaf:
    """One episode of the tree. `node` is the last node of its path, `root` the number of the root it grew from.

    `advantages` has one entry per response node of the path, in order; `step_rewards` likewise.
    `multiplicity` above 1 says that the leaf stands for copies of itself (SPARK's padding of short groups).
    """

    index: int
    node: int
    root: int
    status: str = "active"
    success: bool = False
    score: float = 0.0
    failure: str | None = None
    reward: float | None = None
    step_rewards: list[float] | None = None
    advantages: list[float] | None = None
    multiplicity: int = 1
    masked: bool = False

    @property
    def counts(self) -> bool:
        """Whether the leaf takes part in baselines, denominators and the loss."""
        return self.status not in ("active", "failed") and not self.masked


@dataclass(slots=True)
class Episode:
    """A finished episode as reward functions and reports see it."""

    task: Task
    goal: str
    steps: list[Step]
    status: str
    success: bool
    score: float
    generated_tokens: int


@dataclass(slots=True)
class Tree:
    """All episodes of one task in one iteration. `group` is the key that baselines group by: the raw task."""

    task: Task
    goal: str = ""
    observation: str = ""
    group: str = ""
    nodes: list[Node] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)

    def add(self, parent: int, role: str, turn: int, token_ids: list[int], **fields: Any) -> Node:
        """Appends a node and returns it."""
        node = Node(index=len(self.nodes), parent=parent, role=role, turn=turn, token_ids=token_ids, **fields)
        self.nodes.append(node)
        return node

    def path(self, index: int) -> list[Node]:
        """The nodes from the root to node `index`, both included."""
        path = []
        while index >= 0:
            node = self.nodes[index]
            path.append(node)
            index = node.parent
        return path[::-1]

    def responses(self, leaf: Leaf) -> list[Node]:
        """The sampled nodes on a leaf's path, in order."""
        return [node for node in self.path(leaf.node) if node.role == "response"]

    def stream(self, index: int) -> list[int]:
        """The token ids of the context that ends with node `index`: everything since the last restart."""
        parts: list[list[int]] = []
        while index >= 0:
            node = self.nodes[index]
            parts.append(node.token_ids)
            if node.restart:
                break
            index = node.parent
        return [token for part in reversed(parts) for token in part]

    def counting_leaves(self) -> list[Leaf]:
        """The leaves that take part in learning."""
        return [leaf for leaf in self.leaves if leaf.counts]

    def leaves_below(self) -> dict[int, list[Leaf]]:
        """For every node, the counting leaves whose path holds it."""
        below: dict[int, list[Leaf]] = {}
        for leaf in self.counting_leaves():
            for node in self.path(leaf.node):
                below.setdefault(node.index, []).append(leaf)
        return below

    def path_weight(self, leaf: Leaf) -> float:
        """(1/M) times the product of 1/b over the branchings on the leaf's path; sums to 1 over a whole tree."""
        weight = 1.0
        for node in self.path(leaf.node):
            weight /= node.width
        return weight

    def episode(self, leaf: Leaf) -> Episode:
        """The leaf's episode."""
        responses = self.responses(leaf)
        return Episode(
            task=self.task,
            goal=self.goal,
            steps=[node.step for node in responses if node.step is not None],
            status=leaf.status,
            success=leaf.success,
            score=leaf.score,
            generated_tokens=sum(len(node.token_ids) for node in responses),
        )

    def episodes(self) -> Iterator[Episode]:
        """The episodes of all leaves that did not fail."""
        return (self.episode(leaf) for leaf in self.leaves if leaf.status != "failed")

    def generated_tokens(self) -> int:
        """Tokens sampled for this tree; a shared node counts once."""
        return sum(len(node.token_ids) for node in self.nodes if node.role == "response")

    def validate(self) -> None:
        """Raises `TreeError` where the tree breaks its contract."""
        for node in self.nodes:
            name = f"node {node.index} of tree '{self.task.id}'"
            if not -1 <= node.parent < node.index:
                raise TreeError(f"{name}: parent {node.parent} must be an earlier node (or -1 for the root)")
            for field_name in ("logprobs", "sampling_logprobs"):
                values = getattr(node, field_name)
                if node.role == "response" and values is not None and len(values) != len(node.token_ids):
                    raise TreeError(
                        f"{name}: {len(values)} {field_name} for {len(node.token_ids)} tokens; "
                        "the generator must return one per token"
                    )
        for leaf in self.leaves:
            if leaf.status not in LEAF_STATUSES or not 0 <= leaf.node < len(self.nodes):
                name = f"leaf {leaf.index} of tree '{self.task.id}'"
                raise TreeError(f"{name}: bad status '{leaf.status}' or node {leaf.node}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able record; `from_dict` gives back an equal tree."""
        return {
            "task": asdict(self.task),
            "goal": self.goal,
            "observation": self.observation,
            "group": self.group,
            "nodes": [_record(node) for node in self.nodes],
            "leaves": [_record(leaf) for leaf in self.leaves],
            "format_version": FORMAT_VERSION,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Tree:
        """Reads a record of `to_dict`."""
        version = record.get("format_version")
        if version != FORMAT_VERSION:
            raise TreeError(f"tree record has format version {version}; this firesteel reads {FORMAT_VERSION}")
        task = dict(record["task"])
        task["demonstrations"] = tuple(task["demonstrations"])
        nodes = []
        for node in record["nodes"]:
            step = node["step"]
            nodes.append(Node(**{**node, "step": None if step is None else Step(**step)}))
        return cls(
            task=Task(**task),
            goal=record["goal"],
            observation=record["observation"],
            group=record["group"],
            nodes=nodes,
            leaves=[Leaf(**leaf) for leaf in record["leaves"]],
        )


def _record(part: Node | Leaf | Step) -> dict[str, Any]:
    """Its fields by name. Lists are copied whole: `asdict` takes them number by number, in six times the time."""
    record = {}
    for each in fields(part):
        value = getattr(part, each.name)
        if isinstance(value, Step):
            value = _record(value)
        elif isinstance(value, (list, dict)):
            value = value.copy()
        record[each.name] = value
    return record
