"""The shop: pages and clicks by hand, search, the environment, the expert, forks, the generated catalogue."""

from __future__ import annotations

import collections
import math
import random
import sys

import pytest
from webshop_rows import make_goal, product_row

from firesteel.environments import environment_class
from firesteel.environments.check import check_environment
from firesteel.environments.webshop import WebShop
from firesteel.environments.webshop.catalogue import Catalogue, read_products
from firesteel.environments.webshop.engine import (
    Shop,
    State,
    act,
    admissible_actions,
    clickable,
    suggested_searches,
)
from firesteel.environments.webshop.environment import open_catalogue
from firesteel.environments.webshop.expert import next_step
from firesteel.environments.webshop.generate import SPLITS, generate_catalogue, make_rows
from firesteel.environments.webshop.pages import compact_page, rich_page
from firesteel.environments.webshop.reward import _rapidfuzz
from firesteel.environments.webshop.search import SearchIndex
from firesteel.environments.webshop.vocabulary import CATEGORIES, UNSEEN_CATEGORY, UNSEEN_KINDS
from firesteel.errors import ConfigError, EnvironmentFailed, MissingDependency, TaskError
from firesteel.types import ExpertStep, Task

SMALL = {"num_products": 144}
KETTLES = ("B01", "B02", "B03")


def shop_of(rows: list[dict], **options: object) -> Shop:
    products = tuple(read_products(rows, {}, []))
    return Shop(Catalogue("test", products, (), {}), SearchIndex([product.text for product in products]), **options)


@pytest.fixture(scope="module")
def shop() -> Shop:
    """Three kettles and a rug, two results a page."""
    rows = [product_row(asin, name=f"Acme kettle {number}") for number, asin in enumerate(KETTLES)]
    return shop_of([*rows, product_row("B04", name="A rug", full_description="Soft.")], page_size=2)


def play(shop: Shop, *actions: str) -> State:
    state = State()
    for action in actions:
        following = act(shop, state, action)
        assert following is not None, action
        state = following
    return state


# Pages and clicks


def test_the_way_to_a_purchase(shop: Shop) -> None:
    state = play(shop, "search[kettle]")
    assert (state.page, state.results, shop.num_pages(state), shop.listed(state)) == ("results", (0, 1, 2), 2, (0, 1))
    assert clickable(shop, state) == ("back to search", "next >", "b01", "b02")
    state = play(shop, "search[kettle]", "click[next >]")
    assert clickable(shop, state) == ("back to search", "< prev", "b03")
    assert play(shop, "search[kettle]", "click[next >]", "click[< prev]").number == 1
    state = play(shop, "search[kettle]", "click[next >]", "click[b03]")
    assert clickable(shop, state) == (
        "back to search", "< prev", "red | blue", "green", "description", "features", "reviews", "buy now",
    )  # fmt: skip
    state = play(shop, "search[kettle]", "click[b02]", "click[green]", "click[red | blue]", "click[buy now]")
    assert (state.page, state.product, state.chosen) == ("done", 1, (("color", "red | blue"),))
    assert clickable(shop, state) == () and act(shop, state, "search[kettle]") is None


def test_a_sub_page_leads_back_to_its_item_and_keeps_the_options(shop: Shop) -> None:
    for page in ("description", "features", "reviews"):
        state = play(shop, "search[kettle]", "click[b02]", "click[green]", f"click[{page}]")
        assert (state.page, clickable(shop, state)) == (page, ("back to search", "< prev"))
        back = act(shop, state, "click[< prev]")
        assert back is not None and (back.page, back.product, back.chosen) == ("item", 1, (("color", "green"),))


def test_leaving_the_item_forgets_its_options_and_a_new_search_the_page(shop: Shop) -> None:
    state = play(shop, "search[kettle]", "click[next >]", "click[b03]", "click[green]", "click[< prev]")
    assert (state.page, state.number, state.chosen, state.product) == ("results", 2, (), -1)
    assert play(shop, "search[kettle]", "click[next >]", "search[rug]").number == 1
    # As in the original, a search is understood on every page.
    assert play(shop, "search[kettle]", "click[b01]", "click[green]", "search[rug]").results == (3,)


