"""Read rows with images from JSONL files and Hugging Face datasets."""

from __future__ import annotations

import base64
import binascii
import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from axpo.errors import AxpoError
from tool_server.images import ImageLimits

if TYPE_CHECKING:
    import datasets

Row = Mapping[str, Any]
MARK = "<image>"
"""Says in the text of a row where an image stands."""


class Source(BaseModel):
    """Where rows come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        description="a .jsonl file, a folder that `datasets` reads or saved, "
        "or the name of a dataset on the hub"
    )
    split: str = Field("train", description="split of a dataset; a .jsonl file has none")

    @property
    def folder(self) -> Path:
        """Return the folder that the paths of images are relative to."""
        return Path(self.path).parent if self.path.endswith(".jsonl") else Path()

    def rows(self) -> Sequence[Row]:
        """Return every row, with its images encoded as they were stored.

        Raises:
            AxpoError: there is no such data, it has no rows, or a line is no JSON object.
        """
        rows: Sequence[Row]
        if self.path.endswith(".jsonl"):
            rows = _read_lines(Path(self.path))
        else:
            rows = self._read_dataset()
        if not len(rows):
            raise AxpoError(f"{self.path}: no rows")
        return rows

    def _read_dataset(self) -> datasets.Dataset:
        try:
            rows = self._load_dataset()
            # Images stay encoded: `datasets` would decode without our limits.
            for name, feature in rows.features.items():
                encoded = _encoded(feature)
                if encoded != feature:
                    rows = rows.cast_column(name, encoded)
            return rows
        except Exception as error:  # of `datasets`, of the hub, of the disk: anything may happen
            kind, first_line = type(error).__name__, str(error).partition("\n")[0]
            where = f"{self.path}, split {self.split}"
            raise AxpoError(f"{where}: {kind}: {first_line}") from None

    def _load_dataset(self) -> datasets.Dataset:
        import datasets

        # `save_to_disk` leaves one of these files; `load_dataset` cannot read its folders.
        marks = [Path(self.path, name) for name in ("dataset_info.json", "dataset_dict.json")]
        saved = any(mark.is_file() for mark in marks)
        if not saved:
            return datasets.load_dataset(self.path, split=self.split)
        loaded = datasets.load_from_disk(self.path)
        return loaded[self.split] if isinstance(loaded, datasets.DatasetDict) else loaded


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


def image_source(image: Any, folder: Path) -> Path | bytes:
    """Return what `tool_server.images` decodes.

    Args:
        image: a file name, bytes, a `data:` address, or what `datasets` stores.
        folder: the folder that file names are relative to.

    Raises:
        ValueError: `image` is none of these, or the address cannot be decoded.
    """
    # `datasets` stores an image as {"bytes": ..., "path": ...}, one of them None.
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str) or not image:
        raise ValueError(f"expected a path, bytes or a data: address, got {type(image).__name__}")
    if not image.startswith("data:"):
        return folder / image
    try:
        return base64.b64decode(image.partition("base64,")[2], validate=True)
    except binascii.Error as error:
        raise ValueError(f"data: address: {error}") from None


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


def _read_lines(file: Path) -> list[Row]:
    if not file.is_file():
        raise AxpoError(f"{file}: no such file")
    rows: list[Row] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        where = f"{file}, row {len(rows) + 1}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise AxpoError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise AxpoError(f"{where}: expected an object, found {type(row).__name__}")
        rows.append(row)
    return rows


def _encoded(feature: Any) -> Any:
    """Return the same feature with its images left to us to decode, within our limits."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_encoded(feature.feature), length=feature.length)
    return feature
