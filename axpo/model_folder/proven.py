"""Know the models that come with this package, by their files.

`axpo model measure` notes the hash of what an engine served in `held_out.json`. To check those
files again would mean to import torch and transformers for what is known. Only the notes of this
package count: what lies in a folder from elsewhere proves nothing of it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from axpo.shipped import MODELS

FILE = "held_out.json"
_NOT_THE_MODEL = (FILE, "README.md")
SMALL = 100_000_000
"""Bytes up to which a folder is hashed in a moment; larger ones are checked, which is quicker."""


def is_proven(folder: Path) -> bool:
    """Tell whether a folder has exactly the files of a model that comes with this package."""
    if sum(part.stat().st_size for part in _files(folder)) > SMALL:
        return False
    served: set[str] = set()
    for file in MODELS.glob(f"*/{FILE}"):
        served |= {entry["model"] for entry in json.loads(file.read_text(encoding="utf-8"))}
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
