"""The household's expert: what to do next, from what the agent has been shown.

It is a function of the world, recomputed at every call, so it works after random actions and in forks. It reads
the contents of a receptacle only where `World.seen` says that the agent has been shown them, and beyond that knows
only the vocabulary: what is usually kept where, what opens, which appliance does what.
"""

from __future__ import annotations

from firesteel.environments.household.vocabulary import APPLIANCES, LAMP, OBJECTS
from firesteel.environments.household.world import MIDDLE, Game, World
from firesteel.types import ExpertStep


def next_step(world: World) -> ExpertStep | None:
    """The expert's next step, or None when the goal is reached."""
    if world.progress() == 1.0:
        return None
    goal = world.game.goal
    if world.holding is None:
        return _fetch(world)
    if world.holding not in world.game.targets:
        return _put_down(world)
    if goal.kind == "look_at_obj_in_light":
        return _light(world)
    if not world.is_treated(world.holding):
        return _treat(world, goal.treatment)
    return _place(world)


def solve(game: Game, *, limit: int) -> list[ExpertStep] | None:
    """The expert's whole episode, or None if it takes more than `limit` steps."""
    world = World(game)
    steps: list[ExpertStep] = []
    while (step := next_step(world)) is not None:
        if len(steps) == limit:
            return None
        world.act(step.action)
        steps.append(step)
    return steps


def _fetch(world: World) -> ExpertStep:
    """With empty hands: take a target that was seen, or search for one."""
    game = world.game
    done_at = best_destination(world) if game.goal.kind == "pick_two_obj_and_place" else None
    known = [t for t in game.targets if world.where[t] in world.seen and world.where[t] != done_at]
    if not known:
        return _search(world, game.goal.object_type)
    target = min(known, key=lambda t: (not world.is_treated(t), world.where[t] != world.place, t))
    name, place = game.names[target], world.where[target]
    is_here = place == world.place
    reason = f"the {name} is here" if is_here else f"the {game.goal.object_type} is not here"
    return _reach(world, place, f"take {name} from {game.layout.names[place]}", reason)


def _light(world: World) -> ExpertStep:
    """With the target in hand: turn on a lamp, or go back to one that is on."""
    game = world.game
    lamps = [t for t, name in enumerate(game.object_types) if name == LAMP and world.where[t] in world.seen]
    if not lamps:
        return _search(world, LAMP)
    lamp = min(lamps, key=lambda t: (world.where[t] != world.place, t not in world.toggled, t))
    return _reach(world, world.where[lamp], f"use {game.names[lamp]}", f"use {LAMP}")


def _treat(world: World, verb: str) -> ExpertStep:
    """With an untreated target in hand: use the appliance. The nearest idea of near is the current place."""
    layout = world.game.layout
    places = [place for place, name in enumerate(layout.types) if name == APPLIANCES[verb]]
    place = world.place if world.place in places else places[0]
    reason = f"{verb} {world.game.goal.object_type}"
    if world.place != place:
        return ExpertStep(f"go to {layout.names[place]}", False, reason)
    assert world.holding is not None
    return ExpertStep(f"{verb} {world.game.names[world.holding]} with {layout.names[place]}", False, reason)


def _place(world: World) -> ExpertStep:
    """With a finished target in hand: put it into the best destination."""
    place = best_destination(world)
    assert world.holding is not None
    move = f"move {world.game.names[world.holding]} to {world.game.layout.names[place]}"
    return _reach(world, place, move, f"place {world.game.goal.object_type} in {world.game.goal.destination}")


def _put_down(world: World) -> ExpertStep:
    """With something else in hand: put it where it fits, here if possible."""
    game, thing = world.game, world.holding
    assert thing is not None
    places = [place for place, is_fit in enumerate(game.fits[thing]) if is_fit]
    place = min(places, key=lambda p: (p != world.place, not world.is_accessible(p), p))
    move = f"move {game.names[thing]} to {game.layout.names[place]}"
    return _reach(world, place, move, f"put {game.object_types[thing]} away")


def best_destination(world: World) -> int:
    """Of the receptacles asked for: the one with most targets seen in it, else here, else an open one.

    Where one holds a target already, the choice must not depend on the agent's place, or two targets in two
    receptacles would send the agent back and forth.
    """
    where = [world.where[target] for target in world.game.targets if world.where[target] in world.seen]

    def preference(place: int) -> tuple[int, bool, bool, int]:
        if place in where:
            return (-where.count(place), False, False, place)
        return (0, place != world.place, not world.is_accessible(place), place)

    return min(world.game.destinations, key=preference)


def _reach(world: World, place: int, action: str, reason: str) -> ExpertStep:
    """Plays `action` at a receptacle, after going there and opening it where that is needed."""
    name = world.game.layout.names[place]
    if world.place != place:
        return ExpertStep(f"go to {name}", False, reason)
    if not world.is_accessible(place):
        return ExpertStep(f"open {name}", False, reason)
    return ExpertStep(action, False, reason)


def _search(world: World, object_type: str) -> ExpertStep:
    """Looks into the likeliest receptacle that has not been looked into.

    Usual places come before others, then the kind of the current place before the rest (cabinet 2 after cabinet 1),
    then kinds with few members.

    `explore` is True where the decision is open: a kind of receptacle is newly chosen (going on from cabinet 1 to
    cabinet 2 is not), and either several kinds are equally likely, or every usual place was looked into in vain.
    """
    layout, types, here = world.game.layout, world.game.layout.types, world.place
    tiers = [rank(object_type, name) for name in types]
    if here != MIDDLE and here not in world.seen and tiers[here] < 2:
        return ExpertStep(f"open {layout.names[here]}", False, f"look for {object_type}")
    unseen = [place for place in range(len(types)) if place not in world.seen]
    kind_here = "" if here == MIDDLE else types[here]
    place = min(unseen, key=lambda p: (tiers[p], types[p] != kind_here, types.count(types[p]), p))
    rivals = {types[p] for p in unseen if tiers[p] == tiers[place]}
    is_open = types[place] != kind_here and (len(rivals) > 1 or tiers[place] > 0)
    has_found_here = any(world.game.object_types[thing] == object_type for thing in world.contents(here))
    is_start = here == MIDDLE or has_found_here
    reason = f"find {object_type}" if is_start else f"the {object_type} is not here"
    return ExpertStep(f"go to {layout.names[place]}", is_open, reason)


def rank(object_type: str, receptacle_type: str) -> int:
    """0 where an object is usually found, 1 where sometimes, 2 elsewhere."""
    item = OBJECTS[object_type]
    return 0 if receptacle_type in item.usual else 1 if receptacle_type in item.sometimes else 2
