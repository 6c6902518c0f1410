"""What the zygote loads before its first call, so that no child has to."""

from __future__ import annotations

import io
import os
import random

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from . import protocol
from .execute import execute
from .figures import Figures

PRELOADED = """
    matplotlib.backends.backend_agg, numpy.linalg, numpy.fft, pandas,
    PIL.ImageDraw, PIL.ImageFilter, PIL.ImageFont, PIL.ImageOps,
    PIL.PngImagePlugin, PIL.JpegImagePlugin,
    scipy.integrate, scipy.interpolate, scipy.linalg, scipy.ndimage, scipy.optimize,
    scipy.signal, scipy.spatial, scipy.special, scipy.stats, sympy,
    asyncio, collections, csv, datetime, decimal, fractions, functools, heapq, itertools, json,
    math, re, statistics, string, textwrap
"""
"""Imported before the first call.

The rest of the toolbox and of the standard library is imported by the code that wants it.
"""

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


def warm_up(caps: protocol.Caps) -> None:
    """Import the packages, and go the whole way of a call with some samples.

    What is loaded lazily (codecs, fonts, locale) is then loaded here, not in every child. The plot
    is drawn twice.
    """
    for module in PRELOADED.split(","):
        __import__(module.strip())
    plt.switch_backend("agg")
    _run_samples(caps)
    Image.new("RGB", (4, 4)).save(io.BytesIO(), "png", compress_level=0)
    random.seed(1)
    np.random.seed(1)


def _run_samples(caps: protocol.Caps) -> None:
    """Run the samples with their output thrown away."""
    stdout, stderr = os.dup(1), os.dup(2)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    for sample in SAMPLES:
        execute(sample, {"__name__": "__main__"}, Figures(caps))
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in (stdout, stderr, quiet):
        os.close(fd)