def test_opened_products_are_marked_until_the_return_to_the_search_page(shop: Shop) -> None:
    state = play(shop, "search[kettle]", "click[b02]", "click[< prev]")
    assert rich_page(shop, state).count("[clicked button] B02 [clicked button_]") == 1
    assert "[clicked button] B01" not in rich_page(shop, state)
    assert compact_page(shop, state).splitlines()[2] == "b02 acme kettle 1 $12 seen"
    state = play(shop, "search[kettle]", "click[b02]", "click[back to search]", "search[kettle]")
    assert "clicked" not in rich_page(shop, state)


@pytest.mark.parametrize(
    "action",
    ["", "kettle", "search", "search[]", "search[ ]", "click[]", "click[search]", "click[b01]", "click[buy now]",
     "buy now", "open[b01]", "search[kettle", "click[next >]"],
)  # fmt: skip
def test_what_means_nothing_on_the_search_page(shop: Shop, action: str) -> None:
    assert act(shop, State(), action) is None


@pytest.mark.parametrize("action", ["click[b03]", "click[b04]", "click[< prev]", "click[buy now]", "click[green]"])
def test_what_the_first_result_page_does_not_show(shop: Shop, action: str) -> None:
    assert act(shop, play(shop, "search[kettle]"), action) is None


def test_case_and_spaces_do_not_matter(shop: Shop) -> None:
    assert play(shop, " Search[Kettle]\n", "CLICK[ B01 ]").product == 0


def test_a_value_that_two_groups_have_goes_to_the_later_one() -> None:
    groups = {"Color": [{"value": "natural"}, {"value": "red"}], "Scent": [{"value": "natural"}]}
    one = shop_of([product_row("B01", customization_options=groups)])
    assert play(one, "search[kettle]", "click[b01]", "click[natural]").chosen == (("scent", "natural"),)
    assert clickable(one, play(one, "search[kettle]", "click[b01]")).count("natural") == 1


def test_a_search_without_results_has_one_empty_page(shop: Shop) -> None:
    state = play(shop, "search[piano]")
    assert clickable(shop, state) == ("back to search",)
    assert rich_page(shop, state) == "[button] Back to Search [button_]\nPage 1 of 1, 0 results"


def test_pages_by_hand(shop: Shop) -> None:
    assert rich_page(shop, State()) == "WebShop\n[button] Search [button_]"
    assert rich_page(shop, play(shop, "search[kettle]")) == (
        "[button] Back to Search [button_]\nPage 1 of 2, 3 results\n[button] Next > [button_]\n"
        "\n[button] B01 [button_]\nAcme kettle 0\n$12.0\n\n[button] B02 [button_]\nAcme kettle 1\n$12.0"
    )
    opened = play(shop, "search[kettle]", "click[b01]", "click[green]")
    assert rich_page(shop, opened) == (
        "[button] Back to Search [button_]\n[button] < Prev [button_]\ncolor\n  [button] red | blue [button_]\n"
        "  [clicked button] green [clicked button_]\nAcme kettle 0\nPrice: $12.0\n[button] Description [button_]\n"
        "[button] Features [button_]\n[button] Reviews [button_]\n[button] Buy Now [button_]"
    )
    assert compact_page(shop, State()) == "search"
    assert compact_page(shop, play(shop, "search[rug]")) == "page 1 of 1\nb04 a rug $12"
    assert compact_page(shop, opened) == "acme kettle 0 $12\ncolor is green"
    assert (
        compact_page(shop, play(shop, "search[kettle]", "click[b01]")) == "acme kettle 0 $12\ncolor: red | blue | green"
    )
    read = [play(shop, "search[kettle]", "click[b01]", f"click[{page}]") for page in ("description", "features")]
    assert [compact_page(shop, state) for state in read] == ["boils water.", "holds two cups.\ncomes in a box."]


