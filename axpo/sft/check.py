"""Check the demonstrations of a recipe (`sft.stages[].data`) before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from axpo.config import Recipe
from axpo.model_folder.check import folder_of
from axpo.model_folder.files import check_processor, load_chat
from axpo.sft.demonstrations import COLUMNS, Demonstrations
from axpo.tasks.data import DataConfig
from axpo.tasks.row_check import Tell, check_images, check_rows
from rollout_workers.chat import Chat
from rollout_workers.context import Context


def check_stages(recipe: Recipe) -> list[str]:
    """Check the rows of every stage.

    Returns:
        Which rows a run sets aside, a line each. Nothing if the model is not here: rows are read as
        its chat template writes them.

    Raises:
        AxpoError: there is no such data, or too many rows are bad.
    """
    set_aside: list[str] = []
    for data, rows in _sources(recipe):
        set_aside += check_rows(rows, None).judged(data.max_bad_rows)
    return set_aside


def decode_stages(recipe: Recipe, folder: Path, tell: Tell) -> list[str]:
    """Decode every image of every stage; return and raise as `check_stages`.

    Args:
        recipe: whose stages.
        folder: has the notes of an earlier check, and gets those of this one.
        tell: is told of the progress.
    """
    set_aside: list[str] = []
    for data, rows in _sources(recipe):
        set_aside += check_images(rows, folder, tell).judged(data.max_bad_rows)
    return set_aside


def demonstrations(recipe: Recipe, data: DataConfig, chat: Chat, model: str) -> Demonstrations:
    """Return the rows of a stage, of which the longest must fit the recipe's context.

    Args:
        recipe: says how long the context is, and how large images are.
        data: the stage's.
        chat: of the model.
        model: its folder.
    """
    rule = check_processor(Path(model), recipe.images)
    context = Context(rule, recipe.rollout.max_context_tokens)
    return Demonstrations(data, chat, recipe.seed, context)


def _sources(recipe: Recipe) -> Iterator[tuple[DataConfig, Demonstrations]]:
    """Yield each source of the stages once, with its rows."""
    sources = [stage.data for stage in recipe.sft.stages if stage.data] if recipe.sft else []
    folder = folder_of(recipe.model) if sources else None
    if folder is None:
        # What cannot be read as a turn is known only with the model; that there is data, now.
        for data in sources:
            data.left_out(len(data.rows(COLUMNS)))
        return
    chat = load_chat(folder)
    for data in dict.fromkeys(sources):
        yield data, demonstrations(recipe, data, chat, str(folder))
