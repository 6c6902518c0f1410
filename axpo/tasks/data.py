"""Rows with images, from JSONL files and Hugging Face datasets: what tasks and demonstrations are read from."""

from __future__ import annotations

import base64
import binascii
import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from axpo.errors import AxpoError
from tool_server.images import ImageLimits


class Source(BaseModel):
    """Where rows come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(
        description="a .jsonl file, a folder that `datasets` reads or saved, or the name of a dataset on the hub"
    )
    split: str = Field("train", description="split of a dataset; a .jsonl file has none")

    @property
    def folder(self) -> Path:
        """To which the images' paths are relative."""
        return Path(self.path).parent if self.path.endswith(".jsonl") else Path()

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Every row, images encoded as they were stored. Raises AxpoError: no such data, no rows, a line that is no JSON object."""
        rows = _lines(Path(self.path)) if self.path.endswith(".jsonl") else self._dataset()
        if not len(rows):
            raise AxpoError(f"{self.path}: no rows")
        return rows

    def _dataset(self) -> Any:
        import datasets

        try:
            if any(
                Path(self.path, name).is_file()
                for name in ("dataset_info.json", "dataset_dict.json")
            ):
                loaded = datasets.load_from_disk(self.path)
                rows = loaded[self.split] if isinstance(loaded, datasets.DatasetDict) else loaded
            else:
                rows = datasets.load_dataset(self.path, split=self.split)
            for name, feature in rows.features.items():
                rows = (
                    rows.cast_column(name, encoded)
                    if (encoded := _encoded(feature)) != feature
                    else rows
                )
            return rows
        except Exception as error:
            raise AxpoError(
                f"{self.path}, split {self.split}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            ) from None


def image_source(image: Any, folder: Path) -> Path | bytes:
    """What `tool_server.images` decodes: of a file name, bytes, a `data:` address, or what `datasets` stores. Raises ValueError."""
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


@lru_cache(maxsize=8)
def epoch_order(count: int, seed: str) -> tuple[int, ...]:
    """A permutation of `count` rows. Kept for the epochs under way: to shuffle 1,000,000 rows takes half a second."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return tuple(order)


def _lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise AxpoError(f"{file}: no such file")
    rows: list[dict[str, Any]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        where = f"{file}, row {len(rows) + 1}"
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise AxpoError(f"{where}: not JSON: {error}") from None
        if not isinstance(rows[-1], dict):
            raise AxpoError(f"{where}: expected an object, found {type(rows[-1]).__name__}")
    return rows


def _encoded(feature: Any) -> Any:
    """The same feature, its images left to us to decode, within our limits."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_encoded(feature.feature), length=feature.length)
    return feature


class DataConfig(Source):
    """Where demonstrations come from."""

    images: ImageLimits = Field(
        default_factory=ImageLimits, description="limits of the rows' images"
    )
