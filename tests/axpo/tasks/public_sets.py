"""Invented rows of public training sets, in the schemas and folders that `hf download` leaves.

Nothing here is copied from a set. `write` makes all of them below a folder.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture
from PIL import ImageDraw

TEXT, NUMBER = Value("string"), Value("int64")
BYTES = List({"bytes": Value("binary"), "path": TEXT})
CHAT = List({"content": TEXT, "role": TEXT})
SYSTEM = "You are a helpful assistant.\n# Tools\nCall image_zoom_in_tool inside <tool_call>."


def picture(words: str, size: tuple[int, int] = (96, 64)) -> Picture.Image:
    """Return a picture that no other words have."""
    image = Picture.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for number, letter in enumerate(words):
        shade = (ord(letter) * 37 % 256, ord(letter) * 91 % 256, number * 53 % 256)
        left, top = ord(letter) * 7 % (size[0] - 20), (ord(letter) * 13 + number * 11) % 44
        draw.rectangle((left, top, left + 18, top + 18), fill=shade)
    draw.text((4, 4), words, fill="black")
    return image


def encoded(words: str, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture(words).save(file, form)
    return file.getvalue()


def write(data: Path) -> Path:
    """Write the files of all sets below a folder, and return it."""
    for make in (deepeyes, visual_probe, mmk12, virl39k, fvqa):
        make(data)
    return data


def deepeyes(data: Path) -> None:
    """Write two of its three files: photographs, and mathematics without a tool."""
    options = "\nA. red\nB. blue\nC. green"
    photos = [
        _chat(f"photo {number}", f"What is the colour of cup {number}?{options}", "B. blue")
        for number in range(100)
    ]
    _parquet(data / "DeepEyes-Datasets-47k" / "data_0.1.2_visual_toolbox_v2.parquet", photos, VERL)
    sums = [
        _chat(f"sum {number}", f"What is {number} + 1?", str(number + 1)) for number in range(100)
    ]
    for row in sums:
        row |= {"env_name": None, "data_source": "thinklite_eureka", "ability": "math"}
    _parquet(data / "DeepEyes-Datasets-47k" / "data_thinklite_reasoning_acc.parquet", sums, VERL)


VERL = {
    "data_source": TEXT,
    "prompt": CHAT,
    "images": BYTES,
    "ability": TEXT,
    "env_name": TEXT,
    "reward_model": {"ground_truth": TEXT, "style": TEXT},
    "extra_info": {"answer": TEXT, "index": TEXT, "question": TEXT, "split": TEXT},
}


def _chat(words: str, question: str, answer: str) -> dict[str, Any]:
    asked = f"<image>\n{question}\nThink first, call **image_zoom_in_tool** if needed, then answer."
    return {
        "data_source": "vstar",
        "prompt": [{"content": SYSTEM, "role": "system"}, {"content": asked, "role": "user"}],
        "images": [{"bytes": encoded(words, "JPEG"), "path": None}],
        "ability": "vl_chart",
        "env_name": "visual_toolbox_v2",
        "reward_model": {"ground_truth": answer, "style": "model"},
        "extra_info": {"answer": answer, "index": "0", "question": question, "split": "train"},
    }


def visual_probe(data: Path) -> None:
    """Write the training set and the easy benchmark; paths begin with the set's own name."""
    sets = {"VisualProbe_train": ("train.json", 8), "VisualProbe_Easy": ("val.json", 2)}
    for name, (file, count) in sets.items():
        folder = data / name
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(count):
            (folder / "data" / f"{number}.jpg").write_bytes(encoded(f"{name} {number}", "JPEG"))
            row = {
                "images": [f"{name}/data/{number}.jpg"],
                "doc_id": str(number),
                "problem": f"<image>\nWhich word is on board {number}?",
                "solution": f"Word {number}.",
                "data_source": "visual_probe_train",
            }
            rows.append(row)
        (folder / file).write_text(json.dumps(rows))


def mmk12(data: Path) -> None:
    features = dict.fromkeys(("id", "question", "answer", "subject"), TEXT) | {"image": Image()}
    for split, count in (("train", 6), ("test", 20)):
        rows = [
            {
                "id": f"{split}-{number}",
                "question": f"As shown, find the angle of corner {number} ({split}).",
                "answer": f"${10 * number + 5}^\\circ$",
                "subject": "math",
                "image": picture(f"{split} angle {number}"),
            }
            for number in range(count)
        ]
        _parquet(data / "MMK12" / "data" / f"{split}-00000-of-00001.parquet", rows, features)


def virl39k(data: Path) -> None:
    """Write rows with one image, with two, and with none; images are files out of images.zip."""
    folder = data / "ViRL39K"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(100):
        places = [f"images/{number}-{place}.png" for place in range((1, 2, 1, 0)[number % 4])]
        for place in places:
            (folder / place).write_bytes(encoded(place))
        row = {
            "qid": f"q{number}",
            "question": "<image>" * len(places) + f"How many squares are in figure {number}?",
            "answer": f"\\boxed{{{number}}}",
            "image": places,
            "source": "Processed" if number < 96 else "MMK12",
            "category": "Geometry",
            "PassRate_32BTrained": number % 8 / 8,
            "PassRate_7BBase": None,
        }
        rows.append(row)
    numbers = dict.fromkeys(("PassRate_32BTrained", "PassRate_7BBase"), Value("float64"))
    texts = dict.fromkeys(("qid", "question", "answer", "source", "category"), TEXT)
    _parquet(folder / "39Krelease.parquet", rows, texts | numbers | {"image": List(TEXT)})


def fvqa(data: Path) -> None:
    features = {
        "prompt": CHAT,
        "images": BYTES,
        "reward_model": {"candidate_answers": TEXT, "ground_truth": TEXT, "style": TEXT},
        "data_source": TEXT,
        "image_urls": Value("null"),
        "data_id": TEXT,
        "category": TEXT,
    }
    for split, count in (("train", 8), ("test", 20)):
        rows = [
            {
                "prompt": [{"content": f"Who built tower {number} ({split})?", "role": "user"}],
                "images": [{"bytes": encoded(f"{split} tower {number}"), "path": None}],
                "reward_model": {
                    "candidate_answers": '["A. Builder", "Builder"]' if number % 2 else "[]",
                    "ground_truth": f"Ann Builder {number}",
                    "style": "rule",
                },
                "data_source": f"mmsearch_r1/fvqa_{split}",
                "image_urls": None,
                "data_id": f"fvqa_{split}_{number}",
                "category": "search_required" if number % 4 else "search_free",
            }
            for number in range(count)
        ]
        _parquet(data / "FVQA" / f"fvqa_{split}.parquet", rows, features)


def _parquet(file: Path, rows: list[dict[str, Any]], features: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, Features(dict(features))).to_parquet(str(file))
