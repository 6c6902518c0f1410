"""Write the rows of this project: `python make_rows.py`. Replace them by your own.

A row is one line of JSON with a question, the name of a picture beside it, and the right answer.
"""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path(__file__).parent / "data"
SIDE = 128
CELL = 32
COLORS = ("red", "green", "blue")


def write_all() -> None:
    """Write the rows of training, and those that are held out."""
    FOLDER.mkdir(exist_ok=True)
    write("train", 64)
    write("held_out", 16)


def write(split: str, count: int) -> None:
    """Write `count` rows and their pictures."""
    lines = []
    for index in range(count):
        rng = random.Random(f"{split}/{index}")
        color, dots = rng.choice(COLORS), rng.randint(1, 4)
        name = f"{split}-{index}.png"
        picture_of(color, dots, rng).save(FOLDER / name)
        question = f"How many {color} dots are there?"
        row = {"question": question, "image": name, "answer": str(dots), "color": color}
        lines.append(json.dumps(row) + "\n")
    (FOLDER / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


def picture_of(color: str, dots: int, rng: random.Random) -> Image.Image:
    """Draw so many dots of a color among others, each in a cell of its own."""
    others = [other for other in COLORS if other != color]
    colors = [color] * dots + [rng.choice(others) for _ in range(6)]
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    for cell, shown in zip(rng.sample(range(16), len(colors)), colors, strict=True):
        left = CELL * (cell % 4) + rng.randint(4, 12)
        top = CELL * (cell // 4) + rng.randint(4, 12)
        draw.ellipse((left, top, left + 16, top + 16), fill=shown)
    return picture


if __name__ == "__main__":
    write_all()
    print(f"rows {FOLDER}/train.jsonl and held_out.jsonl")
