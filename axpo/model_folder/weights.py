"""Read the headers of a folder's safetensors, and compare them with the model of its config.json.

A safetensors file begins with the length of its header (8 bytes, little-endian), then the header: a
JSON object that gives each tensor's type, shape and place in the rest of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from axpo.model_folder.files import model_config
from axpo.tasks.task import one_line
from rollout_workers.families import Architecture, architecture_of, read_config

Shape: TypeAlias = tuple[int, ...]

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100_000_000
"""Bytes; the format allows no more."""
TYPES = ("F32", "BF16", "F16")
LFS_POINTER = b"version https://git-lfs"
SHOWN = 3
"""Names in one message."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file."""

    file: Path
    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Weights:
    """What a folder's safetensors hold."""

    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]  # by the names that they have in the files


def check_weights(folder: Path) -> Weights:
    """Check that a folder has the weights of the model that its config.json describes.

    Raises:
        ValueError: files are missing or cut short, or tensors are missing, unexpected, of another
            shape or of a type that cannot be trained.
    """
    config = read_config(folder)
    architecture = architecture_of(config, f"{folder}/config.json")
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ValueError(
            f"{folder}/config.json: quantization_config ({method}); expected the weights that it "
            f"was made from, in {' or '.join(TYPES)}"
        )
    weights = read_weights(folder)
    _compare(weights, model_shapes(folder, architecture), architecture, folder)
    return weights


def files_of(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors of a folder.

    Raises:
        ValueError: there are none, or the index names others.
    """
    files = tuple(sorted(folder.glob("*.safetensors")))
    index = folder / INDEX
    if index.is_file():
        present = {file.name for file in files}
        absent = sorted(_named_by(index) - present)
        if absent:
            raise ValueError(f"{index}: names {_some(absent)}, not in the folder")
    if not files:
        raise ValueError(f"{folder}: no weights; expected *.safetensors")
    return files


def read_weights(folder: Path) -> Weights:
    """Return what the safetensors of a folder hold, by their headers.

    Raises:
        ValueError: see `files_of` and `read_header`, or two files hold the same tensor.
    """
    files = files_of(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in read_header(file).items():
            if name in tensors:
                raise ValueError(f"{file}: holds {name}, as {tensors[name].file.name} does")
            tensors[name] = tensor
    return Weights(files, tensors)


def read_header(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        ValueError: the header cannot be read, or the file is shorter or longer than it says.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ValueError(f"{file}: a Git LFS pointer; expected the weights (`git lfs pull`)")
        length = int.from_bytes(start[:8], "little")
        opened.seek(8)
        header = opened.read(length) if length <= MAX_HEADER else b""
    if size < 8 + length <= 8 + MAX_HEADER:
        raise ValueError(
            f"{file}: {size} bytes; expected {8 + length} of header alone (cut short?)"
        )
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        tensors = {
            name: Tensor(file, entry["dtype"], tuple(entry["shape"]))
            for name, entry in entries.items()
        }
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        raise ValueError(f"{file}: its header cannot be read; expected safetensors") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ValueError(f"{file}: {size} bytes; expected {expected} by its header (cut short?)")
    return tensors


@dataclass(frozen=True)
class ModelShapes:
    """What a model of transformers has, by name."""

    required: Mapping[str, Shape]  # its parameters
    optional: Mapping[str, Shape]  # a tied head, and buffers


def model_shapes(folder: Path, architecture: Architecture) -> ModelShapes:
    """Return the shapes of the model of a folder's config.json, without memory for it.

    Raises:
        ValueError: transformers cannot make that model.
    """
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    config = model_config(folder)
    model_class = getattr(transformers, architecture.model_class)
    try:
        with torch.device("meta"), no_init_weights():
            model = model_class._from_config(config)
        # As the learner does: a tied head is then no parameter of its own.
        model.tie_weights()
    except Exception as error:  # of transformers and torch: any number may be wrong in any way
        reason = one_line(error)
        raise ValueError(f"{folder}/config.json: no model of it can be made: {reason}") from None
    required = _shapes(dict(model.named_parameters()))
    buffers = _shapes(dict(model.named_buffers()))
    return ModelShapes(required, _shapes(model.state_dict()) | buffers)


def _compare(
    weights: Weights, model: ModelShapes, architecture: Architecture, folder: Path
) -> None:
    found = {architecture.parameter_name(name): (name, t) for name, t in weights.tensors.items()}
    missing = [name for name in model.required if name not in found]
    if missing:
        raise ValueError(f"{folder}: no weights for {_some(missing)}; expected by config.json")
    known = {**model.optional, **model.required}
    unexpected = [stored for name, (stored, _) in found.items() if name not in known]
    if unexpected:
        file = weights.tensors[unexpected[0]].file
        raise ValueError(f"{file}: {_some(unexpected)}; not in the model of config.json")
    for name, (stored, tensor) in found.items():
        if tensor.shape != known[name]:
            raise ValueError(
                f"{tensor.file}: {stored} has shape {list(tensor.shape)}; expected "
                f"{list(known[name])} by config.json"
            )
        if tensor.dtype not in TYPES:
            raise ValueError(
                f"{tensor.file}: {stored} has type {tensor.dtype}; expected {' or '.join(TYPES)}"
            )


def _shapes(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _named_by(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"{index}: cannot be read; expected `weight_map`") from None


def _some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - SHOWN
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
