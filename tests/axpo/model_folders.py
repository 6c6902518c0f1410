"""Make broken copies of model folders, and ask which line refuses them."""

import json
import os
import struct

import pytest

from axpo.config import load_recipe
from axpo.errors import AxpoError
from axpo.model_folder import check_models

DEMO = "deploy/recipes/demo.yaml"
EMBEDDED = ("axpo/models/qwen3-vl-tiny", "axpo/models/qwen3-vl-tiny-mixed")
HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
NORM = "model.language_model.norm.weight"


def recipe(model, *overrides):
    images = "images.max_pixels=262144"  # 256 tokens of Qwen3-VL: one image fits the context
    return load_recipe(DEMO, [f"model={model}", images, *overrides])


def refused(model, *overrides):
    """Return the line that refuses a model, with its folder as DIR."""
    with pytest.raises(AxpoError) as raised:
        check_models(recipe(model, *overrides))
    line = str(raised.value)
    assert "\n" not in line
    return line.replace(str(model), "DIR")


def warnings_of_folder(report):
    """Return the warnings without the task's: the demo's scene is small beside real limits."""
    return [warning for warning in report.warnings if not warning.startswith("task.")]


def copy(source, folder):
    """Link every file of a folder, so that a change is made by `write` or `unlink` alone."""
    folder.mkdir()
    for file in source.iterdir():
        os.link(file, folder / file.name)
    return folder


def write(file, value):
    """Replace a file: a link to the source's file is cut, the source stays as it is."""
    file.unlink(missing_ok=True)
    if isinstance(value, bytes):
        file.write_bytes(value)
    else:
        file.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")


def change(file, changes):
    """Change entries of a JSON file, given by path."""
    content = json.loads(file.read_text("utf-8"))
    for path, value in changes.items():
        *sections, key = path.split("/")
        section = content
        for name in sections:
            section = section[name]
        section[key] = value
    write(file, content)


def rewrite(folder, edit):
    """Change the tensors of a folder: name -> (type, shape). Their values become zeros."""
    file = folder / "model.safetensors"
    with file.open("rb") as opened:
        header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
    header.pop("__metadata__", None)
    tensors = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
    edit(tensors)
    write_zeros(file, tensors)


def write_zeros(file, tensors):
    """Write a safetensors file by the format's definition, as a hole on the disk."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start = end
        size = {"F32": 4, "BF16": 2, "I32": 4}[dtype]
        for side in shape:
            size *= side
        end += size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    write(file, struct.pack("<Q", len(encoded)) + encoded)
    os.truncate(file, 8 + len(encoded) + end)
