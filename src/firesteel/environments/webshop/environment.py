"""WebShop as a firesteel environment: its own engine in Python, which forks natively."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from firesteel.environments.base import Environment
from firesteel.environments.webshop.catalogue import Catalogue, Goal, load_folder
from firesteel.environments.webshop.engine import DONE, Shop, State, act, admissible_actions
from firesteel.environments.webshop.expert import next_step
from firesteel.environments.webshop.generate import NUM_PRODUCTS, generate_catalogue
from firesteel.environments.webshop.pages import compact_page, rich_page
from firesteel.environments.webshop.reward import Nouns, Purchase, nouns_of, purchase_reward
from firesteel.environments.webshop.search import SearchIndex
from firesteel.errors import ConfigError, EnvironmentFailed, TaskError
from firesteel.plugins import nearest
from firesteel.types import ExpertStep, Observation, StepResult, Task

PAGES = {"rich": rich_page, "compact": compact_page}

_OPTIONS = (
    "path", "num_products", "catalogue_seed", "pages", "page_size", "show_attributes", "admissible",
)  # fmt: skip
_FEWEST_PRODUCTS = 100


class WebShop(Environment):
    """Buying what an instruction asks for (Yao et al., 2022): `search[words]` and `click[what the page shows]`.

    Options:
        path: a folder with WebShop's three files; None for a generated shop in the same schema.
        num_products: the first so many rows of the files (None: all), or so many generated products (None: 1,200).
        catalogue_seed: decides the generated products and goals.
        pages: "rich" writes every button as the original's "text_rich" does, "compact" is for small models.
        page_size: products on a result page; the original has 10.
        show_attributes: whether item pages have the sub-page "attributes".
        admissible: whether observations list the clicks of the page, and on the search page some searches.

    The reward of "buy now", which ends the episode, is that of the paper, from 0 to 1 (`purchase_reward`); every other
    reward is 0, and so is `score` until then. Success is a reward of 1. There is no step limit, and nothing is random
    after `tasks`: `reset`'s seed changes nothing.

    Differs from the original: the instruction is in `goal` alone; "next >" is there only if there is another page; a
    search cannot ask for random products or lists by category; and what `load_folder` and `SearchIndex` name.
    """

    fork_rung: ClassVar[str] = "native"

    def __init__(
        self,
        *,
        path: str | None = None,
        num_products: int | None = None,
        catalogue_seed: int = 0,
        pages: str = "rich",
        page_size: int = 10,
        show_attributes: bool = False,
        admissible: bool = True,
    ) -> None:
        if pages not in PAGES:
            raise ConfigError(f"webshop: pages must be {' or '.join(map(repr, PAGES))}, not {pages!r}")
        catalogue, index, self._nouns = open_catalogue(path, num_products, catalogue_seed)
        size = _whole("page_size", page_size, 1)
        self._shop = Shop(catalogue, index, size, show_attributes)
        self._render = PAGES[pages]
        self._admissible = admissible
        self._goal: Goal | None = None
        self._state = State()
        self._purchase: Purchase | None = None

    @classmethod
    def tasks(cls, split: str, *, count: int | None = None, seed: int = 0, **options: object) -> Sequence[Task]:
        """The goals of a split: "train", "validation" or "test", and of a generated shop also "l1" and "l2".

        Without `count`, all in the shop's own order (for files that of seed 233); with it, at most `count`, shuffled
        by `seed`. "test" of files are the first 500 goals, "validation" the next 1,000. Of a generated shop, "test" has
        other products of the types of "train", "l1" types of product that are in no other split, and "l2" such a
        category. A task's kind is its product's category. `options` are the constructor's.
        """
        for name in options:
            if name not in _OPTIONS:
                hint = nearest(name, _OPTIONS)
                raise ConfigError(f"webshop has no option '{name}'{hint}; known: {', '.join(_OPTIONS)}")
        known = ("path", "num_products", "catalogue_seed")
        given: dict[str, Any] = {"path": None, "num_products": None, "catalogue_seed": 0}
        given |= {name: options[name] for name in known if name in options}
        catalogue, _, _ = open_catalogue(**given)
        if split not in catalogue.splits:
            hint, names = nearest(split, catalogue.splits), ", ".join(catalogue.splits)
            raise TaskError(f"webshop has no split '{split}'{hint}; known: {names}")
        return [_task(catalogue, split, number) for number in _select(catalogue, split, count, seed)]

    def reset(self, task: Task, *, seed: int) -> Observation:
        """Opens the search page; the same task always starts the same way, whatever `seed` is."""
        del seed
        self._goal = _goal_of(task, self._shop.catalogue)
        self._state, self._purchase = State(), None
        self.goal = self._goal.instruction
        return self._observe(self._goal)

    def step(self, action: str) -> StepResult:
        """Plays one action; one that means nothing on the page shows the page again."""
        goal = self._running()
        state = act(self._shop, self._state, action)
        if state is None:
            return StepResult(self._observe(goal), info={"success": False, "score": 0.0, "valid": False})
        self._state = state
        if state.page != DONE:
            return StepResult(self._observe(goal), info={"success": False, "score": 0.0, "valid": True})
        product, chosen = self._shop.product(state), [value for _, value in state.chosen]
        self._purchase = purchase_reward(product, goal, chosen, self._nouns)
        score = self._purchase.total
        return StepResult(
            observation=Observation(f"You bought {product.asin.lower()}. Score {score:.2f}."),
            reward=score,
            terminated=True,
            info={"success": score == 1.0, "score": score, "valid": True},
        )

    def fork(self) -> WebShop:
        """A copy in the same state, which is a value; the shop is shared."""
        twin: WebShop = WebShop.__new__(WebShop)
        twin.__dict__.update(self.__dict__)
        return twin

    def expert(self) -> ExpertStep | None:
        """The expert's next step from the pages shown since `reset`.

        None after the purchase. With files also where no search leads to a product that is seen to fit.
        """
        return None if self._state.page == DONE else next_step(self._shop, self._running(), self._state)

    @property
    def purchase(self) -> Purchase | None:
        """What was earned and why; None before the purchase."""
        return self._purchase

    def _observe(self, goal: Goal) -> Observation:
        actions = admissible_actions(self._shop, self._state, goal) if self._admissible else None
        return Observation(self._render(self._shop, self._state), actions)

    def _running(self) -> Goal:
        if self._goal is None:
            raise EnvironmentFailed("webshop was used before its first reset; call reset(task, seed=...) first")
        if self._state.page == DONE:
            raise EnvironmentFailed("webshop was stepped after the purchase, which ends the episode; call reset first")
        return self._goal


@lru_cache(maxsize=4)
def open_catalogue(
    path: str | None, num_products: int | None, catalogue_seed: int
) -> tuple[Catalogue, SearchIndex, Nouns]:
    """A catalogue with its search index and its nouns; opened once in a process and shared."""
    if path is None:
        fewest = _whole("num_products", NUM_PRODUCTS if num_products is None else num_products, _FEWEST_PRODUCTS)
        catalogue = generate_catalogue(fewest, _whole("catalogue_seed", catalogue_seed, 0))
    else:
        catalogue = load_folder(path, None if num_products is None else _whole("num_products", num_products, 1))
    return catalogue, SearchIndex([product.text for product in catalogue.products]), nouns_of(catalogue)


def _whole(option: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"webshop: {option} must be a whole number of at least {least}, not {value!r}")
    return value


def _select(catalogue: Catalogue, split: str, count: int | None, seed: int) -> list[int]:
    """The goals' numbers of a split in order, or a draw of `count`; a split without goals is refused."""
    numbers = list(catalogue.splits[split])
    if not numbers:
        raise TaskError(
            f"webshop: '{catalogue.name}' has {len(catalogue.goals)} goals, none of them in split '{split}'; "
            "use more products"
        )
    if count is None:
        return numbers
    if count < 0:
        raise TaskError(f"webshop split '{split}': count must be at least 0, not {count}")
    random.Random(f"webshop/{split}/{seed}").shuffle(numbers)
    return numbers[:count]


def _task(catalogue: Catalogue, split: str, number: int) -> Task:
    goal = catalogue.goals[number]
    return Task(
        id=f"webshop-{split}-{number}",
        kind=goal.category,
        split=split,
        data={"catalogue": catalogue.name, "number": number},
    )


def _goal_of(task: Task, catalogue: Catalogue) -> Goal:
    name, number = task.data.get("catalogue"), task.data.get("number")
    if name != catalogue.name or not isinstance(number, int) or not 0 <= number < len(catalogue.goals):
        raise TaskError(
            f"task '{task.id}' is of catalogue {name!r} with number {number!r}, this WebShop's is '{catalogue.name}' "
            f"with {len(catalogue.goals)} goals; give the same options to WebShop and to tasks"
        )
    return catalogue.goals[number]
