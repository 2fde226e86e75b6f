"""What the generated shop sells: categories, types of products, attributes, option values, brands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of product, such as "a kettle", with its lowest and highest price in whole dollars."""

    phrase: str
    section: str
    prices: tuple[int, int]
    groups: tuple[str, ...]

    @property
    def noun(self) -> str:
        """The type without its article."""
        return self.phrase.removeprefix("a ").removeprefix("an ")


@dataclass(frozen=True, slots=True)
class Category:
    """Types of products that share attributes. The attributes complete "it is ..."."""

    kinds: tuple[Kind, ...]
    attributes: tuple[str, ...]


OPTIONS: dict[str, tuple[str, ...]] = {
    "color": ("red", "blue", "green", "black", "white", "yellow", "purple", "brown"),
    "size": ("small", "medium", "large"),
    "finish": ("matte", "glossy", "brushed"),
    "scent": ("vanilla", "citrus", "cedar", "unscented"),
    "pack": ("single", "pair", "set of six"),
}
"""Values of one goal never match others by the reward's fuzzy comparison; a test holds that."""

BRANDS = (
    "Norvale", "Pellan", "Ostrey", "Quimby", "Tarrow", "Velmo", "Kestrin", "Ludwen", "Marisk", "Bexley", "Corvane",
    "Dunmere", "Elsby", "Farrin", "Grendal", "Halvor",
)  # fmt: skip


def _category(section_of: dict[str, tuple[Kind, ...]], *attributes: str) -> Category:
    return Category(tuple(kind for kinds in section_of.values() for kind in kinds), attributes)


def _kinds(section: str, *rows: tuple[str, int, int, str]) -> dict[str, tuple[Kind, ...]]:
    kinds = (Kind(phrase, section, (low, high), tuple(groups.split())) for phrase, low, high, groups in rows)
    return {section: tuple(kinds)}


CATEGORIES: dict[str, Category] = {
    "kitchen": _category(
        _kinds(
            "Cooking",
            ("a kettle", 15, 75, "color finish"),
            ("a skillet", 18, 90, "size"),
            ("a teapot", 12, 60, "color"),
            ("a colander", 8, 40, "color size"),
        )
        | _kinds(
            "Dining",
            ("an apron", 9, 45, "color size"),
            ("a ladle", 5, 30, "finish pack"),
            ("a tray", 10, 55, "finish"),
            ("a mug", 6, 35, "color pack"),
        ),
        "dishwasher safe", "non stick", "easy to clean", "heat resistant", "bpa free", "scratch proof",
        "quick heating", "space saving",
    ),
    "outdoor": _category(
        _kinds(
            "Gardening",
            ("a trowel", 6, 35, "color"),
            ("a planter", 10, 60, "color size"),
            ("a hose", 15, 80, "color"),
            ("a rake", 12, 50, "finish"),
        )
        | _kinds(
            "Patio",
            ("a lantern", 10, 70, "finish pack"),
            ("a birdhouse", 12, 65, "color"),
            ("a hammock", 25, 120, "color size"),
            ("a parasol", 30, 140, "color"),
        ),
        "frost resistant", "solar powered", "easy to assemble", "hand made", "rot proof", "child friendly",
        "quick drying", "stackable",
    ),
    "clothing": _category(
        _kinds(
            "Warm wear",
            ("a scarf", 8, 50, "color"),
            ("a cardigan", 20, 110, "color size"),
            ("a beanie", 7, 35, "color"),
            ("mittens", 8, 40, "color size"),
        )
        | _kinds(
            "Every day",
            ("a raincoat", 25, 130, "color size"),
            ("a belt", 10, 60, "finish size"),
            ("slippers", 12, 55, "color size"),
            ("a vest", 15, 80, "color size"),
        ),
        "machine washable", "wind proof", "water repellent", "breathable", "wrinkle free", "hand knitted",
        "fleece lined", "stretchy",
    ),
    "electronics": _category(
        _kinds(
            "Sound and picture",
            ("headphones", 20, 160, "color"),
            ("a loudspeaker", 25, 180, "color finish"),
            ("a webcam", 18, 95, "finish"),
            ("a tripod", 15, 85, "size"),
        )
        | _kinds(
            "Desk",
            ("a keyboard", 20, 130, "color"),
            ("a charger", 8, 50, "color pack"),
            ("a flashlight", 7, 45, "color pack"),
            ("a router", 30, 170, "finish"),
        ),
        "noise cancelling", "fast charging", "wireless", "foldable", "energy saving", "plug and play", "shock proof",
        "long range",
    ),
    "beauty": _category(
        _kinds(
            "Bath",
            ("shampoo", 5, 40, "scent pack"),
            ("soap", 4, 25, "scent pack"),
            ("lotion", 6, 45, "scent"),
            ("a sponge", 4, 20, "color pack"),
        )
        | _kinds(
            "Make-up",
            ("a lipstick", 6, 35, "color finish"),
            ("a perfume", 20, 150, "scent"),
            ("a mascara", 7, 40, "color"),
            ("a hairbrush", 8, 45, "color size"),
        ),
        "fragrance free", "cruelty free", "paraben free", "plant based", "fast absorbing", "long lasting",
        "travel sized", "hypoallergenic",
    ),
    "music": _category(
        _kinds(
            "Strings",
            ("a guitar", 60, 300, "color finish"),
            ("a ukulele", 30, 140, "color"),
            ("a violin", 80, 350, "size"),
            ("a harp", 90, 400, "finish"),
        )
        | _kinds(
            "Wind and rhythm",
            ("a flute", 30, 160, "finish"),
            ("a drum", 25, 180, "color size"),
            ("a tambourine", 10, 50, "color"),
            ("a harmonica", 12, 70, "finish"),
        ),
        "beginner friendly", "left handed", "rich toned", "hand carved", "easy to tune", "scratch resistant",
        "stage ready", "low maintenance",
    ),
}  # fmt: skip

UNSEEN_KINDS = ("mug", "parasol", "vest", "router", "hairbrush")
"""Types of split "l1", one of each category that training sees."""
UNSEEN_CATEGORY = "music"
"""The category of split "l2"."""
