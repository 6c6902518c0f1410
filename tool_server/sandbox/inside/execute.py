"""Runs the policy's code and shows what a notebook would: output, the value of a last expression, figures, tracebacks."""

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
import struct
import sys
import tempfile
import traceback
from collections.abc import Iterable
from types import CodeType
from typing import Any, NoReturn

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

PRELOADED = """
    matplotlib.backends.backend_agg, numpy.linalg, numpy.fft, pandas, PIL.ImageDraw, PIL.ImageFilter, PIL.ImageFont, PIL.ImageOps,
    PIL.PngImagePlugin, PIL.JpegImagePlugin, scipy.integrate, scipy.interpolate, scipy.linalg, scipy.ndimage, scipy.optimize,
    scipy.signal, scipy.spatial, scipy.special, scipy.stats, sympy,
    asyncio, collections, csv, datetime, decimal, fractions, functools, heapq, itertools, json, math, re, statistics, string, textwrap
"""
"""Imported before the first call. The rest of the toolbox and of the standard library is imported by the code that wants it."""

PLOT = """
import matplotlib.pyplot as plt
print('text')
plt.plot([1, 2], label='a')
plt.title('a title, $x^2$')
plt.legend()
plt.figure()
1 / 3
"""
SAMPLES = (
    PLOT,
    PLOT,
    "def f():\n    return {}['k']\nf()",
    "(",
    "import os\nos.mkdir('/nowhere/x')",
)

HIDDEN = "."

NAME = "<python>"
"""The policy's frames in a traceback."""

BEGIN = b"\0"
"""Written to the result pipe before each code runs: a child that ends before its first one failed in the isolation, not in the code."""

HINT = "The sandbox has no network and starts no processes; files can be written in the working directory only.\n"
MAX_ASPECT = 200


def read_inputs(fd: int) -> tuple[list[tuple[str, int]], list[Image.Image]]:
    """The codes to run, in order, each with the number of images that it sees, and the images.

    From `<I length><JSON {codes, shapes}><raw RGB>...` in a memfd.
    """
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as inputs:
        (length,) = struct.unpack_from("<I", inputs)
        at = 4 + length
        header = json.loads(inputs[4:at])
        images = []
        for height, width in header["shapes"]:
            images.append(
                Image.frombytes("RGB", (width, height), inputs[at : at + 3 * height * width])
            )
            at += 3 * height * width
    return header["codes"], images


def write_images(images: Iterable[Image.Image], seen: int) -> None:
    """As image_0.png, image_1.png, ... in the working directory, not compressed: a photo is written in 10 ms, not 300.

    Those after the first `seen` get a hidden name until a code sees them: then the limit of a file's size is in force.
    """
    for index, image in enumerate(images):
        image.save(f"{HIDDEN if index >= seen else ''}image_{index}.png", compress_level=0)