def test_the_attributes_page_is_there_if_it_is_asked_for() -> None:
    one = shop_of([product_row("B01")], show_attributes=True)
    state = play(one, "search[kettle]", "click[b01]", "click[attributes]")
    assert compact_page(one, state).splitlines()[:3] == ["dummy_attr", "kitchen", "kettles"]


# Search


def test_search_ranks_by_bm25_of_stems_and_ties_by_order() -> None:
    index = SearchIndex(["a red kettle", "kettles and kettles", "the rug's size s", "red rugs"])
    assert index.top("Kettle", 50) == (1, 0)
    assert index.top("a rug", 50) == (3, 2) and index.top("a rug", 1) == (3,)
    assert index.top("s", 50) == (2,)
    assert index.top("the", 50) == index.top("piano", 50) == ()
    same = SearchIndex(["red kettle"] * 60)
    assert same.top("kettle", 50) == tuple(range(50))


def test_scores_by_hand() -> None:
    # Both of 2 texts have the word: ln(1 + 0.5 / 2.5). The mean length is 2.
    # 1 / (1 + 0.9 * (0.6 + 0.4 * 1 / 2)) = 1 / 1.72 and 1 / (1 + 0.9 * (0.6 + 0.4 * 3 / 2)) = 1 / 2.08.
    scores = SearchIndex(["kettle", "kettle rug rug"]).scores("the kettles")
    assert scores.tolist() == pytest.approx([math.log(1.2) / 1.72, math.log(1.2) / 2.08], rel=1e-6)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    with pytest.raises(MissingDependency, match=r"bm25s and PyStemmer .*; run pip install 'firesteel\[webshop\]'"):
        SearchIndex(["kettle"])
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    with pytest.raises(MissingDependency, match=r"rapidfuzz .*; run pip install 'firesteel\[webshop\]'"):
        _rapidfuzz.__wrapped__()


def test_search_suggestions_say_only_what_the_instruction_says() -> None:
    goal = make_goal(instruction="find a Quiet kettle", attributes=("quiet", "steel"), query="kettle")
    assert suggested_searches(goal) == ("quiet kettle", "kettle")
    assert suggested_searches(make_goal(instruction="Boil!", attributes=("quiet",), query="kettle")) == ("boil!",)


# The expert


def next_action(shop: Shop, state: State, **changes: object) -> ExpertStep | None:
    return next_step(shop, make_goal(query="kettle", **changes), state)


def test_the_expert_reads_before_it_says_what_is_missing() -> None:
    row = product_row("B01", small_description=["So.", "It is QUIET."], full_description="New.")
    one, goal = shop_of([row, product_row("B02", name="B kettle")]), {"options": ("green",)}
    taken = ["search[kettle]"]
    while (step := next_action(one, play(one, *taken), **goal)) is not None:
        taken.append(step.action)
    assert taken[1:] == [
        "click[b01]", "click[features]", "click[< prev]", "click[green]", "click[buy now]",
    ]  # fmt: skip
    opened = play(one, "search[kettle]", "click[b01]")
    # Either sub-page could say it: that is worth exploring. So is which of two kettles to open.
    assert next_action(one, opened) == ExpertStep("click[features]", True, "is it quiet")
    assert next_action(one, play(one, "search[kettle]")) == ExpertStep("click[b01]", True, "kettle for $12")


