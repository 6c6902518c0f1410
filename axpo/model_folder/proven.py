"""Know the model folders whose very files an engine has served already.

`axpo model measure` notes their hash in `held_out.json`. To check such a folder again would mean
to import torch and transformers for what is known.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

FILE = "held_out.json"
_NOT_THE_MODEL = (FILE, "README.md")
SMALL = 100_000_000
"""Bytes up to which a folder is hashed in a moment; larger ones are checked, which is quicker."""


def is_proven(folder: Path) -> bool:
    """Tell whether an engine has served the files of a folder as they are."""
    file = folder / FILE
    if not file.is_file() or sum(part.stat().st_size for part in _files(folder)) > SMALL:
        return False
    try:
        served = {entry["model"] for entry in json.loads(file.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return model_hash(folder) in served


def model_hash(folder: Path) -> str:
    """Return a hash of the names and contents of a model's files; its card is left out."""
    of_files = hashlib.sha256()
    for file in _files(folder):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        of_files.update(f"{file.name} {content}\n".encode())
    return of_files.hexdigest()


def _files(folder: Path) -> list[Path]:
    files = [file for file in folder.iterdir() if file.is_file()]
    return sorted(file for file in files if file.name not in _NOT_THE_MODEL)
