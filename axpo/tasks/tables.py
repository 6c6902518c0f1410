"""Read rows that `datasets` knows: parquet files, folders, data sets that it saved, and the hub.

Only the columns that are wanted are read. Images stay encoded: `datasets` would decode them without
our limits.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from axpo.errors import AxpoError
from axpo.tasks.lines import Row, most_unpacked
from axpo.texts import one_line

if TYPE_CHECKING:
    import datasets

# `save_to_disk` leaves one of these files; `load_dataset` cannot read its folders.
_SAVED = ("dataset_info.json", "dataset_dict.json")


@dataclass(frozen=True)
class Place:
    """Where `datasets` finds rows."""

    path: str
    split: str
    name: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        name = f", configuration {self.name}" if self.name else ""
        return f"{self.path}{name}, split {self.split}"


class DatasetTable:
    """The rows of a data set, with the wanted columns alone."""

    def __init__(self, data: datasets.Dataset, columns: Collection[str] | None) -> None:
        """Keep the data set.

        Args:
            data: it stays on disk, and is read row by row.
            columns: those that are wanted; None: all.
        """
        self.columns: tuple[str, ...] | None = tuple(data.column_names)
        if columns is not None:
            data = data.select_columns([name for name in data.column_names if name in columns])
        for name, feature in data.features.items():
            encoded = _encoded(feature)
            if encoded != feature:
                data = data.cast_column(name, encoded)
        self._data = data
        self._short_floats = _short_floats(data.features)

    def __len__(self) -> int:
        return len(self._data)

    def row(self, number: int) -> Row:
        """Return a row; raise ValueError if it cannot be read."""
        try:
            row: dict[str, Any] = self._data[number]
        except Exception as error:  # of Arrow, of the disk
            raise ValueError(f"{type(error).__name__}: {one_line(str(error))}") from None
        for name, short in self._short_floats.items():
            if isinstance(row[name], float):
                row[name] = float(str(short(row[name])))
        return row

    def without_padding(self, row: Row) -> Row:
        """Return a row without the nulls that Arrow put into its objects.

        All objects of a column have the same keys there. What an object did not have is null.
        """
        features = self._data.features
        return {name: _unpadded(value, features[name]) for name, value in row.items()}


def read_dataset(place: Place, columns: Collection[str] | None) -> DatasetTable:
    """Return the rows of a parquet file, of a folder, or of a data set of the hub.

    Raises:
        AxpoError: there is no such data.
    """
    try:
        return DatasetTable(_load(place), columns)
    except AxpoError:
        raise
    except Exception as error:  # of `datasets`, of the hub, of the disk: anything may happen
        # The outermost error may say no more than that something went wrong.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = one_line(f"{type(cause).__name__}: {cause}")
        raise AxpoError(f"{place}: {reason}") from None


def _load(place: Place) -> datasets.Dataset:
    import datasets

    if place.path.endswith(".parquet"):
        for file in glob.glob(place.path):
            _check_filled(Path(file))
        # Files without a split have the one that is asked for; it may be a part: train[:100].
        split = re.sub(r"\W.*", "", place.split)
        files = {split: place.path}
        return datasets.load_dataset("parquet", data_files=files, split=place.split)
    if not any(Path(place.path, name).is_file() for name in _SAVED):
        return datasets.load_dataset(
            place.path, name=place.name, split=place.split, revision=place.revision
        )
    loaded = datasets.load_from_disk(place.path)
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if place.split not in loaded:
        raise AxpoError(f"{place}: no such split; there are {', '.join(map(str, loaded))}")
    return loaded[place.split]


def _check_filled(file: Path) -> None:
    """Raise AxpoError if a parquet file has no rows, or says that it unpacks without end.

    `datasets` would write all of it into its cache, and speaks of its batches if there are no rows.
    """
    import pyarrow.parquet

    if not file.is_file():
        return
    about = pyarrow.parquet.read_metadata(file)
    if about.num_rows == 0:
        raise AxpoError(f"{file}: no rows")
    unpacked = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
    most = most_unpacked(file.stat().st_size)
    if unpacked > most:
        raise AxpoError(f"{file}: unpacks to {unpacked:,} bytes, more than {most:,}")


def _short_floats(features: Mapping[str, Any]) -> dict[str, type[np.floating]]:
    """Return the columns of short floats. As one of Python, 0.1 of 32 bits is 0.10000000149."""
    known: dict[str, type[np.floating]] = {"float16": np.float16, "float32": np.float32}
    named = {name: known.get(getattr(one, "dtype", "")) for name, one in features.items()}
    return {name: short for name, short in named.items() if short is not None}


def _encoded(feature: Any) -> Any:
    """Return the same feature with its images left to us to decode, within our limits."""
    import datasets

    # Images, and sound, films and so on, which cost as much.
    if getattr(feature, "decode", False):
        encoded = copy(feature)
        encoded.decode = False
        return encoded
    if isinstance(feature, datasets.List):
        return datasets.List(_encoded(feature.feature), length=feature.length)
    if isinstance(feature, datasets.LargeList):
        return datasets.LargeList(_encoded(feature.feature))
    if isinstance(feature, dict):
        return {name: _encoded(inner) for name, inner in feature.items()}
    return feature


def _unpadded(value: Any, feature: Any) -> Any:
    if isinstance(feature, dict) and isinstance(value, Mapping):
        return {
            name: _unpadded(inner, feature[name])
            for name, inner in value.items()
            if inner is not None
        }
    inner_feature = getattr(feature, "feature", None)
    if isinstance(value, list) and inner_feature is not None:
        return [_unpadded(inner, inner_feature) for inner in value]
    return value
