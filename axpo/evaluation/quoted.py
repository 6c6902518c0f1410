"""The numbers of the AXPO paper (arXiv 2605.28774), quoted for reference beside one's own.

The paper's prompts, judge and sampling settings are not published, so the two need not agree.
"""

from __future__ import annotations

_NAMES = (
    *("mathvision", "dynamath", "math-vr", "vstar", "visualprobe-hard"),
    *("hrbench-4k", "hrbench-8k", "hr-mmsearch", "mmsearch"),
)
_PASS1 = {
    "8B SFT+GRPO": (55.3, 78.2, 60.4, 87.7, 40.1, 79.5, 74.9, 24.4, 44.0),
    "8B SFT+AXPO": (56.1, 79.0, 60.6, 87.8, 45.8, 83.3, 77.0, 25.9, 45.0),
    "32B Base": (56.5, 83.3, 64.1, 89.1, 40.3, 85.2, 78.9, 22.8, 46.1),
}
_PASS4 = {
    "2B Base": (32.6, 76.6, 28.9, 81.7, 15.1, 79.0, 77.0, 18.7, 46.3),
    "2B SFT+GRPO": (55.9, 80.2, 58.0, 94.2, 60.4, 83.5, 85.5, 28.2, 55.7),
    "2B SFT+AXPO": (61.2, 83.6, 60.0, 94.2, 60.4, 88.5, 88.0, 33.4, 57.3),
    "4B Base": (64.8, 82.6, 65.1, 95.8, 44.3, 83.5, 81.0, 27.5, 55.7),
    "4B SFT+GRPO": (69.7, 85.8, 71.9, 97.9, 57.5, 88.0, 84.5, 33.1, 57.0),
    "4B SFT+AXPO": (74.3, 87.0, 72.1, 97.9, 65.1, 91.0, 90.0, 32.1, 57.0),
    "8B Base": (63.5, 85.2, 68.3, 92.7, 55.7, 85.5, 82.5, 33.8, 59.0),
    "8B SFT+GRPO": (75.0, 87.0, 74.3, 96.9, 63.2, 87.5, 84.5, 38.0, 59.3),
    "8B SFT+AXPO": (75.7, 87.0, 74.1, 95.3, 67.9, 90.0, 89.0, 42.0, 61.0),
    "32B Base": (73.0, 89.4, 73.9, 97.4, 64.2, 90.5, 90.0, 38.0, 59.3),
}


def quoted(benchmark: str) -> dict[str, dict[str, float]]:
    """Return the paper's numbers of a benchmark as shares, by model: `pass1` and `pass4`.

    `{}` for a benchmark that is not the paper's.
    """
    if benchmark not in _NAMES:
        return {}
    column = _NAMES.index(benchmark)
    found: dict[str, dict[str, float]] = {}
    # Pass@4 is published of all models, so its order is that of the rows.
    for name, table in (("pass4", _PASS4), ("pass1", _PASS1)):
        for model, row in table.items():
            found.setdefault(model, {})[name] = round(row[column] / 100, 4)
    return found
