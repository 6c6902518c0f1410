"""Say where rows with images are, and find the images of a row."""

from __future__ import annotations

import base64
import binascii
import os
import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from axpo.errors import AxpoError
from axpo.tasks.left_out import COMMAND, left_out
from axpo.tasks.lines import Row, Table, read_json, read_lines
from axpo.tasks.separated import read_table
from axpo.tasks.tables import Place, read_dataset
from axpo.texts import check_text, one_line, shown
from tool_server.images import ImageLimits

__all__ = ["MARK", "DataConfig", "DataImages", "Folders", "Row", "Source", "Table"]

MAX_BAD_ROWS = 0.3
"""Share of rows. If more are bad, most likely the recipe names the wrong columns."""
MARK = "<image>"
"""Says in the text of a row where an image stands."""
# What PNG, JPEG, GIF and WEBP begin with, in base64.
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/\s]{16,}={0,2}\s*")
_ADDRESS = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_PATH_CHARACTERS = 4096  # Linux takes no longer path


class Source(BaseModel):
    """Where rows come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        description="a .jsonl, .json, .tsv, .csv or .parquet file (the first also as .gz), "
        "a folder that `datasets` reads or saved, or the name of a data set on the hub"
    )
    split: str = Field("train", description="split of a data set; a file has none")
    name: str | None = Field(None, description="configuration of a data set that has several")
    revision: str | None = Field(
        None, description="commit, tag or branch of a data set on the hub; None: its newest state"
    )
    image_root: str | None = Field(
        None, description="folder that paths of images are relative to; None: that of the rows"
    )
    image_folders: tuple[str, ...] = Field(
        (),
        description="folders outside that of the rows which paths of images may lead into",
    )
    without: str | None = Field(
        None, description=f"report of `{COMMAND}`: the rows that it names are left out"
    )

    @model_validator(mode="after")
    def _of_a_data_set(self) -> Source:
        """Refuse what means nothing for a file."""
        ending = _ending(self.path)
        given = {"name": self.name, "revision": self.revision}
        if ending != ".parquet" and self.split != "train":
            given["split"] = self.split
        for field, value in given.items():
            if ending is not None and value is not None:
                raise ValueError(f"{field}={value!r}: means nothing for a {ending} file")
        return self

    @property
    def is_file(self) -> bool:
        """Whether the rows are in one file, whose folder has the images."""
        return _ending(self.path) is not None

    @property
    def folders(self) -> Folders:
        """Return where the images of the rows may be."""
        base = Path(self.path)
        if self.is_file:
            base = base.parent
        elif not base.is_dir():
            base = Path()
        if self.image_root is not None:
            base = Path(self.image_root)
        allowed = [Path(folder) for folder in self.image_folders]
        # What `datasets` downloaded or unpacked lies in its caches.
        allowed += [base] if self.is_file else [base, *_caches()]
        return Folders(base, tuple(folder.resolve() for folder in allowed))

    def identity(self) -> dict[str, Any]:
        """Return what a report of contamination calls this source."""
        return self.model_dump(include={"path", "split", "name", "revision"})

    def left_out(self, rows: int) -> frozenset[int]:
        """Return which of so many rows the report names, from 0; raise AxpoError as it does."""
        if self.without is None:
            return frozenset()
        return left_out(Path(self.without), self.identity(), rows)

    def rows(self, columns: Collection[str] | None = None) -> Table:
        """Return the rows, with their images encoded as they were stored.

        Args:
            columns: those that will be read; None: all.

        Raises:
            AxpoError: there is no such data, it has no rows, or it cannot be read as a whole. A
                single row that cannot be read is told when it is asked for.
        """
        try:
            table = self._read(columns)
        except OSError as error:  # a name that no file can have, a disk that fails
            raise AxpoError(f"{one_line(self.path, 80)}: {error.strerror or error}") from None
        if not len(table):
            raise AxpoError(f"{self.path}: no rows")
        return table

    def _read(self, columns: Collection[str] | None) -> Table:
        path = Path(self.path)
        match _ending(self.path):
            case ".jsonl" | ".ndjson":
                return read_lines(path)
            case ".json":
                return read_json(path)
            case ".tsv":
                return read_table(path, "\t")
            case ".csv":
                return read_table(path, ",")
        if path.is_file() and not self.is_file:
            raise AxpoError(
                f"{self.path}: expected a file whose name ends with .jsonl, .jsonl.gz, .json, "
                ".tsv, .csv or .parquet"
            )
        if self.is_file and not path.is_file() and "*" not in self.path:
            raise AxpoError(f"{self.path}: no such file")
        return read_dataset(Place(self.path, self.split, self.name, self.revision), columns)


@dataclass(frozen=True)
class Folders:
    """Where the images of rows may be.

    A data set may come from anyone. So its paths do not lead to other files of this machine, unless
    the recipe says so.
    """

    base: Path  # what paths are relative to
    allowed: tuple[Path, ...]  # resolved

    def file(self, name: str) -> Path:
        """Return the file of an image.

        Raises:
            ValueError: the name leads out of the allowed folders, or is none.
        """
        if len(name) > _PATH_CHARACTERS or "\0" in name:
            raise ValueError(
                f"expected a path, a data: address or base64 of a PNG, JPEG, GIF or WEBP; found "
                f"{shown(name)} ({len(name):,} characters)"
            )
        check_text(name)
        if re.match(r"[a-z]{2,10}://", name, re.IGNORECASE):
            raise ValueError(f"{shown(name)} is an address; expected a file, nothing is downloaded")
        # Links are followed here, so what is opened is what was looked at. `Path.resolve` would
        # raise on a loop of links; this leaves a path that nobody can open.
        file = Path(os.path.realpath(self.base / name))
        if not any(file.is_relative_to(folder) for folder in self.allowed):
            raise ValueError(
                f"{shown(name)} leads out of {self.base}; if that is meant, name the folder in "
                "`image_folders`"
            )
        return file


class DataImages(ImageLimits):
    """What is decoded of a user's own data, which may hold large photographs."""

    max_pixels: int = Field(64_000_000, ge=1, le=89_478_485, description="a larger one is refused")
    max_bytes: int = Field(100_000_000, ge=1, description="of the file")
    scale_above: int | None = Field(
        16_000_000,
        ge=1,
        description="pixels in all; a larger image is scaled down to so many. None: none is scaled",
    )


