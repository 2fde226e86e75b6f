"""The planner under ALFWorld: Fast Downward, as TextWorld builds it into a library (`fast-downward-textworld`, GPL-3).

It is loaded when the first game is, and nothing else of firesteel needs it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import zlib
from ctypes import c_int
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from firesteel.environments.scienceworld.gold import cache_directory
from firesteel.errors import FiresteelError, MissingDependency, TaskError
from firesteel.files import make_directory, write_atomic

HOW_TO_INSTALL = "pip install 'firesteel[alfworld]' (it is compiled: gcc, make and cmake must be there)"

Atom = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Operator:
    """A grounded action that can be applied now: the library's number for it, and its name with its arguments."""

    id: int
    name: str
    num_effects: int


@dataclass(frozen=True, slots=True)
class Translation:
    """A PDDL problem as the planner loads it (SAS), and what the texts need of it.

    `parameters` has the variables (name, type) of each action, `types` the types that each type is a kind of,
    `objects` the type of each object, `facts` what holds at the start, and `changing` the predicates that actions
    change.
    """

    sas: str
    parameters: dict[str, list[list[str]]]
    types: dict[str, list[str]]
    objects: dict[str, str]
    facts: list[list[str]]
    changing: list[str]


def fast_downward() -> Any:
    """The module of the library; raises `MissingDependency` where it is not installed."""
    try:
        return import_module("fast_downward")
    except ImportError as error:
        raise MissingDependency(f"alfworld needs the planner library: {HOW_TO_INSTALL}") from error


def translate(domain: str, problem: str, name: str) -> Translation:
    """A problem in the planner's form, with nothing pruned: what cannot reach the goal can be done, too.

    Takes 0.1 to 0.5 s, so translations are kept on disk. Raises `TaskError`, which gives `name`, for what is no PDDL.
    """
    fast_downward()
    path = _cached(domain, problem)
    with contextlib.suppress(OSError, ValueError, TypeError, zlib.error):
        return Translation(**json.loads(zlib.decompress(path.read_bytes())))
    task, sas = _pddl2sas(domain, problem, name)
    equal = (fact for fact in task.init if getattr(fact, "predicate", "=") != "=")
    translation = Translation(
        sas=sas,
        parameters={
            action.name: [[parameter.name.strip("?"), parameter.type_name] for parameter in action.parameters]
            for action in task.actions
        },
        types={kind.name: list(kind.supertype_names) for kind in task.types},
        objects={thing.name: thing.type_name for thing in task.objects},
        facts=[[fact.predicate, *fact.args] for fact in equal],
        changing=sorted({effect.literal.predicate for action in task.actions for effect in action.effects}),
    )
    # Without a writable cache everything works, only slower.
    with contextlib.suppress(OSError):
        make_directory(path.parent)
        write_atomic(path, zlib.compress(json.dumps(asdict(translation)).encode(), 6))
    return translation


def _pddl2sas(domain: str, problem: str, name: str) -> tuple[Any, str]:
    library = fast_downward()
    arguments = sys.argv
    try:
        return library.pddl2sas(domain, problem)
    except FiresteelError:
        raise  # a time-out that came in between
    except (Exception, SystemExit) as error:  # boundary: the translator fails in any way on what is no PDDL
        raise TaskError(f"{name}: its PDDL cannot be translated ({type(error).__name__}: {error!s:.200})") from error
    finally:
        # The translator replaces the arguments of the whole process.
        sys.argv = arguments


def _cached(domain: str, problem: str) -> Path:
    text = f"{metadata.version('fast-downward-textworld')}\0{domain}\0{problem}"
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return cache_directory() / "alfworld" / digest[:2] / digest


_thinker: list[Planner] = []


def find_plan(domain: str, problem: str, name: str) -> list[str]:
    """The names of the operators that lead from a problem's start to its goal; empty where nothing does.

    How long that takes depends on the problem alone, and nothing can end it: give it small ones.
    """
    _, sas = _pddl2sas(domain, problem, name)
    if not _thinker:
        _thinker.append(Planner())
    _thinker[0].load(sas)
    return _thinker[0].plan(sas)


class Planner:
    """One copy of the library, which holds one problem and the states of it that were visited. Not thread-safe."""

    def __init__(self) -> None:
        self._module = fast_downward()
        self._library = self._module.load_lib()
        self._library.get_state_id.argtypes, self._library.get_state_id.restype = [], c_int
        self._library.set_state_id.argtypes, self._library.set_state_id.restype = [c_int], None

    def load(self, sas: str) -> None:
        """Takes another problem, in its first state; all states of the one before are forgotten."""
        self._library.load_sas(sas.encode())

    @property
    def state(self) -> int:
        """The number of the current state."""
        return int(self._library.get_state_id())

    def go_to(self, state: int) -> None:
        """Makes a visited state the current one."""
        self._library.set_state_id(state)

    def facts(self) -> list[Atom]:
        """The facts that the planner keeps track of and that hold now."""
        atoms = (self._module.Atom * self._library.get_state_size())()
        self._library.get_state(atoms)
        return [atom for atom, holds in map(_read, atoms) if holds]

    def operators(self) -> list[Operator]:
        """What can be done now."""
        found = (self._module.Operator * self._library.get_applicable_operators_count())()
        self._library.get_applicable_operators(found)
        return [Operator(each.id, each.name, each.nb_effect_atoms) for each in found]

    def apply(self, operator: Operator) -> list[tuple[Atom, bool]]:
        """Does something; returns the facts that it makes true or false."""
        effects = (self._module.Atom * operator.num_effects)()
        self._library.apply_operator(operator.id, effects)
        return [_read(atom) for atom in effects]

    def is_won(self) -> bool:
        return bool(self._library.check_goal())

    def plan(self, sas: str) -> list[str]:
        """The names of operators that lead from the current state to the goal; empty where there is no way.

        `sas` is the problem that was loaded.
        """
        self._library.load_sas_replan(sas.encode())
        if not self._library.replan(False):
            return []
        steps = (self._module.Operator * self._library.get_last_plan_length())()
        self._library.get_last_plan(steps)
        return [step.name for step in steps]


def _read(atom: Any) -> tuple[Atom, bool]:
    """("holds", ("agent1", "mug 1")) and whether it is true, of "Atom holds(agent1, mug 1)"."""
    kind, _, rest = atom.name.partition(" ")
    name, _, arguments = rest.partition("(")
    return (name, tuple(part for part in arguments[:-1].split(", ") if part)), kind != "NegatedAtom"
