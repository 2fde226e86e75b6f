"""The ALFWorld environment: Shridhar et al. (2021), "ALFWorld: Aligning Text and Embodied Environments"."""

from firesteel.environments.alfworld.environment import AlfWorld

__all__ = ["AlfWorld"]
