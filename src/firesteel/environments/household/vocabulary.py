"""The tables of the household: rooms, receptacles, objects, and which object is found where.

Names are written as the agent reads them: lower case, one word. Two facts hold for every object:
it starts in a receptacle of its `usual` or `sometimes` types, and it may be put into any of its `fits`.
"""

from __future__ import annotations

from dataclasses import dataclass

KINDS = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""The six task types, under their ALFWorld names."""

LAMP = "desklamp"

OPENABLE = frozenset({"cabinet", "drawer", "fridge", "microwave", "safe"})

APPLIANCES = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
"""The treatment verb and the receptacle type that it needs."""

TREATMENTS = {
    "pick_clean_then_place_in_recep": "clean",
    "pick_heat_then_place_in_recep": "heat",
    "pick_cool_then_place_in_recep": "cool",
}
"""The treatment that a task type asks for; the other types ask for none."""

GOAL_SENTENCES = {
    "pick_and_place_simple": ("put a {object} in {receptacle}.", "put some {object} on {receptacle}."),
    "look_at_obj_in_light": ("look at {object} under the desklamp.", "examine the {object} with the desklamp."),
    "pick_clean_then_place_in_recep": (
        "put a clean {object} in {receptacle}.",
        "clean some {object} and put it in {receptacle}.",
    ),
    "pick_heat_then_place_in_recep": (
        "put a hot {object} in {receptacle}.",
        "heat some {object} and put it in {receptacle}.",
    ),
    "pick_cool_then_place_in_recep": (
        "put a cool {object} in {receptacle}.",
        "cool some {object} and put it in {receptacle}.",
    ),
    "pick_two_obj_and_place": (
        "put two {object} in {receptacle}.",
        "find two {object} and put them in {receptacle}.",
    ),
}

ROOMS: dict[str, dict[str, dict[str, tuple[int, int]]]] = {
    "full": {
        "kitchen": {
            "cabinet": (3, 9),
            "coffeemachine": (1, 1),
            "countertop": (1, 3),
            "diningtable": (0, 2),
            "drawer": (2, 7),
            "fridge": (1, 1),
            "garbagecan": (1, 1),
            "microwave": (1, 1),
            "shelf": (0, 3),
            "sinkbasin": (1, 1),
            "stoveburner": (2, 4),
            "toaster": (0, 1),
        },
        "livingroom": {
            "armchair": (1, 3),
            "cabinet": (0, 4),
            "coffeetable": (1, 2),
            "diningtable": (0, 1),
            "drawer": (1, 6),
            "dresser": (0, 1),
            "garbagecan": (1, 1),
            "shelf": (1, 6),
            "sidetable": (1, 4),
            "sofa": (1, 2),
            "tvstand": (0, 1),
        },
        "bedroom": {
            "armchair": (0, 1),
            "bed": (1, 2),
            "desk": (1, 2),
            "drawer": (3, 8),
            "dresser": (0, 2),
            "garbagecan": (1, 1),
            "laundryhamper": (0, 1),
            "safe": (0, 1),
            "shelf": (1, 6),
            "sidetable": (1, 2),
        },
        "bathroom": {
            "bathtubbasin": (0, 1),
            "cabinet": (2, 7),
            "countertop": (1, 2),
            "drawer": (0, 4),
            "garbagecan": (1, 1),
            "handtowelholder": (1, 2),
            "shelf": (0, 3),
            "sinkbasin": (1, 2),
            "toilet": (1, 1),
            "toiletpaperhanger": (1, 1),
            "towelholder": (1, 2),
        },
    },
    "small": {
        "kitchen": {
            "cabinet": (1, 2),
            "countertop": (1, 1),
            "diningtable": (0, 1),
            "drawer": (0, 2),
            "fridge": (1, 1),
            "garbagecan": (0, 1),
            "microwave": (1, 1),
            "shelf": (0, 2),
            "sinkbasin": (1, 1),
            "stoveburner": (0, 1),
        },
        "livingroom": {
            "armchair": (0, 2),
            "coffeetable": (1, 1),
            "drawer": (0, 2),
            "garbagecan": (0, 1),
            "shelf": (0, 3),
            "sidetable": (1, 2),
            "sofa": (1, 1),
            "tvstand": (0, 1),
        },
        "bedroom": {
            "bed": (1, 1),
            "desk": (1, 2),
            "drawer": (1, 3),
            "dresser": (0, 1),
            "garbagecan": (0, 1),
            "safe": (0, 1),
            "shelf": (0, 2),
            "sidetable": (0, 2),
        },
        "bathroom": {
            "bathtubbasin": (0, 1),
            "cabinet": (1, 3),
            "countertop": (1, 1),
            "garbagecan": (0, 1),
            "shelf": (0, 2),
            "sinkbasin": (1, 2),
            "toilet": (1, 1),
            "towelholder": (0, 1),
        },
    },
}
"""Size, then room, then receptacle type: the fewest and the most of that type."""

NUM_RECEPTACLES = {"full": (12, 30), "small": (6, 10)}
NUM_OBJECTS = {"full": (15, 40), "small": (6, 12)}


@dataclass(frozen=True, slots=True)
class Item:
    """An object type. `fits` holds every receptacle type that it may be put into, where it starts included."""

    rooms: frozenset[str]
    usual: frozenset[str]
    sometimes: frozenset[str]
    fits: frozenset[str]
    treatments: frozenset[str]


def _item(rooms: str, usual: str, sometimes: str = "", also_fits: str = "", treatments: str = "") -> Item:
    """Reads one row of the table; every column is a list of words."""
    starts = f"{usual} {sometimes}"
    return Item(
        rooms=frozenset(rooms.split()),
        usual=frozenset(usual.split()),
        sometimes=frozenset(sometimes.split()),
        fits=frozenset(f"{starts} {also_fits}".split()),
        treatments=frozenset(treatments.split()),
    )


_FOOD_FITS = "sinkbasin garbagecan microwave sidetable"
_CUTLERY = ("kitchen", "drawer countertop", "diningtable sinkbasin", "", "clean")
_PAPER_FITS = "drawer cabinet dresser tvstand armchair bed sofa"

OBJECTS: dict[str, Item] = {
    # Food.
    "apple": _item("kitchen", "countertop fridge", "diningtable sinkbasin", _FOOD_FITS, "clean heat cool"),
    "bread": _item("kitchen", "countertop", "diningtable fridge", "microwave garbagecan", "heat cool"),
    "egg": _item("kitchen", "fridge", "countertop sinkbasin", _FOOD_FITS, "clean heat cool"),
    "lettuce": _item("kitchen", "fridge countertop", "diningtable sinkbasin", "garbagecan", "clean cool"),
    "potato": _item("kitchen", "fridge countertop", "sinkbasin diningtable", _FOOD_FITS, "clean heat cool"),
    "tomato": _item("kitchen", "fridge countertop", "sinkbasin diningtable", _FOOD_FITS, "clean heat cool"),
    # Dishes.
    "bowl": _item("kitchen", "cabinet shelf", "countertop diningtable", "fridge sinkbasin microwave", "clean cool"),
    "cup": _item("kitchen", "cabinet countertop", "shelf sinkbasin", "fridge microwave diningtable", "clean heat cool"),
    "mug": _item(
        "kitchen bedroom",
        "cabinet countertop desk coffeemachine",
        "shelf sinkbasin sidetable",
        "drawer fridge microwave diningtable dresser",
        "clean heat cool",
    ),
    "plate": _item(
        "kitchen", "cabinet shelf", "countertop diningtable sinkbasin", "fridge microwave", "clean heat cool"
    ),
    "glassbottle": _item("kitchen", "shelf countertop", "cabinet garbagecan", "fridge diningtable"),
    "winebottle": _item("kitchen", "cabinet fridge", "countertop", "diningtable shelf garbagecan", "cool"),
    # Cooking.
    "butterknife": _item(*_CUTLERY),
    "fork": _item(*_CUTLERY),
    "knife": _item(*_CUTLERY),
    "spoon": _item(*_CUTLERY),
    "ladle": _item("kitchen", "drawer countertop", "sinkbasin", "cabinet diningtable", "clean"),
    "spatula": _item("kitchen", "drawer countertop", "sinkbasin", "diningtable", "clean"),
    "kettle": _item("kitchen", "stoveburner countertop", "cabinet", "shelf sinkbasin diningtable", "clean"),
    "pan": _item("kitchen", "stoveburner", "countertop cabinet", "fridge sinkbasin diningtable", "clean cool"),
    "pot": _item("kitchen", "stoveburner cabinet", "countertop shelf", "fridge sinkbasin diningtable", "clean cool"),
    "peppershaker": _item("kitchen", "cabinet countertop", "drawer shelf", "diningtable"),
    "saltshaker": _item("kitchen", "cabinet countertop", "drawer shelf", "diningtable"),
    # Cleaning and bathing.
    "dishsponge": _item("kitchen", "sinkbasin countertop", "drawer", "cabinet shelf garbagecan", "clean"),
    "soapbottle": _item(
        "kitchen bathroom", "countertop cabinet", "sinkbasin toilet garbagecan", "drawer shelf bathtubbasin"
    ),
    "candle": _item("bathroom", "countertop toilet", "cabinet shelf", "drawer bathtubbasin"),
    "cloth": _item(
        "bathroom",
        "cabinet countertop",
        "bathtubbasin sinkbasin",
        "drawer shelf toilet garbagecan laundryhamper",
        "clean",
    ),
    "handtowel": _item("bathroom", "handtowelholder countertop", "cabinet", "sinkbasin garbagecan shelf"),
    "soapbar": _item(
        "bathroom", "sinkbasin bathtubbasin", "countertop toilet", "cabinet drawer shelf garbagecan", "clean"
    ),
    "spraybottle": _item("bathroom", "cabinet toilet", "countertop shelf", "drawer garbagecan"),
    "tissuebox": _item(
        "bathroom livingroom", "countertop coffeetable sidetable", "toilet shelf", "cabinet drawer sofa"
    ),
    "toiletpaper": _item(
        "bathroom", "cabinet toilet toiletpaperhanger", "countertop garbagecan", "drawer shelf bathtubbasin"
    ),
    "towel": _item("bathroom", "towelholder", "bathtubbasin countertop cabinet", "shelf laundryhamper"),
    # Living and sleeping.
    "alarmclock": _item("bedroom", "desk sidetable", "dresser shelf", "drawer bed"),
    "baseballbat": _item("bedroom", "bed", "desk sidetable dresser", "armchair"),
    "basketball": _item("bedroom", "bed armchair", "laundryhamper dresser", "desk"),
    "book": _item("bedroom livingroom", "bed desk sofa coffeetable", "shelf sidetable", _PAPER_FITS),
    "box": _item("livingroom", "sofa coffeetable", "armchair sidetable diningtable", "dresser shelf tvstand cabinet"),
    "cd": _item("bedroom", "desk drawer", "shelf dresser", "bed garbagecan safe sidetable"),
    "cellphone": _item("bedroom", "desk bed", "drawer sidetable dresser", "safe shelf armchair"),
    "creditcard": _item(
        "bedroom livingroom", "desk drawer coffeetable", "shelf sidetable armchair", "dresser safe sofa tvstand cabinet"
    ),
    "keychain": _item(
        "bedroom livingroom", "drawer safe sofa", "shelf sidetable desk coffeetable", "dresser armchair tvstand"
    ),
    "laptop": _item("bedroom livingroom", "desk bed sofa coffeetable", "armchair sidetable", "dresser diningtable"),
    "newspaper": _item("livingroom", "coffeetable sofa", "armchair sidetable garbagecan", _PAPER_FITS),
    "pen": _item("bedroom", "desk drawer", "shelf sidetable", "dresser garbagecan bed safe"),
    "pencil": _item("bedroom", "desk drawer", "shelf sidetable", "dresser garbagecan bed safe"),
    "pillow": _item("bedroom livingroom", "bed sofa", "armchair", ""),
    "remotecontrol": _item(
        "livingroom", "sofa armchair tvstand", "coffeetable sidetable", "drawer shelf dresser garbagecan cabinet"
    ),
    "statue": _item("livingroom", "shelf sidetable", "coffeetable tvstand dresser", "cabinet diningtable"),
    "vase": _item("livingroom", "shelf sidetable", "coffeetable diningtable", "cabinet dresser tvstand"),
    "watch": _item(
        "bedroom livingroom", "drawer dresser sidetable coffeetable", "shelf safe tvstand", "sofa desk armchair"
    ),
    "wateringcan": _item("livingroom", "sidetable shelf", "coffeetable", "cabinet diningtable"),
    LAMP: _item("bedroom livingroom", "desk sidetable", "dresser shelf", ""),
}
