"""The recipe: the whole configuration of a run, read and checked before any actor starts.

It is composed of the rooms' own sections; what one section must know of another one is derived here
(`Recipe.serving`) or checked here. May import `axpo.tasks` and the engine rooms, nothing that runs.
Start reading in `recipe.py`. `reading.py` reads YAML and `--set`, and words the errors; `moved.py`
lists the keys of older recipes.
"""

from axpo.config.concepts import variants
from axpo.config.reading import load_recipe, parse_recipe
from axpo.config.recipe import Recipe, hub_name, looks_local
from axpo.config.sections import EvaluationConfig, LoggingConfig, SFTConfig, SFTStage
from axpo.config.suggest import recipe_keys

__all__ = [
    "EvaluationConfig",
    "LoggingConfig",
    "Recipe",
    "SFTConfig",
    "SFTStage",
    "hub_name",
    "load_recipe",
    "looks_local",
    "parse_recipe",
    "recipe_keys",
    "variants",
]
