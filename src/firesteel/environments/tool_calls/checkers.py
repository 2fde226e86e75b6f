"""Whether calls are right: `exact` for rewards, `bfcl` (the benchmark's own rules) for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from firesteel.environments.tool_calls.tasks import Call, ToolTask, Verdict, same_calls

Checker = Callable[[Sequence[Call], ToolTask], Verdict]


def exact(calls: Sequence[Call], task: ToolTask) -> Verdict:
    """Right iff names and all arguments equal those of one accepted answer, in any order of calls (`canonical`)."""
    if any(same_calls(calls, answer) for answer in task.answers):
        return Verdict(True)
    best = task.reference
    if len(calls) != len(best):
        return Verdict(False, f"{len(calls)} calls, {len(best)} are right")
    if sorted(call.name for call in calls) != sorted(call.name for call in best):
        return Verdict(False, "another tool is right")
    return Verdict(False, "an argument is wrong")


def bfcl(calls: Sequence[Call], task: ToolTask) -> Verdict:
    """Right by BFCL's own AST checker: alternatives, optional parameters, normalised strings (needs `bfcl-eval`)."""
    from firesteel.environments.bfcl.single_turn import check_calls  # the benchmark is an extra

    return check_calls(calls, task)


CHECKERS: dict[str, Checker] = {"exact": exact, "bfcl": bfcl}
