"""Questions and chats for the real-shaped folders, and the program that is run on them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.real.folder import CALL

PHOTO = (1280, 960)
"""40 x 30 = 1,200 tokens of Qwen3-VL."""
SMALL = (20, 20)
RIGHT, WRONG = "7", "8"
"""What a speaking folder answers, and what it never does."""


def axpo(*arguments: str) -> str:
    """Run the program as a user does, and return what it prints."""
    command = [sys.executable, "-m", "axpo.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


def picture(folder: Path, size: tuple[int, int], seed: int = 0) -> str:
    """Write a picture of noise in blocks of 10 pixels and return its name."""
    width, height = size
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    name = f"{width}x{height}-{seed}.png"
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(folder / name)
    return name


def questions(folder: Path) -> dict[str, Path]:
    """Write training and held-out questions.

    A speaking folder answers 7. So all rollouts of a question whose answer is 8 are wrong, and its
    group is resampled as soon as one of them has called a tool.

    Returns:
        The files, by the name of their field in the recipe's task.
    """
    photo, small = picture(folder, PHOTO), picture(folder, SMALL)
    pair = [picture(folder, (200, 100), 1), picture(folder, (100, 200), 2)]
    train = [
        {"question": "Which number is in the photo?", "images": [photo], "answer": WRONG},
        {"question": "Which number is it?", "images": [small], "answer": RIGHT},
        {"question": "<image> or <image>: which is larger?", "images": pair, "answer": WRONG},
    ]
    held_out = [{"question": "Which number?", "images": [small], "answer": RIGHT}]
    return {
        "task.train": write_rows(folder / "train.jsonl", train),
        "task.held_out": write_rows(folder / "held_out.jsonl", held_out),
    }


def chats(folder: Path) -> Path:
    """Write demonstrations without thinking, as Instruct models take them: a zoom, an answer."""
    call = json.loads("".join(CALL[1:-2]))
    rows = []
    for number in range(3):
        images = [picture(folder, (200, 100), 10 + number), picture(folder, SMALL, number)]
        messages = [
            {"role": "user", "content": "<image>Which number is it?"},
            {
                "role": "assistant",
                "content": "I zoom in.",
                "tool_calls": [{"type": "function", "function": call}],
            },
            {"role": "tool", "content": "<image>The crop."},
            {"role": "assistant", "content": "The answer is \\boxed{7}."},
        ]
        rows.append({"messages": messages, "images": images})
    return write_rows(folder / "chats.jsonl", rows)


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a JSONL file."""
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def settings(values: Mapping[str, object]) -> list[str]:
    """Return `--set` arguments."""
    return [f"--set={name}={value}" for name, value in values.items()]
