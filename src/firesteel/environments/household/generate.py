"""How games are made: every one is a function of (size, split, seed, index, kind) alone.

Splits share no game, by construction. `l1` and `l2` use layouts that no other split uses, and `l2` has a task type
that no other split has. `train`, `validation` and `l0` share their layouts and task types; there a game belongs to
the split that the hash of its signature says, and drawing is repeated until the split is right.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache, lru_cache

from firesteel.environments.household.expert import solve
from firesteel.environments.household.vocabulary import (
    APPLIANCES,
    GOAL_SENTENCES,
    KINDS,
    LAMP,
    NUM_OBJECTS,
    NUM_RECEPTACLES,
    OBJECTS,
    ROOMS,
    TREATMENTS,
)
from firesteel.environments.household.world import Game, Goal, Layout

UNSEEN_KIND = "pick_cool_then_place_in_recep"
"""The task type of split `l2`, in no other split."""

MAX_COPIES = 3
USUAL_SHARE = 2 / 3
MAX_EXPERT_STEPS = 50


@dataclass(frozen=True, slots=True)
class Split:
    """Where the games of a split come from. `buckets` are the tenths of all signatures that belong to it."""

    count: int
    kinds: tuple[str, ...]
    layouts: str
    buckets: frozenset[int]


_SEEN_KINDS = tuple(kind for kind in KINDS if kind != UNSEEN_KIND)

SPLITS: dict[str, Split] = {
    "train": Split(2000, _SEEN_KINDS, "seen", frozenset(range(8))),
    "validation": Split(200, _SEEN_KINDS, "seen", frozenset({8})),
    "l0": Split(500, _SEEN_KINDS, "seen", frozenset({9})),
    "l1": Split(500, _SEEN_KINDS, "unseen", frozenset(range(10))),
    "l2": Split(200, (UNSEEN_KIND,), "unseen", frozenset(range(10))),
}

LAYOUTS_PER_ROOM = {"full": {"seen": 30, "unseen": 15}, "small": {"seen": 12, "unseen": 6}}


@cache
def layouts(size: str, pool: str) -> tuple[Layout, ...]:
    """The furnished rooms of a pool, "seen" or "unseen": no two of a size have the same furniture."""
    found: list[Layout] = []
    fewest, most = NUM_RECEPTACLES[size]
    for room, table in ROOMS[size].items():
        rng = random.Random(f"household/layouts/{size}/{room}")
        furniture: list[tuple[str, ...]] = []
        while len(furniture) < sum(LAYOUTS_PER_ROOM[size].values()):
            types = tuple(name for name, (low, high) in table.items() for _ in range(rng.randint(low, high)))
            if fewest <= len(types) <= most and types not in furniture:
                furniture.append(types)
        num_seen = LAYOUTS_PER_ROOM[size]["seen"]
        chosen = furniture[:num_seen] if pool == "seen" else furniture[num_seen:]
        found += [Layout(f"{size}-{room}-{pool}-{number}", room, types) for number, types in enumerate(chosen)]
    return tuple(found)


@cache
def start_places(layout: Layout, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The receptacles of a room in which an object type is usually and sometimes found."""
    places = range(len(layout.types))
    item = OBJECTS[name]
    usual = tuple(place for place in places if layout.types[place] in item.usual)
    sometimes = tuple(place for place in places if layout.types[place] in item.sometimes)
    return usual, sometimes


def draw_place(rng: random.Random, layout: Layout, name: str, forbidden: str = "") -> int | None:
    """Where an object starts: two times in three in a usual place, uniformly over receptacles; None if nowhere."""
    usual, sometimes = (
        [place for place in tier if layout.types[place] != forbidden] for tier in start_places(layout, name)
    )
    tier = usual if usual and (not sometimes or rng.random() < USUAL_SHARE) else sometimes
    return rng.choice(tier) if tier else None


@cache
def goal_pairs(layout: Layout, kind: str) -> dict[str, tuple[str, ...]]:
    """Object type -> the receptacle types it can be asked into; ("",) for look_at_obj_in_light. Empty if none."""
    treatment = TREATMENTS.get(kind, "")
    present = set(layout.types)
    if treatment and APPLIANCES[treatment] not in present:
        return {}
    is_look = kind == "look_at_obj_in_light"
    if is_look and not any(start_places(layout, LAMP)):
        return {}
    pairs: dict[str, tuple[str, ...]] = {}
    for name, item in OBJECTS.items():
        if name == LAMP or layout.room not in item.rooms or (treatment and treatment not in item.treatments):
            continue
        starts = present & (item.usual | item.sometimes)
        appliance = APPLIANCES.get(treatment)
        destinations = ("",) if is_look else tuple(sorted((present & item.fits) - {appliance}))
        destinations = tuple(name for name in destinations if starts - {name})
        if destinations:
            pairs[name] = destinations
    return pairs


@cache
def _layouts_for(size: str, pool: str, kind: str) -> tuple[Layout, ...]:
    return tuple(layout for layout in layouts(size, pool) if goal_pairs(layout, kind))


def draw_game(rng: random.Random, size: str, pool: str, kind: str) -> Game:
    """One game. No target starts in a destination, so nothing is won at the start."""
    layout = rng.choice(_layouts_for(size, pool, kind))
    pairs = goal_pairs(layout, kind)
    target = rng.choice(list(pairs))
    destination = rng.choice(pairs[target])
    sentence = rng.choice(GOAL_SENTENCES[kind]).format(object=target, receptacle=destination)
    num_targets = rng.randint(1, 2) + (kind == "pick_two_obj_and_place")
    things = [(target, draw_place(rng, layout, target, destination)) for _ in range(num_targets)]
    if kind == "look_at_obj_in_light":
        things.append((LAMP, draw_place(rng, layout, LAMP)))
    others = [name for name, item in OBJECTS.items() if layout.room in item.rooms and name != target]
    counts = {name: 0 for name in others} | {LAMP: MAX_COPIES - 1}
    for _ in range(rng.randint(*NUM_OBJECTS[size]) - len(things)):
        name = rng.choice(others)
        place = draw_place(rng, layout, name)
        if place is not None and counts[name] < MAX_COPIES:
            counts[name] += 1
            things.append((name, place))
    rng.shuffle(things)
    starts = tuple(place for _, place in things if place is not None)
    return Game(layout, tuple(name for name, _ in things), starts, Goal(kind, target, destination, sentence))


def bucket(game: Game) -> int:
    """Which tenth of all games a game is in, by the hash of its signature; the same in every process."""
    return hashlib.blake2b(repr(game.signature).encode(), digest_size=8).digest()[0] % 10


@lru_cache(maxsize=4096)
def make_game(size: str, split: str, seed: int, index: int, kind: str) -> Game:
    """The game of a task: drawn until it belongs to the split and the expert wins it within `MAX_EXPERT_STEPS`."""
    rng = random.Random(f"household/{size}/{split}/{seed}/{index}/{kind}")
    while True:
        game = draw_game(rng, size, SPLITS[split].layouts, kind)
        num_objects = len(game.object_types)
        if num_objects < NUM_OBJECTS[size][0] or bucket(game) not in SPLITS[split].buckets:
            continue
        if solve(game, limit=MAX_EXPERT_STEPS) is not None:
            return game
