"""The labels of the wines: captioned pictures for the tool `image_search`, which serves in evaluations alone.

Each wine of the corpus that `search` reads has a label, a photograph with the wine's number in real handwritten digits, and its caption is
what the corpus says of the wine. So a question of `small_fact` can be answered with a tool that training never showed.

    python -m axpo.tasks.embedded.labels runs/labels
    axpo index build runs/labels --out runs/labels.index
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from PIL import Image

from axpo.tasks.embedded.numbers import Number, draw_numbers
from axpo.tasks.embedded.small_digit import COLOURS
from axpo.tasks.embedded.small_fact import shown, wines

CAPTIONS = "captions.jsonl"


def write(folder: Path) -> int:
    """A JPEG a wine and `captions.jsonl`, always the same, into a folder that is made where it is not there; how many. Raises OSError.

    As in the questions, digits of the test split are on the labels of held-out wines only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out = set(shown("test"))
    rows = []
    for number, wine in wines().items():
        rng = random.Random(f"label/{number}")
        image = draw_numbers(
            [Number(rng.choice(sorted(COLOURS)), number)],
            rng,
            "test" if number in held_out else "train",
        )
        Image.fromarray(image).save(folder / f"{wine.id}.jpg", quality=90)
        rows.append(
            {
                "file": f"{wine.id}.jpg",
                "caption": wine.text,
                "title": f"Label of {wine.title}",
                "id": wine.id,
            }
        )
    (folder / CAPTIONS).write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return len(rows)


if __name__ == "__main__":
    print(f"{write(Path(sys.argv[1]))} labels")
