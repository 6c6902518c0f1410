"""Invented rows of the nine benchmarks, in the schemas and folders that their files have.

Nothing here is copied from a benchmark. `write` makes a folder as `hf download` would leave it.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture
from PIL import ImageDraw

from axpo.evaluation.benchmark import Benchmark, Item, benchmarks

TEXT, NUMBER = Value("string"), Value("int64")
SMALL = (64, 48)


def picture(words: str, size: tuple[int, int] = SMALL) -> Picture.Image:
    image = Picture.new("RGB", size, "white")
    ImageDraw.Draw(image).text((4, 4), words, fill="black")
    return image


def write(data: Path) -> Path:
    """Write the files of all benchmarks below a folder, and return it."""
    for make in (
        mathvision,
        dynamath,
        math_vr,
        vstar,
        visual_probe,
        hr_bench,
        hr_mmsearch,
        mmsearch,
    ):
        make(data)
    return data


def load(name: str, data: Path, **options: Any) -> tuple[Benchmark, dict[str, Item]]:
    """Return a benchmark and its questions by their names."""
    benchmark = benchmarks.parse({"name": name, **options})
    return benchmark, {item.id: item for item in benchmark.load(data)}


def mathvision(data: Path) -> None:
    features = dict.fromkeys(("id", "question", "answer", "solution", "subject", "image"), TEXT)
    features |= {"options": List(TEXT), "level": NUMBER, "decoded_image": Image()}
    of_all = {"solution": None, "image": "images/1.jpg", "decoded_image": picture("figure")}
    rows = [
        {"id": "71", "question": "How many squares?\n<image1>", "options": [], "answer": "6"},
        {
            "id": "72",
            "question": "Which is <image1> next?",
            "options": list("ABCDE"),
            "answer": "D",
        },
        {
            "id": "73",
            "question": "How long is the rope in <image1> and <image2>?",
            "options": ["$2+\\sqrt{3}$", "4", "$\\frac{9}{2}$", "5", "6"],
            "answer": "C",
        },
    ]
    kinds = [("counting", 1), ("logic", 2), ("counting", 4)]
    rows = [
        {**of_all, **row, "subject": subject, "level": level}
        for row, (subject, level) in zip(rows, kinds, strict=True)
    ]
    _parquet(data / "MathVision" / "data" / "testmini-00000-of-00001.parquet", rows, features)


def dynamath(data: Path, variants: Sequence[int] = (1, 2)) -> None:
    names = ("id", "question", "image", "ground_truth", "answer_type", "subject", "knowledge_level")
    features = {**dict.fromkeys(names, TEXT), "decoded_image": Image()}
    for variant in variants:
        asked = [
            ("What is the period?", f"{6.283185 / variant:.4f}", "float", "analytic     geometry"),
            ("Which month is highest?", "May", "text", "statistics"),
            ("Is it even? choice: (A) odd (B) even (C) neither", "B", "multiple choice", "algebra"),
        ]
        rows = [
            {
                "id": str(number),
                "question": question,
                "image": f"images/{number}.png",
                "decoded_image": picture(f"{variant}/{number}"),
                "ground_truth": truth,
                "answer_type": kind,
                "subject": subject,
                "knowledge_level": "high school",
            }
            for number, (question, truth, kind, subject) in enumerate(asked, 1)
        ]
        name = f"sample_variant{variant}-00000-of-00001.parquet"
        _parquet(data / "DynaMath_Sample" / "data" / name, rows, features)


def math_vr(data: Path) -> None:
    features: dict[str, Any] = {
        "id": TEXT,
        "question": TEXT,
        "category": TEXT,
        "answers": List(TEXT),
    }
    features |= {"number_of_answers": NUMBER, "total_score": NUMBER}
    features |= {f"image{number}": Image() for number in range(1, 9)}
    none = {f"image{number}": None for number in range(1, 9)}
    rows = [
        {
            **none,
            "id": "0",
            "question": "In a triangle $AB = AC$ and $\\angle A = 40^{\\circ}$. Find both others.",
            "category": "text",
            "answers": ["$70^{\\circ}$", "$70^{\\circ}$"],
        },
        {
            **none,
            "id": "1",
            "question": "See <image2> and <image1>. Find the smallest $PA + PB$.",
            "category": "multimodal",
            "answers": ["$2\\sqrt{2}$"],
            "image1": picture("first", (60, 40)),
            "image2": picture("second", (80, 40)),
        },
    ]
    rows = [{**row, "number_of_answers": len(row["answers"]), "total_score": 4} for row in rows]
    _parquet(data / "Math-VR-bench" / "test-00000-of-00001.parquet", rows, features)


def vstar(data: Path) -> None:
    folder = data / "vstar_bench"
    asked = [
        (
            "direct_attributes",
            "sa_1.jpg",
            "What is the color of the cup?",
            "red blue green white",
            "B",
        ),
        (
            "relative_position",
            "sa_2.jpg",
            "Is the dog left or right of the bench?",
            "right left",
            "A",
        ),
    ]
    rows = []
    for number, (category, name, question, options, label) in enumerate(asked):
        (folder / category).mkdir(parents=True, exist_ok=True)
        picture(question, (320, 240)).save(folder / category / name)
        lines = [f"({'ABCD'[i]}) {option}" for i, option in enumerate(options.split())]
        sentence = "Answer with the option's letter from the given choices directly."
        text = "\n".join([question, *lines, sentence])
        image = f"{category}/{name}"
        row = {"image": image, "text": text, "category": category, "label": label}
        rows.append({**row, "question_id": number})
    _lines(folder / "test_questions.jsonl", rows)


def visual_probe(data: Path, level: str = "Hard") -> None:
    folder = data / f"VisualProbe_{level}"
    (folder / "data").mkdir(parents=True)
    picture("kiosk", (400, 300)).save(folder / "data" / "1.jpg")
    asked = [("What is written on the smallest sign?", "Exit"), ("How many chairs?", "4")]
    rows = [
        {
            "images": [f"VisualProbe_{level}/data/1.jpg"],
            "doc_id": f"visual_probe_{level.lower()}_{number}",
            "problem": f"<image>\n{question}",
            "solution": truth,
            "data_source": f"visual_probe_{level.lower()}",
        }
        for number, (question, truth) in enumerate(asked)
    ]
    (folder / "val.json").write_text(json.dumps(rows, indent=1))


def hr_bench(data: Path, sizes: dict[str, tuple[int, int]] | None = None) -> None:
    names = ("question", "answer", "category", "A", "B", "C", "D", "cycle_category", "image")
    features = {**dict.fromkeys(names, TEXT), "index": NUMBER}
    asked = [
        ("What is the number on the boat?", ["12", "21", "17", "71"], "17", "single"),
        (
            "Where is the van?",
            ["left of it", "right of it", "above", "below"],
            "left of it",
            "cross",
        ),
    ]
    for name, size in (sizes or {"4k": (400, 300), "8k": (768, 432)}).items():
        rows = []
        for question, options, right, category in asked:
            encoded = base64.b64encode(jpeg(picture(question, size))).decode()
            for turn in range(4):
                turned = options[turn:] + options[:turn]
                row = {"index": len(rows), "question": question, "category": category}
                row |= {"answer": "ABCD"[turned.index(right)], "cycle_category": str(turn)}
                rows.append({**row, "image": encoded, **dict(zip("ABCD", turned, strict=True))})
        _parquet(data / "HR-Bench" / f"hr_bench_{name}.parquet", rows, features)


def hr_mmsearch(data: Path) -> None:
    folder = data / "HR-MMSearch"
    (folder / "images").mkdir(parents=True)
    picture("banner", (384, 216)).save(folder / "images" / "0.jpg")
    authors = {
        "prompt": [{"role": "user", "content": "<image>Who won the race on the banner?"}],
        "image": ["images/0.jpg"],
        "reward_model": {"style": "rule", "ground_truth": ["Jane Example", "J. Example"]},
        "image_search_title_list": ["Race banner", "Another race"],
        "image_search_thumbnail_list": ["images/0.jpg"],
    }
    hub = {
        "query": "In which city has the company its head office?",
        "query_image": "images/0.jpg",
        "ground_truth": "Exampletown",
    }
    _lines(folder / "data.jsonl", [authors])
    _lines(folder / "hub.jsonl", [hub])


def mmsearch(data: Path) -> None:
    names = ("sample_id", "query", "area", "subfield", "timestamp", "gt_requery", "gt_answer")
    features = dict.fromkeys(names, TEXT)
    features |= {"query_image": Image(), "image_search_result": Image()}
    features |= {"alternative_gt_answers": List(TEXT)}
    of_all = {"timestamp": "2024-08-01", "gt_requery": "made up"}
    rows = [
        {
            **of_all,
            "sample_id": "news_1",
            "query": "When does this film open?",
            "query_image": picture("poster"),
            "image_search_result": picture("page of results", (90, 60)),
            "area": "news",
            "subfield": "entertainment",
            "gt_answer": "October 4, 2024",
            "alternative_gt_answers": ["2024-10-04"],
        },
        {
            **of_all,
            "sample_id": "knowledge_1",
            "query": "Which university published Made-Up Nets?",
            "query_image": None,
            "image_search_result": None,
            "area": "knowledge",
            "subfield": "research",
            "gt_answer": "Example University",
            "alternative_gt_answers": [],
        },
    ]
    _parquet(data / "MMSearch" / "end2end" / "end2end.parquet", rows, features)


def _parquet(file: Path, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(file)


def _lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def jpeg(image: Picture.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue()
