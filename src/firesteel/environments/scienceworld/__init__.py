"""The ScienceWorld environment: Wang et al. (2022), "ScienceWorld: Is your Agent Smarter than a 5th Grader?"."""

from firesteel.environments.scienceworld.catalogue import SHORT_TASKS
from firesteel.environments.scienceworld.environment import ScienceWorld

__all__ = ["SHORT_TASKS", "ScienceWorld"]
