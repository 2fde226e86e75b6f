"""Trees of tool-calling episodes made by hand, and a policy that is a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from firesteel.environments.tool_calls.tasks import Call, ToolTask
from firesteel.probing import Rollout
from firesteel.tree import Leaf, Step, Tree
from firesteel.types import Task


def sample(name: str, *tools: str, value: int = 0) -> Task:
    """A task about the given tools, each called with one argument."""
    listed = tuple(
        {"name": tool, "description": "",
         "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}
        for tool in tools
    )  # fmt: skip
    answer = tuple(Call(tool, {"x": value}) for tool in tools)
    return ToolTask(name, ({"role": "user", "content": f"do {name}"},), listed, (answer,)).to_task()


def tool_tree(task: Task, *outcomes: bool, text: str = "", rewards: Sequence[float] = (), tokens: int = 3) -> Tree:
    """One response a root; a success is worth 1 unless `rewards` says otherwise."""
    tree = Tree(task=task, group=task.id)
    tree.add(-1, "prompt", 0, [1, 2], restart=True, width=len(outcomes))
    for root, success in enumerate(outcomes):
        step = Step(text, text, None, False, True)
        node = tree.add(0, "response", 0, [5] * tokens, logprobs=[-1.0] * tokens, step=step)
        reward = rewards[root] if rewards else float(success)
        tree.leaves.append(
            Leaf(root, node.index, root, "finished", success, float(success), reward=reward, step_rewards=[0.0])
        )
    return tree


class Table:
    """Plays tasks by a rule: `solves(task, rollout)` says whether the rollout of that number succeeds."""

    def __init__(self, solves: Callable[[Task, int], bool], tokens: int = 10) -> None:
        self.solves = solves
        self.tokens = tokens
        self.calls: list[tuple[str, int, list[str]]] = []
        self.seen: dict[tuple[str, bool, str], int] = {}

    def __call__(self, tasks: Sequence[Task], rollouts: int, name: str) -> list[list[Rollout]]:
        self.calls.append((name, rollouts, [task.id for task in tasks]))
        return [[self._one(task, name) for _ in range(rollouts)] for task in tasks]

    def _one(self, task: Task, name: str) -> Rollout:
        key = (task.id, bool(task.demonstrations), name.rpartition("/")[0])
        number = self.seen.get(key, 0)
        self.seen[key] = number + 1
        return Rollout(self.solves(task, number), self.tokens)
