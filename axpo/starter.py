"""Write the starter project of `axpo init`: a recipe, a sample of data, a tool and a verifier."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

from axpo.errors import AxpoError
from axpo.shipped import STARTER

_NOT_OF_A_NAME = re.compile(r"[^\w.-]+")


def write_project(folder: Path) -> None:
    """Write the project into a new or empty folder.

    Raises:
        AxpoError: something is there already, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise AxpoError(f"{folder}: expected a new or an empty folder")
        _write(folder)
    except OSError as error:
        raise AxpoError(f"{folder}: {error.strerror or error}") from None


def _write(folder: Path) -> None:
    for file in sorted(STARTER.iterdir()):
        if file.is_file():
            # A package holds no file whose name begins with a dot.
            name = ".gitignore" if file.name == "gitignore" else file.name
            shutil.copyfile(file, folder / name)
    recipe = folder / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    # Runs are named after it.
    name = _NOT_OF_A_NAME.sub("-", folder.resolve().name).strip("-.") or "starter"
    recipe.write_text(text.replace("name: starter", f'name: "{name}"', 1), encoding="utf-8")
    rows = runpy.run_path(str(folder / "make_rows.py"))
    rows["write_all"]()