def test_the_expert_turns_away_from_what_does_not_fit() -> None:
    rows = [product_row("B01"), product_row("B02", pricing="$90.00"), product_row("B03")]
    one = shop_of(rows, page_size=2)
    opened = play(one, "search[kettle]", "click[b01]")
    assert next_action(one, opened, options=("pink",)) == ExpertStep("click[< prev]", False, "no pink here")
    seen = ["search[kettle]", "click[b01]", "click[features]", "click[< prev]", "click[description]", "click[< prev]"]
    assert next_action(one, play(one, *seen)) == ExpertStep("click[< prev]", False, "it is not quiet")
    seen.append("click[< prev]")
    # The other product of this page costs too much.
    assert next_action(one, play(one, *seen)) == ExpertStep("click[next >]", False, "none of these")
    seen += ["click[next >]", "click[b03]", *seen[2:]]
    assert next_action(one, play(one, *seen), instruction="a quiet kettle") is not None
    assert next_action(one, play(one, *seen), instruction="a kettle") is None


def test_the_expert_succeeds_after_random_play() -> None:
    environment, rng = WebShop(**SMALL, page_size=4), random.Random(2)
    for task in WebShop.tasks("train", count=50, seed=1, **SMALL):
        observation = environment.reset(task, seed=0)
        for _ in range(rng.randrange(1, 30)):
            listed = [action for action in observation.admissible or () if action != "click[buy now]"]
            observation = environment.step(rng.choice(listed)).observation
        while (step := environment.expert()) is not None:
            environment.step(step.action)
        assert environment.purchase is not None and environment.purchase.matched_attributes == 2, task.id


# The environment


def test_it_is_the_environment_of_that_name() -> None:
    assert environment_class("webshop") is WebShop and WebShop.fork_rung == "native"


def test_the_contract_is_kept() -> None:
    for options in ({}, {"pages": "compact", "page_size": 3, "show_attributes": True}):
        tasks = WebShop.tasks("train", count=3, **SMALL, **options)
        report = check_environment(lambda options=options: WebShop(**SMALL, **options), tasks, steps=15)
        assert report.fork_rung == "native" and "fork" in report.checks


def test_the_reward_comes_with_the_purchase_and_ends_the_episode() -> None:
    environment = WebShop(**SMALL)
    task = WebShop.tasks("test", **SMALL)[0]
    first = environment.reset(task, seed=0)
    assert first.admissible is not None and first.admissible[0].startswith("search[")
    rewards = []
    while (step := environment.expert()) is not None:
        result = environment.step(step.action)
        rewards.append(result.reward)
        assert result.info["valid"] and result.info["score"] == result.reward
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    assert result.terminated and result.info["success"] and environment.purchase is not None
    with pytest.raises(EnvironmentFailed, match="after the purchase"):
        environment.step("search[kettle]")


def test_a_wrong_purchase_earns_a_part() -> None:
    environment = WebShop(num_products=144, pages="compact")
    task = WebShop.tasks("test", **SMALL)[0]
    environment.reset(task, seed=0)
    goal = open_catalogue(None, 144, 0)[0].goals[task.data["number"]]
    environment.step(f"search[{goal.query}]")
    environment.step(f"click[{goal.asin}]")
    # Both attributes and the price fit, and no option is chosen: 3 of 3 + the number of options.
    result = environment.step("click[buy now]")
    assert result.reward == pytest.approx(3 / (3 + len(goal.options))) and 0.5 <= result.reward < 1.0
    assert (result.terminated, result.info["success"]) == (True, False)
    assert result.observation.text == f"You bought {goal.asin.lower()}. Score {result.reward:.2f}."


def test_nonsense_shows_the_page_again() -> None:
    environment = WebShop(**SMALL, admissible=False)
    first = environment.reset(WebShop.tasks("train", count=1, **SMALL)[0], seed=0)
    result = environment.step("dance")
    assert result.observation == first and first.admissible is None
    assert result.info == {"success": False, "score": 0.0, "valid": False}


