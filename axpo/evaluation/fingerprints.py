"""Tell whether two pictures or two questions are the same, if somebody wrote them anew.

A picture has two marks: a hash of its decoded pixels, which is the same whatever file they came
from, and a thumbnail, which survives another encoding or size. Thumbnails are 32 x 32 grey values
less their mean, divided by their length, so that the product of two is their correlation.

Why not a difference hash (dHash)? Drawings are mostly white, where its bits are noise. Of 60 drawn
bar charts, halved and saved as JPEG of quality 40, a dHash of 256 bits differed by up to 10 bits
from the original, and by 3 from another chart. The correlation of thumbnails was at least 0.99 to
the original and at most 0.95 to another chart. For line plots it was 0.98 and 0.91, for two photos
0.99 and above. Of triangles drawn with thin lines, halved ones reached 0.93 only.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from rollout_workers.trajectory import Floats, Pixels

SIDE = 32
ALIKE = 0.97
"""Correlation of the thumbnails from which two pictures count as one."""
FLAT = 2.0
"""Standard deviation of grey values below which a picture shows nothing: all blank ones correlate
by noise alone."""
FEWEST_WORDS = 3
"""Of a text that is left when a hint is cut off."""

LONGEST = 8000
"""Characters of a text that are compared: its beginning. Searching for options takes more than
linear time, and a data set may come from anyone."""

_MARKS = re.compile(r"<image\d*>")
_OPTIONS = re.compile(
    r"(?:\b(?:choices?|options?)\s*:?\s*)?(?:\(\s*A\s*\)|^[ \t]*A\s*[.):])\s.*?(?:\bB\s*[.):])",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
# Numbers whole, words, and the signs that change a formula.
_WORDS = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[-+*/=<>^%]")
_SPACES = re.compile(r"[^\S\n]+")
_DASHES = str.maketrans(dict.fromkeys("‐‑‒–—−", "-"))


@dataclass(frozen=True)
class Fingerprint:
    """What tells one picture from others."""

    digest: str  # of the decoded pixels
    thumbnail: Floats | None  # [SIDE * SIDE], of length 1; None: the picture is blank


def fingerprint(pixels: Pixels) -> Fingerprint:
    """Return the marks of a picture."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return Fingerprint(digest.hexdigest(), _thumbnail(pixels))


def stems(text: str) -> frozenset[str]:
    """Return a question's text as it is compared: without options, case, marks and punctuation.

    Benchmarks and data sets write a hint about the form of the answer into the last line, so the
    text without its last line counts too.
    """
    plain = unicodedata.normalize("NFKC", text[:LONGEST]).translate(_DASHES)[:LONGEST]
    plain = _SPACES.sub(" ", _MARKS.sub(" ", plain))
    found = _OPTIONS.search(plain)
    question = plain[: found.start()] if found else plain
    # A question may begin with its options.
    whole = _words(question) or _words(plain)
    before = _words(question.strip().rpartition("\n")[0])
    kept = [before] if len(before.split()) >= FEWEST_WORDS else []
    return frozenset(one for one in [whole, *kept] if one)


def _words(text: str) -> str:
    return " ".join(_WORDS.findall(text.casefold()))


def _thumbnail(pixels: Pixels) -> Floats | None:
    from PIL import Image

    grey = Image.fromarray(pixels).convert("L")
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32).ravel()
    small = small - small.mean()
    if small.std() < FLAT:
        return None
    return small / np.linalg.norm(small)
