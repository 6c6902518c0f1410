"""A data set with rows that are bad in every way, each in a way of its own."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)


def encoded(form: str = "PNG", pixels=PHOTO) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def png_of_noise() -> bytes:
    """Return a PNG whose header and checksums are right, and whose pixels cannot be unpacked."""
    noise = b"\x00\xff" * 40
    chunk = struct.pack(">I", len(noise)) + b"IDAT" + noise
    checked = chunk + struct.pack(">I", zlib.crc32(b"IDAT" + noise))
    good = encoded()
    return good[: good.index(b"IDAT") - 4] + checked + good[good.index(b"IEND") - 4 :]


def row(**fields) -> dict:
    return {"question": "Which digit?", "images": ["good.png"], "answer": "7"} | fields


def line(**fields) -> bytes:
    return json.dumps(row(**fields)).encode()


FOUND_LATE = "noise.png cannot be read"
"""What only decoding finds."""

KINDS: dict[str, bytes] = {
    # What is said of the row: the row.
    "cut.jpg cannot be read: OSError: image file is truncated": line(images=["cut.jpg"]),
    FOUND_LATE: line(images=["noise.png"]),
    "none.png is not there": line(images=["none.png"]),
    "loop.png is not there": line(images=["loop.png"]),
    "text.png is not a readable PNG, JPEG, WEBP, GIF image": line(images=["text.png"]),
    "strip.png is 300x1 pixels, the limit of long to short side": line(images=["strip.png"]),
    "'../private.png' leads out of": line(images=["../private.png"]),
    "'/etc/hostname' leads out of": line(images=["/etc/hostname"]),
    "is an address; expected a file": line(images=["https://example.org/a.png"]),
    "data: address: expected data:...;base64": line(images=["data:image/png,abc"]),
    "base64: Incorrect padding": line(images=[base64.b64encode(encoded()).decode()[:402]]),
    "expected a path, bytes or a data: address, got int": line(images=[3]),
    "images: expected at least one image": line(images=[]),
    "images: missing; the row has question, answer": b'{"question": "?", "answer": "7"}',
    "question: expected a text, found ' '": line(question=" "),
    "question: half a surrogate pair (\\ud83d) at character 3": line(question="?a\ud83d"),
    "question: 2 <image> marks for 1 images": line(question="<image> or <image>?"),
    "answer: half a surrogate pair (\\ud83d) at character 1": line(answer="\ud83d"),
    "answer: expected a text or a number, found 'None'": line(answer=None),
    "answer: expected a text or a number, found nan": line(answer=float("nan")),
    "answer: expected the answer alone, without \\boxed": line(answer="\\boxed{7}"),
    "more than 64 lists and objects": line(question="Deep?", unit=0).replace(
        b"0", b"[" * 99 + b"]" * 99
    ),
    "JSON with too many lists and objects": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a whole number of more than 4,300 digits": line(answer=0).replace(b"0", b"9" * 5000),
    "not JSON: Expecting": b'{"question": "Which?", }',
    "the key 'answer' is there twice": b'{"answer": "7", "answer": "8"}',
    "expected an object, found [1, 2]": b"[1, 2]",
    "byte 0xe9 at place": line(question="caf?").replace(b"?", b"\xe9"),
}


def write_files(folder: Path) -> None:
    """Write the images that the rows name."""
    (folder / "good.png").write_bytes(encoded())
    (folder.parent / "private.png").write_bytes(encoded())
    (folder / "cut.jpg").write_bytes(encoded("JPEG")[:-300])
    (folder / "noise.png").write_bytes(png_of_noise())
    (folder / "text.png").write_text("no image")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "strip.png").write_bytes(encoded(pixels=PHOTO[:1].repeat(8, 1)[:, :300]))


def write_rows(folder: Path, good: int, bad: dict[str, bytes] | None = None) -> Path:
    """Write a JSONL file of good rows with the bad ones spread among them."""
    write_files(folder)
    bad_lines = list((KINDS if bad is None else bad).values())
    lines: list[bytes] = []
    for number in range(good):
        # `é` everywhere: one line of another encoding is a bad row, not a file of that encoding.
        lines.append(json.dumps(row(question=f"é {number}?"), ensure_ascii=False).encode())
        if bad_lines and number % max(1, good // len(KINDS)) == 0:
            lines.append(bad_lines.pop())
    lines += bad_lines
    file = folder / "rows.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file
