"""The embedded household environment: ALFWorld's task types and commands, generated, fast, and natively forkable."""

from firesteel.environments.household.environment import Household

__all__ = ["Household"]
