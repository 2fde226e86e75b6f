"""WebShop: shopping by search and clicks with the paper's reward, in a generated shop or in one made of its files."""

from firesteel.environments.webshop.environment import WebShop

__all__ = ["WebShop"]
