"""Arguments that several commands take, and how a shell completes them.

Nothing here is imported from the rooms before a shell asks for it: `axpo --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def _recipes(incomplete: str) -> Iterator[str]:
    from axpo.shipped import recipe_names

    yield from (name for name in recipe_names() if name.startswith(incomplete))
    yield from _paths(incomplete, ".yaml")


def _runs(incomplete: str) -> Iterator[str]:
    """Yield run directories, and folders on the way to one."""
    for path in _paths(incomplete, "/"):
        yield path.removesuffix("/") if (Path(path) / "recipe.yaml").is_file() else path
    if not incomplete:
        yield from (str(recipe.parent) for recipe in sorted(Path("runs").glob("*/recipe.yaml")))


def _targets(incomplete: str) -> Iterator[str]:
    """Yield recipes and runs. Both look through folders, and each folder is offered once."""
    runs = list(_runs(incomplete))
    for recipe in _recipes(incomplete):
        if recipe not in runs and recipe.removesuffix("/") not in runs:
            yield recipe
    yield from runs


def _keys(incomplete: str) -> list[str]:
    from axpo.config import recipe_keys

    # What follows "=" is the user's.
    return [f"{key}=" for key in recipe_keys() if key.startswith(incomplete)]


def _concepts(incomplete: str) -> list[str]:
    from axpo.config import variants

    return [name for name in variants() if name.startswith(incomplete)]


def _paths(incomplete: str, ending: str) -> Iterator[str]:
    """Yield folders that begin so, with a slash, and files of an ending."""
    folder, slash, begin = incomplete.rpartition("/")
    try:
        found = sorted(Path(folder or (slash or ".")).iterdir())
    except OSError:
        return
    for path in found:
        if path.name.startswith(begin) and not path.name.startswith("."):
            if path.is_dir():
                yield f"{folder}{slash}{path.name}/"
            elif path.name.endswith(ending):
                yield f"{folder}{slash}{path.name}"


RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE", help="a YAML file, or a name of `axpo recipes`", autocompletion=_recipes
    ),
]
OptionalRecipe = Annotated[
    Path | None,
    typer.Argument(
        metavar="RECIPE",
        help="a YAML file, or a name of `axpo recipes`; none with --resume",
        autocompletion=_recipes,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="change one field of the recipe, e.g. learner.lr=1e-5; repeatable",
        autocompletion=_keys,
    ),
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="a run directory", autocompletion=_runs)
]
RunFolders = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...", help="run directories, or folders of them", autocompletion=_runs
    ),
]
Target = Annotated[
    Path | None,
    typer.Argument(
        metavar="TARGET",
        help="a recipe (its model), a run directory (its last checkpoint), or a model",
        autocompletion=_targets,
    ),
]
Concept = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONCEPT]",
        help="objectives, baselines, rankings, fork_places, triggers, budgets, schedules, "
        "verifiers, judges, tools, tasks, trackers or benchmarks. Default: all of them",
        autocompletion=_concepts,
    ),
]
Resumed = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="continue this run from its last checkpoint, with its own recipe",
        autocompletion=_runs,
    ),
]
Replayed = Annotated[
    Path | None,
    typer.Option(
        "--replay",
        metavar="RUN",
        help="train on what --rollouts-only wrote there; no engine",
        autocompletion=_runs,
    ),
]
