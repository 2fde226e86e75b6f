"""Random play: text of an environment that a model without pretrained weights learns its language from."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from firesteel.annotate import EpisodeSet, EpisodeStep, ExpertEpisode, Rejection, play_all, play_episode
from firesteel.environments.base import Environment
from firesteel.errors import ConfigError
from firesteel.types import Observation, Task

RandomAction = Callable[[Environment, random.Random], str]


def collect_random_episodes(
    environment_class: Callable[..., Environment],
    tasks: Iterable[Task],
    options: Mapping[str, Any] | None = None,
    *,
    steps: int,
    seed: int,
    random_action: RandomAction | None = None,
    narrate: bool = False,
    stale_share: float = 0.0,
) -> EpisodeSet:
    """Plays random actions, at most `steps` per task: text of the environment for language pre-training.

    Steps carry no tags, or with `narrate` the tag and the thought that the environment's expert has in that situation
    (not its action): text that speaks of the goal, which random play alone never does. An action is drawn from the
    admissible ones that were not played yet (`draw_by_verb`), or by `random_action(environment, rng)` where that is
    given (`action_sampler` makes one); an environment that lists no actions needs it. Of the drawn actions
    `stale_share` come from what was admissible earlier in the episode, so that the text also shows actions that fail.
    The draws depend on `seed` and the task alone, not on the other tasks.
    """

    def play(environment: Environment, task: Task) -> ExpertEpisode | Rejection:
        rng = random.Random(f"{seed}/{task.id}")
        stale: dict[str, None] = {}
        played: set[str] = set()

        def decide(environment: Environment, observation: Observation) -> EpisodeStep:
            if random_action is not None:
                action = random_action(environment, rng)
            elif stale and stale_share > 0 and rng.random() < stale_share:
                action = draw_by_verb(list(stale), rng)
            elif observation.admissible:
                fresh = [action for action in observation.admissible if action not in played]
                action = draw_by_verb(fresh or observation.admissible, rng)
                stale.update(dict.fromkeys(observation.admissible))
            else:
                raise ConfigError(
                    f"{type(environment).__name__} lists no admissible actions for task '{task.id}'; "
                    "pass random_action, for instance action_sampler(expert_episodes)"
                )
            played.add(action)
            thought = environment.expert() if narrate else None
            tag, reason = (None, "") if thought is None else (thought.explore, thought.reason)
            return EpisodeStep(observation.text, action, tag, reason, admissible=observation.admissible, drawn=True)

        return play_episode(environment, task, steps, decide)

    return play_all(environment_class, tasks, options, play)


def draw_by_verb(actions: Sequence[str], rng: random.Random) -> str:
    """Half of the time any action; else first a verb (the first word), so that rare ones are seen, then its action."""
    if rng.random() < 0.5:
        return rng.choice(actions)
    by_verb: dict[str, list[str]] = {}
    for action in actions:
        by_verb.setdefault(action.partition(" ")[0], []).append(action)
    return rng.choice(by_verb[rng.choice(sorted(by_verb))])


def action_sampler(
    episodes: Iterable[ExpertEpisode],
    templates: Sequence[str] = (),
    fillers: Mapping[str, Sequence[str]] | None = None,
    template_share: float = 0.5,
) -> RandomAction:
    """A `random_action` that mixes actions seen in episodes with filled templates.

    With probability `template_share` a template such as "take {thing} from {place}" is drawn, and each of its slots is
    filled from `fillers["thing"]`, `fillers["place"]`; otherwise one of the episodes' distinct actions.
    """
    seen = sorted({step.action for episode in episodes for step in episode.steps})
    choices = {name: tuple(words) for name, words in (fillers or {}).items()}
    for template in templates:
        for slot in re.findall(r"\{(.*?)\}", template):
            if not choices.get(slot):
                raise ConfigError(f"template '{template}': no filler for the slot '{slot}'; add it to fillers")
    if not seen and not templates:
        raise ConfigError("action_sampler: no episode has an action and there is no template; give at least one")

    def draw(environment: Environment, rng: random.Random) -> str:
        del environment
        if templates and (not seen or rng.random() < template_share):
            return rng.choice(templates).format_map({name: rng.choice(words) for name, words in choices.items()})
        return rng.choice(seen)

    return draw
