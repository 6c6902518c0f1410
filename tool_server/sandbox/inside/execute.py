"""Run the policy's code and show what a notebook would.

That is output, the value of a last expression, figures, and tracebacks.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import io
import json
import linecache
import mmap
import os
import random
import sys
import tempfile
from collections.abc import Iterable
from types import CodeType
from typing import Any, NoReturn

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from . import protocol
from .figures import Figures
from .tracebacks import NAME, explain

Code = tuple[str, int]
"""What to run, and how many of the images it sees."""

HIDDEN = "."
"""Prefix of an image's file until a code sees it."""


def read_inputs(fd: int) -> tuple[list[Code], list[Image.Image]]:
    """Return the codes to run, in order, and the images, from a memfd (`protocol.Inputs`)."""
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as inputs:
        (length,) = protocol.LENGTH.unpack_from(inputs)
        at = protocol.LENGTH.size + length
        header: protocol.Inputs = json.loads(inputs[protocol.LENGTH.size : at])
        images = []
        for height, width in header["shapes"]:
            size = protocol.RGB * height * width
            pixels = inputs[at : at + size]
            images.append(Image.frombytes("RGB", (width, height), pixels))
            at += size
    return header["codes"], images


def write_images(images: Iterable[Image.Image], seen: int) -> None:
    """Write image_0.png, image_1.png, ... into the working directory.

    They are not compressed: a photo is written in 10 ms then, not in 300. Those after the first
    `seen` get a hidden name until a code sees them. They cannot be written then, because by that
    time the limit of a file's size is in force.
    """
    for index, image in enumerate(images):
        hidden = HIDDEN if index >= seen else ""
        image.save(f"{hidden}image_{index}.png", compress_level=0)


def run(codes: list[Code], images: list[Image.Image], result: int, caps: protocol.Caps) -> NoReturn:
    """Run all codes in one namespace, then end the process.

    Only the output and the figures of the last code are shown.

    Args:
        codes: the codes, each with the number of images that it sees.
        images: all images.
        result: descriptor of the result pipe.
        caps: limits of the figures.
    """
    # The zygote has found a temporary folder of its own, and collects no garbage.
    tempfile.tempdir = None
    gc.enable()
    # Copies, because the code may close or replace its own stdout.
    shown = os.dup(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    work = os.getcwd()
    _, visible = codes[0]
    session = hashlib.sha256()
    error, figures = False, Figures(caps)
    for index, (code, seen) in enumerate(codes):
        _reveal_images(work, range(visible, seen))
        visible = max(visible, seen)
        namespace["images"] = images[:seen]
        target = shown if index == len(codes) - 1 else quiet
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.write(result, protocol.BEGIN)
        session.update(code.encode() + b"\0")
        _seed(session.digest())
        figures = Figures(caps)
        error = execute(code, namespace, figures)
    # After the output, where the policy looks for what is missing.
    for note in figures.notes:
        sys.stderr.write(note + "\n")
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    shapes = [pixels.shape[:2] for pixels in figures.pixels]
    _write_result(result, {"error": error, "images": shapes}, figures.pixels)
    os._exit(0)  # no exit handlers, no waiting for the policy's threads


def _reveal_images(work: str, numbers: range) -> None:
    for number in numbers:
        # An earlier code may have removed what it was not shown.
        with contextlib.suppress(OSError):
            os.rename(f"{work}/{HIDDEN}image_{number}.png", f"{work}/image_{number}.png")


def _seed(history: bytes) -> None:
    """Seed the random numbers. The same history gives the same seeds: a replay equals the run."""
    seed = int.from_bytes(history[:4], "little")
    random.seed(seed)
    np.random.seed(seed)


def _write_result(result: int, header: protocol.Result, images: list[Any]) -> None:
    text = json.dumps(header).encode()
    with open(result, "wb", buffering=0) as pipe:
        body = [pixels.tobytes() for pixels in images]
        for part in (protocol.LENGTH.pack(len(text)), text, *body):
            # The pipe takes a large image in several writes.
            view = memoryview(part)
            while view:
                view = view[pipe.write(view) :]


def execute(code: str, namespace: dict[str, Any], figures: Figures) -> bool:
    """Run one code and return whether it failed.

    The value of a last expression is printed. If the code fails, its traceback is on stderr.
    """
    _open_streams()
    # Tracebacks show the lines of the code, which has no file.
    linecache.cache[NAME] = len(code), None, code.splitlines(keepends=True), NAME
    try:
        body, last = split(code)
        exec(body, namespace)
        if last is not None:
            value = eval(last, namespace)
            if isinstance(value, Image.Image):
                figures.add_image(value)
            elif value is not None and not isinstance(value, Figure):
                print(repr(value))
        figures.show_open()
    except SystemExit as exit:
        if exit.code not in (None, 0):
            print(f"SystemExit: {exit.code}")
            return True
        figures.show_open()
    except BaseException as error:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        explain(error)
        plt.close("all")
        return True
    return False


def _open_streams() -> None:
    """Give the code fresh stdin, stdout and stderr: an earlier code may have closed its own."""
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(1, "w", closefd=False)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False),
        encoding="utf-8",
        errors="backslashreplace",
        write_through=True,
    )


def split(code: str) -> tuple[CodeType, CodeType | None]:
    """Compile all statements, and the last one apart if it is an expression."""
    tree = ast.parse(code, NAME)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        expression = tree.body.pop()
        last = compile(ast.Expression(expression.value), NAME, "eval")  # type: ignore[attr-defined]
    return compile(tree, NAME, "exec"), last
