"""Check the models of a recipe: the folder, then whether prompts and images fit the context."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from axpo.config import Recipe, hub_name, looks_local
from axpo.errors import AxpoError
from axpo.memory import read_config
from axpo.memory.known import Config
from axpo.model_folder.files import (
    check_links,
    check_processor,
    load_chat,
    model_config,
    vocabulary_size,
)
from axpo.model_folder.prompt import Prompt, prompt_of
from axpo.model_folder.proven import is_proven
from axpo.model_folder.weights import Weights, check_weights, files_of, read_weights
from axpo.quick_imports import quick_imports
from rollout_workers.context import Context, PromptCheck
from rollout_workers.families import architecture_of, family_of, text_config
from rollout_workers.families import read_config as read_folder_config
from rollout_workers.image_rule import ImageRule, image_rule


@dataclass(frozen=True)
class ModelReport:
    """What a command must know of its model."""

    lines: tuple[str, ...] = ()  # that `axpo check` prints
    warnings: tuple[str, ...] = ()
    fits: PromptCheck | None = None  # does a question fit the context? None: not known


def check_models(recipe: Recipe, model: str | None = None) -> ModelReport:
    """Check the recipe's model, and its reference if that is another one.

    Args:
        recipe: what the model is used for.
        model: folder or hub name to check instead of the recipe's.

    Returns:
        Lines to print, and warnings.

    Raises:
        AxpoError: a model cannot be used; one line that says why.
    """
    model = model or recipe.model
    _check_there("model", model)
    if recipe.reference is not None:
        _check_there("reference", recipe.reference)
    try:
        with quick_imports():
            report = _check_model(recipe, model)
            if recipe.reference not in (None, model):
                _check_reference(recipe.reference, model)
    # Whatever a folder has that the code below does not take is a ValueError of one line.
    except ValueError as error:
        raise AxpoError(str(error)) from None
    return report


def _check_there(field: str, model: str) -> None:
    if looks_local(model) and not (Path(model) / "config.json").is_file():
        raise AxpoError(f"{field}={model!r}: no model folder there (expected a config.json in it)")


def _check_model(recipe: Recipe, model: str) -> ModelReport:
    folder = folder_of(model)
    if folder is None:
        return _check_hub(recipe, model)
    # What takes no time comes first: a real tokenizer takes seconds.
    family = family_of(folder)
    check_links(folder)
    proven = is_proven(folder)
    weights = read_weights(folder) if proven else check_weights(folder)
    rule = image_rule(folder, recipe.images) if proven else check_processor(folder, recipe.images)
    _check_context(recipe, _positions(folder), f"{folder}/config.json")
    chat = load_chat(folder)
    prompt = prompt_of(recipe, chat)
    _check_turn(recipe, prompt)
    warnings = _check_images(recipe, rule, prompt, folder)
    lines = (
        f"model folder: {family.name}, {_counted(weights)}",
        *prompt.lines,
        f"images: {_image_line(recipe, rule)}",
    )
    context = Context(rule, recipe.rollout.max_context_tokens)
    fits = PromptCheck(context, prompt.training, prompt.evaluation, chat.plain)
    doubtful = (*prompt.warnings, *warnings, *recipe.task.remarks(rule))
    return ModelReport(lines, doubtful, fits)


def _check_reference(reference: str, model: str) -> None:
    """Check the reference policy, which reads the ids that the policy wrote."""
    folder, own = folder_of(reference), folder_of(model)
    if folder is None:
        return
    family_of(folder)
    check_weights(folder)
    if own is None:
        return
    found, expected = vocabulary_size(folder), vocabulary_size(own)
    if found != expected:
        raise ValueError(
            f"reference={reference!r}: vocab_size {found}; expected {expected}, as {model} has"
        )


def folder_of(model: str) -> Path | None:
    """Return the folder of a model, from the hub's local cache if it is not one itself.

    None: the model is the hub's, and not all of its files are here.
    """
    if looks_local(model):
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    name, revision = hub_name(model)
    config = try_to_load_from_cache(name, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    # A download that was cut short goes on when the run starts.
    try:
        files_of(folder)
    except ValueError:
        return None
    return folder


def _check_hub(recipe: Recipe, model: str) -> ModelReport:
    """Check as much of a hub's model as its config.json says."""
    config: Config | None = read_config(model)
    if config is None:
        warning = f"{model}: not in the local cache, and the hub does not give its config.json"
        return ModelReport(warnings=(f"nothing of the model was checked ({warning})",))
    where = f"{model}, config.json"
    architecture = architecture_of(config, where)
    positions = text_config(config).get("max_position_embeddings")
    if positions is not None:
        _check_context(recipe, positions, where)
    warning = f"not checked: tokenizer, chat template, processor and weights of {model}"
    return ModelReport(
        (f"model of the hub: {architecture.model_type}",),
        (f"{warning} (not in the local cache; `hf download {model}` puts them there)",),
    )


def _positions(folder: Path) -> int:
    stated = text_config(read_folder_config(folder)).get("max_position_embeddings")
    if isinstance(stated, int):
        return stated
    # The model's class fills in what an older config.json leaves out.
    return int(model_config(folder).get_text_config().max_position_embeddings)


def _check_context(recipe: Recipe, positions: int, where: str) -> None:
    limit = recipe.rollout.max_context_tokens
    if limit > positions:
        raise ValueError(
            f"rollout.max_context_tokens={limit}: must be at most {positions}, which is "
            f"max_position_embeddings of {where}"
        )


def _check_turn(recipe: Recipe, prompt: Prompt) -> None:
    rollout = recipe.rollout
    if prompt.longest + rollout.max_turn_tokens > rollout.max_context_tokens:
        raise ValueError(
            f"rollout.max_turn_tokens={rollout.max_turn_tokens}: with the {prompt.longest} tokens "
            "of a prompt without question it must be at most "
            f"rollout.max_context_tokens={rollout.max_context_tokens}"
        )


def _check_images(recipe: Recipe, rule: ImageRule, prompt: Prompt, folder: Path) -> tuple[str, ...]:
    """Compare the largest image with the context, and return warnings.

    What the recipe asks for must fit. The limit of the folder is often far above what a run's
    images need, so there it is a warning.
    """
    limit = recipe.rollout.max_context_tokens
    # One token is left to answer with.
    room = limit - prompt.longest - 1
    if rule.most_tokens <= room:
        return ()
    fits = f"at most {max(room, 0) * rule.side**2} fit"
    why = (
        f"an image may take {rule.most_tokens} tokens, a prompt without question "
        f"{prompt.longest}, and rollout.max_context_tokens is {limit}; {fits}"
    )
    if recipe.images.max_pixels is not None:
        raise ValueError(f"images.max_pixels={recipe.images.max_pixels}: {why}")
    return (
        f"images.max_pixels is not set, and {folder} has {rule.max_pixels}: {why}. "
        "A question with a larger image is set aside",
    )


def _image_line(recipe: Recipe, rule: ImageRule) -> str:
    limits = f"{rule.min_pixels} to {rule.max_pixels} pixels"
    return (
        f"at most {rule.most_tokens} tokens each, of {recipe.rollout.max_context_tokens} of "
        f"context ({limits}, {rule.side} x {rule.side} a token)"
    )


def _counted(weights: Weights) -> str:
    files = len(weights.files)
    return f"{len(weights.tensors)} tensors in {files} file{'s' if files > 1 else ''}"
