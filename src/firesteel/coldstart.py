"""The cold start's data: episodes of the expert (tagged) and of random play, written to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from firesteel.annotate import (
    ANNOTATORS,
    EpisodeSet,
    check_tags,
    collect_expert_episodes,
    load_episodes,
    save_episodes,
    tag_report,
)
from firesteel.config import Config
from firesteel.environments import environment_class
from firesteel.errors import ConfigError
from firesteel.openai_client import ChatClient
from firesteel.plugins import load
from firesteel.policy import load_tasks
from firesteel.random_play import action_sampler, collect_random_episodes

POLICIES = ("expert", "random")


def collect_episodes(
    config: Config,
    out: Path,
    *,
    count: int = 300,
    policy: str = "expert",
    annotator: str = "rules",
    base_url: str = "",
    teacher: str = "",
    max_steps: int = 30,
    actions_from: Path | None = None,
    narrate: bool = False,
    stale_share: float = 0.0,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Plays `count` training tasks and writes the episodes to `out`, one JSON object a line.

    Expert episodes are tagged by the annotator and checked: a tag on every step, or one that follows the step's number,
    is refused. Random play carries no tags, or with `narrate` the expert's thoughts about random actions; it draws from
    the admissible actions, or where listing those is dear, from the distinct actions of the episodes in `actions_from`.
    """
    if policy not in POLICIES:
        raise ConfigError(f"policy must be one of {', '.join(POLICIES)}, got '{policy}'")
    tasks = load_tasks(config, config.environment.split, count, seed=config.seed)
    cls = environment_class(config.environment.name)
    if policy == "random":
        known = None if actions_from is None else action_sampler(load_episodes(actions_from))
        options = config.environment.options | ({"admissible": True} if known is None else {})
        episodes = collect_random_episodes(
            cls, tasks, options, steps=max_steps, seed=config.seed, random_action=known, narrate=narrate,
            stale_share=stale_share,
        )  # fmt: skip
    else:
        played = collect_expert_episodes(cls, tasks, config.environment.options, max_steps=max_steps)
        episodes = annotated(played, annotator, base_url, teacher)
        if not episodes:
            raise ConfigError(f"no episode of {len(tasks)} can be kept; the first: {episodes.rejected[0].reason}")
        check_tags(episodes)
        say(tag_report(episodes))
    save_episodes(out, episodes)
    say(episodes.report())
    return {"episodes": len(episodes), "rejected": len(episodes.rejected), "written": str(out)}


def annotated(episodes: EpisodeSet, annotator: str, base_url: str, teacher: str) -> EpisodeSet:
    """The episodes with the annotator's tags; those rejected before stay rejected."""
    annotate = load(annotator, ANNOTATORS, kind="annotator")
    if annotator != "teacher":
        result: EpisodeSet = annotate(episodes)
    elif not base_url or not teacher:
        raise ConfigError("the annotator 'teacher' needs --base-url and --teacher (an OpenAI-compatible server)")
    else:
        with ChatClient(base_url, teacher) as client:
            result = annotate(episodes, client=client)
    return EpisodeSet(result.accepted, (*episodes.rejected, *result.rejected))
