"""Write questions of your own as JSONL: a picture, a question and an answer in each row."""

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

FOLDER = Path("runs/own_data")
SIDE = 128


def write(split: str, count: int) -> None:
    """Write `count` rows and their pictures."""
    rows = []
    for index in range(count):
        rng = random.Random(f"{split}/{index}")
        dots = rng.randint(1, 4)
        name = f"{split}-{index}.png"
        picture_of(dots, rng).save(FOLDER / name)
        rows.append({"question": "how many dots?", "image": name, "answer": str(dots)})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (FOLDER / f"{split}.jsonl").write_text(text, encoding="utf-8")


def picture_of(dots: int, rng: random.Random) -> Image.Image:
    """Draw so many red dots, each in a cell of its own."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw = ImageDraw.Draw(picture)
    for cell in rng.sample(range(16), dots):
        left = 32 * (cell % 4) + rng.randint(4, 12)
        top = 32 * (cell // 4) + rng.randint(4, 12)
        draw.ellipse((left, top, left + 16, top + 16), fill="red")
    return picture


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    write("train", 64)
    write("held_out", 8)
    print(f"rows {FOLDER}/train.jsonl and held_out.jsonl")
