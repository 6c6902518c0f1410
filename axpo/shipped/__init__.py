"""What comes along with the package, wherever it is installed: recipes, models, a starter project.

`deploy/` and `constraints.txt` are links into the checkout; a wheel has copies of what they lead
to. So the same paths are there in both. Imports nothing of AXPO but its errors. Start reading with
`recipe_file` and `model_folder`.
"""

from __future__ import annotations

import re
from pathlib import Path

from axpo.errors import AxpoError

FOLDER = Path(__file__).resolve().parent
DEPLOY = FOLDER / "deploy"
RECIPES = DEPLOY / "recipes"
STARTER = FOLDER / "starter"
CONSTRAINTS = FOLDER / "constraints.txt"
MODELS = FOLDER.parent / "models"

_NAME = re.compile(r"[\w.-]+")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come along, in the order of the alphabet."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def recipe_file(name: str) -> Path | None:
    """Return the file of a recipe that comes along; None: none is called so."""
    file = RECIPES / f"{name}.yaml"
    return file if _NAME.fullmatch(name) and file.is_file() else None


def known_recipe(name: str) -> Path:
    """Return the file of a recipe that comes along.

    Raises:
        AxpoError: none is called so.
    """
    file = recipe_file(name)
    if file is None:
        raise AxpoError(f"recipe {name}: expected one of {', '.join(recipe_names())}")
    return file


def recipe_summary(name: str) -> str:
    """Return what a recipe's first line says of it."""
    with known_recipe(name).open(encoding="utf-8") as lines:
        return lines.readline().removeprefix("#").strip()


def model_folder(model: str) -> str:
    """Return the folder of a model that comes along, or the model as it was named.

    `qwen3-vl-tiny` and `axpo/models/qwen3-vl-tiny` name one if nothing of that name is on disk. So
    does the path that another installation recorded, if it is not there.
    """
    path = Path(model)
    is_name = model == path.name or path.parts[-3:-1] == ("axpo", "models")
    if not is_name or path.exists():
        return model
    own = MODELS / path.name
    return str(own) if (own / "config.json").is_file() else model


def package_path(path: Path) -> Path:
    """Return the file inside the package that a path like `axpo/tasks/...` means.

    The path itself if something is there, or if it means none.
    """
    inside = FOLDER.parent.parent / path
    means_one = not path.is_absolute() and path.parts[:1] == ("axpo",) and ".." not in path.parts
    return inside if means_one and not path.exists() and inside.exists() else path