def test_forks_and_parents_go_the_same_way_and_do_not_move_each_other() -> None:
    environment, rng = WebShop(**SMALL), random.Random(0)
    for task in WebShop.tasks("train", count=60, **SMALL):
        observation = environment.reset(task, seed=0)
        for _ in range(rng.randrange(8)):
            result = environment.step(rng.choice([*(observation.admissible or ()), "search[red]"]))
            observation = result.observation
            if result.terminated:
                break
        else:
            twin = environment.fork()
            actions = [rng.choice(observation.admissible or ("search[red]",)), "search[blue]", "click[next >]"]
            results = [environment.step(action) for action in actions if environment.purchase is None]
            assert [twin.step(action) for action in actions if twin.purchase is None] == results
            assert twin.goal == environment.goal


def test_every_listed_action_is_understood() -> None:
    rng = random.Random(1)
    catalogue, index, _ = open_catalogue(None, 144, 0)
    shop = Shop(catalogue, index, 10, True)
    for goal in rng.sample(catalogue.goals, 20):
        state = State()
        for _ in range(12):
            following = [act(shop, state, action) for action in admissible_actions(shop, state, goal)]
            assert None not in following
            if not following:
                break
            state = rng.choice(following)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pages": "html"}, "pages must be 'rich' or 'compact', not 'html'"),
        ({"page_size": 0}, "page_size must be a whole number of at least 1, not 0"),
        ({"num_products": 10}, "num_products must be a whole number of at least 100, not 10"),
        ({"num_products": True}, "num_products must be a whole number"),
        ({"catalogue_seed": -1}, "catalogue_seed must be a whole number of at least 0, not -1"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WebShop(**{**SMALL, **options})


def test_wrong_tasks() -> None:
    with pytest.raises(TaskError, match="no split 'tset' [(]did you mean 'test'[?][)]; known: train, validation"):
        WebShop.tasks("tset", **SMALL)
    with pytest.raises(ConfigError, match="no option 'page' [(]did you mean 'pages'[?][)]"):
        WebShop.tasks("test", page="rich", **SMALL)
    with pytest.raises(TaskError, match="count must be at least 0, not -1"):
        WebShop.tasks("test", count=-1, **SMALL)
    environment = WebShop(**SMALL)
    for data in ({}, {"catalogue": "generated-144-0", "number": 432}, {"catalogue": "generated-144-1", "number": 0}):
        with pytest.raises(TaskError, match="give the same options to WebShop and to tasks"):
            environment.reset(Task("foreign", data=data), seed=0)
    with pytest.raises(EnvironmentFailed, match="before its first reset"):
        environment.step("search[kettle]")


# The generated catalogue


def test_the_same_seed_gives_the_same_shop() -> None:
    assert make_rows(144, 5) == make_rows(144, 5) != make_rows(144, 6)
    assert len({row["asin"] for row in make_rows(1200, 0)[0]}) == 1200


def test_splits_share_no_product_and_hold_what_they_say() -> None:
    catalogue = generate_catalogue(240)
    assert tuple(catalogue.splits) == SPLITS
    assert sorted(number for part in catalogue.splits.values() for number in part) == list(range(720))
    goals = {name: [catalogue.goals[number] for number in part] for name, part in catalogue.splits.items()}
    owners = collections.Counter(asin for part in goals.values() for asin in {goal.asin for goal in part})
    assert set(owners.values()) == {1}
    assert {goal.category for goal in goals["l2"]} == {UNSEEN_CATEGORY}
    assert {goal.query for goal in goals["l1"]} == set(UNSEEN_KINDS)
    for name in ("train", "validation", "test"):
        assert not {goal.query for goal in goals[name]} & set(UNSEEN_KINDS)
        assert {goal.category for goal in goals[name]} <= CATEGORIES.keys() - {UNSEEN_CATEGORY}


def test_the_expert_earns_the_whole_reward_on_every_goal() -> None:
    environment, scores = WebShop(**SMALL, pages="compact", admissible=False), collections.Counter()
    for split in SPLITS:
        for task in WebShop.tasks(split, **SMALL):
            environment.reset(task, seed=0)
            while (step := environment.expert()) is not None:
                result = environment.step(step.action)
            scores[result.reward] += 1
    assert scores == {1.0: 432}
