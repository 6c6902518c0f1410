"""Write the labels of the wines: captioned pictures for the tool `image_search`.

That tool serves in evaluations alone. Each wine of the corpus that `search` reads has a label: a
photograph with the wine's number in real handwritten digits. Its caption is what the corpus says
of the wine. So a question of `small_fact` can be answered with a tool that training never showed.

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
from axpo.tasks.embedded.pictures import COLOURS, Split
from axpo.tasks.embedded.small_fact import Wine, shown, wines
from rollout_workers.trajectory import Pixels

CAPTIONS = "captions.jsonl"


def write(folder: Path) -> int:
    """Write a JPEG for each wine and `captions.jsonl`, always the same ones.

    As in the questions, digits of the test split are on the labels of held-out wines only.

    Args:
        folder: what is written into; it is made if it does not exist.

    Returns:
        The number of labels.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held_out = set(shown("test"))
    lines = []
    for wine in wines().values():
        file = f"{wine.id}.jpg"
        image = _draw(wine, "test" if wine.number in held_out else "train")
        Image.fromarray(image).save(folder / file, quality=90)
        row = {
            "file": file,
            "caption": wine.text,
            "title": f"Label of {wine.title}",
            "id": wine.id,
        }
        lines.append(json.dumps(row) + "\n")
    (folder / CAPTIONS).write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _draw(wine: Wine, split: Split) -> Pixels:
    rng = random.Random(f"label/{wine.number}")
    number = Number(rng.choice(sorted(COLOURS)), wine.number)
    return draw_numbers([number], rng, split)


if __name__ == "__main__":
    print(f"{write(Path(sys.argv[1]))} labels")
