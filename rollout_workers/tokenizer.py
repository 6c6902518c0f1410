"""Load the tokenizer of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from axpo.quick_imports import quick_imports

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_QWEN = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
"""The class of every family's tokenizer, as tokenizer_config.json names it."""


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer that `AutoTokenizer.from_pretrained` gives for a folder.

    AutoTokenizer imports torch and the tables of all models to choose a class: 5 s of CPU. Qwen's
    class is loaded by itself: 1 s.
    """
    with quick_imports():
        if _named_class(Path(folder)) in _QWEN:
            from transformers import Qwen2Tokenizer

            return Qwen2Tokenizer.from_pretrained(folder)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)


def _named_class(folder: Path) -> str | None:
    """Return the class that tokenizer_config.json names.

    None: it names none, or brings code of its own, which is AutoTokenizer's to judge.
    """
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or "auto_map" in config:
        return None
    name = config.get("tokenizer_class")
    return name if isinstance(name, str) else None