class DataConfig(Source):
    """Where demonstrations come from."""

    images: DataImages = Field(default_factory=DataImages, description="limits of the rows' images")
    max_bad_rows: float = Field(
        MAX_BAD_ROWS, ge=0, le=1, description="share of rows that may be bad: they are set aside"
    )


def image_source(image: Any, folders: Folders) -> Path | bytes:
    """Return what `tool_server.images` decodes.

    Args:
        image: a file name, bytes, a `data:` address, base64, or what `datasets` stores.
        folders: where file names may lead.

    Raises:
        ValueError: `image` is none of these, or cannot be decoded.
    """
    # `datasets` stores an image as {"bytes": ..., "path": ...}, one of them None.
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str) or not image:
        found = type(image).__name__
        raise ValueError(f"expected a path, bytes or a data: address, got {found}")
    if image[:5].casefold() == "data:":
        address = _ADDRESS.match(image)
        if address is None:
            raise ValueError(f"data: address: expected data:...;base64, found {shown(image)}")
        return _bytes(image[address.end() :])
    if _BASE64.fullmatch(image):
        return _bytes(image)
    return folders.file(image)


def listed(value: Any) -> list[Any]:
    """Return a column's images: one image is a list of one."""
    return value if isinstance(value, list) else [value]


def without_marks(text: str, images: int) -> tuple[str, tuple[int, ...]]:
    """Return a question's text without its `<image>` marks, and where its images stand.

    Args:
        text: with a mark for each image, in order, or with none.
        images: how many images the question has.

    Returns:
        The text, and of each image the character before which it stands. No places if all images
        stand before the text.

    Raises:
        ValueError: there are marks, but not as many as images.
    """
    pieces = text.strip().split(MARK)
    marks = len(pieces) - 1
    if marks not in (0, images):
        raise ValueError(f"{marks} {MARK} marks for {images} images; expected as many, or none")
    places = tuple(accumulate(len(piece) for piece in pieces[:-1]))
    return "".join(pieces), places if any(places) else ()


@lru_cache(maxsize=8)
def epoch_order(count: int, seed: str) -> tuple[int, ...]:
    """Return a permutation of `count` rows.

    It is kept for the epochs under way: to shuffle 1,000,000 rows takes half a second.
    """
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return tuple(order)


def _ending(path: str) -> str | None:
    """Return the ending of a file that is read by its path; None: `datasets` is asked."""
    plain = path.removesuffix(".gz")
    endings = [".jsonl", ".ndjson", ".json", ".tsv", ".csv"]
    if plain == path:
        endings.append(".parquet")
    return next((ending for ending in endings if plain.endswith(ending)), None)


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"base64: {error}") from None


def _caches() -> tuple[Path, ...]:
    import datasets
    from huggingface_hub import constants

    folders = (datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    return tuple(Path(folder) for folder in folders)