def run(
    codes: list[tuple[str, int]], images: list[Image.Image], result: int, caps: dict[str, int]
) -> NoReturn:
    """Runs all codes in one namespace, each with the images that it sees; only the last one's output and figures are shown.

    Ends the process.
    """
    tempfile.tempdir = None
    gc.enable()
    shown = os.dup(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    work, visible = os.getcwd(), codes[0][1]
    session = hashlib.sha256()
    error, figures = False, Figures(caps)
    for index, (code, seen) in enumerate(codes):
        for number in range(visible, seen):
            with contextlib.suppress(
                OSError
            ):  # an earlier code may have removed what it was not shown
                os.rename(f"{work}/{HIDDEN}image_{number}.png", f"{work}/image_{number}.png")
        visible = max(visible, seen)
        namespace["images"] = images[:seen]
        target = shown if index == len(codes) - 1 else quiet
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.write(result, BEGIN)
        session.update(code.encode() + b"\0")
        # The same seeds for the same history: a replay equals the first run.
        seed = int.from_bytes(session.digest()[:4], "little")
        random.seed(seed)
        np.random.seed(seed)
        figures = Figures(caps)
        error = execute(code, namespace, figures)
    for note in figures.notes:
        sys.stderr.write(note + "\n")
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    header = json.dumps(
        {"error": error, "images": [pixels.shape[:2] for pixels in figures.pixels]}
    ).encode()
    with open(result, "wb", buffering=0) as pipe:
        for part in (
            struct.pack("<I", len(header)),
            header,
            *(pixels.tobytes() for pixels in figures.pixels),
        ):
            view = memoryview(part)
            while view:
                view = view[pipe.write(view) :]
    os._exit(0)  # no exit handlers, no waiting for the policy's threads


class Figures:
    """The images that one code shows: figures of matplotlib and images of PIL, each at most once, in the order of showing."""

    def __init__(self, caps: dict[str, int]) -> None:
        self._most, self._max_pixels = caps["figures"], caps["pixels"]
        self._left_out = 0
        self.pixels: list[Any] = []
        self._notes: list[str] = []
        plt.show = self.show_open
        figures: Any = Figure
        figures.show = lambda figure, *_, **__: self.add_figure(figure)
        Image.Image.show = lambda image, *_, **__: self.add_image(image)  # type: ignore[method-assign]

    @property
    def notes(self) -> list[str]:
        more = (
            [f"[{self._left_out} more figures: only {self._most} are shown]"]
            if self._left_out
            else []
        )
        return self._notes + more

    def show_open(self, *_: Any, **__: Any) -> None:
        for number in plt.get_fignums():
            self.add_figure(plt.figure(number))
        plt.close("all")

    def add_figure(self, figure: Any) -> None:
        width, height = (round(side * figure.dpi) for side in figure.get_size_inches())
        if self._takes(width, height):
            figure.canvas.draw()
            self.pixels.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())

    def add_image(self, image: Image.Image) -> None:
        if self._takes(*image.size):
            self.pixels.append(np.asarray(image.convert("RGB")))

    def _takes(self, width: int, height: int) -> bool:
        if len(self.pixels) >= self._most:
            self._left_out += 1
            return False
        if (
            min(width, height) < 1
            or width * height > self._max_pixels
            or max(width, height) > MAX_ASPECT * min(width, height)
        ):
            limits = f"at most {self._max_pixels} pixels and 1:{MAX_ASPECT}"
            self._notes.append(f"[a figure of {width}x{height} pixels is not shown: {limits}]")
            return False
        return True


def execute(code: str, namespace: dict[str, Any], figures: Figures) -> bool:
    """Whether the code failed; its traceback is then on stderr, with the policy's own frames only."""
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
    linecache.cache[NAME] = len(code), None, code.splitlines(keepends=True), NAME
    try:
        body, last = split(code)
        exec(body, namespace)
        if last is not None:
            value = eval(last, namespace)
            if value is not None and not isinstance(value, (Figure, Image.Image)):
                print(repr(value))
            elif isinstance(value, Image.Image):
                figures.add_image(value)
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


def split(code: str) -> tuple[CodeType, CodeType | None]:
    """All statements, and the last one apart if it is an expression."""
    tree = ast.parse(code, NAME)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = compile(ast.Expression(tree.body.pop().value), NAME, "eval")  # type: ignore[attr-defined]
    return compile(tree, NAME, "exec"), last


def explain(error: BaseException) -> None:
    """Writes the traceback without the frames of the sandbox and of libraries, and without exceptions that never left a library."""
    try:
        report = traceback.TracebackException.from_exception(error, compact=True)
        own_frames(report)
        text = "".join(report.format())
    except BaseException:  # out of memory or of stack, or an exception whose own methods raise
        text = f"{type(error).__name__}\n"
    chain: list[BaseException | None] = [error]
    while chain[-1] is not None and len(chain) < 10:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    if any(map(refused, chain)):
        text += HINT
    os.write(2, text.encode("utf-8", "backslashreplace"))


def own_frames(report: traceback.TracebackException) -> None:
    report.stack[:] = [frame for frame in report.stack if frame.filename == NAME]
    for name in ("__cause__", "__context__"):
        if (before := getattr(report, name)) is not None:
            own_frames(before)
            if not before.stack:
                setattr(report, name, None)


def refused(error: BaseException | None) -> bool:
    """A file that is not found has a name; what multiprocessing was refused has none."""
    return isinstance(error, PermissionError) or (
        isinstance(error, FileNotFoundError) and error.filename is None
    )


def warm_up(caps: dict[str, int]) -> None:
    """Imports, and the whole path of a call twice: what is loaded lazily (codecs, fonts, locale) is loaded here, not in every child."""
    for module in PRELOADED.split(","):
        __import__(module.strip())
    plt.switch_backend("agg")
    saved = os.dup(1), os.dup(2)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for sample in SAMPLES:
        execute(sample, {"__name__": "__main__"}, Figures(caps))
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "png", compress_level=0)
    random.seed(1)
    np.random.seed(1)
    for number, fd in enumerate((*saved, quiet)):
        if number < 2:
            os.dup2(fd, number + 1)
        os.close(fd)
