"""What comes with the package: the recipes, and the trained starts among them."""

from __future__ import annotations

from pathlib import Path

from firesteel.errors import ConfigError


def recipes_directory() -> Path:
    """Where the recipes lie: inside an installed package, or beside `src` in a checkout."""
    here = Path(__file__).parent
    for directory in (here / "recipe_files", here.parents[1] / "recipes"):
        if directory.is_dir():
            return directory
    raise ConfigError("this installation of firesteel has no recipes; install it again with pip")


def bundled(path: Path) -> Path:
    """A path as it is; where `recipes/...` is not here and is among the installed recipes, that one."""
    if path.parts[:1] != ("recipes",) or path.exists():
        return path
    installed = recipes_directory().joinpath(*path.parts[1:])
    return installed if installed.exists() else path
