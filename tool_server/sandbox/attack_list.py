"""The list of attacks: those of attacks_*.md, and those that are the same attack with other values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CRASH = "crashed: SIG"
FUZZED = f"{CRASH}|stopped after|ended before|finished|not readable|more than"

SECTION = re.compile(
    r"## (\d+) (.+)\n\nAnswer: `(.+)`(.*)\n\n```python\n((?s:.*?))\n```\n(?:\nThen, .+\n\n```python\n((?s:.*?))\n```\n)?"
)

PRELUDE = """import ctypes, os
FACTS, ESCAPED = {facts!r}, {escaped!r}
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action, *args):
    try:
        got = action(*args)
    except BaseException as error:
        print(type(error).__name__, str(error)[:200])
    else:
        print(ESCAPED, str(got)[:200])
def syscall(number, *args):
    result = libc.syscall(number, *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""

FORGED = {
    "length of 4 GiB": "b'\\xff' * 4",
    "image of 100,000 x 100,000": """result(b'{"error": 0, "images": [[100000, 100000]]}')""",
    "negative image": """result(b'{"error": 0, "images": [[-1, -1]]}')""",
    "9000 images": """result(json.dumps({'error': 0, 'images': [[1, 1]] * 9000}).encode())""",
    "deep JSON": "result(b'[' * 60000)",
    "a pickle": "result(pickle.dumps(print))",
    "more bytes than said": """result(b'{"error": 0, "images": []}') + bytes(9)""",
}

ARGUMENTS = {
    "no code": ("", "^$"),
    "a megabyte of code": ("x = 1\n" * 170_000, "longer than 64 KiB"),
    "a hundred megabytes of code": ("x" * 100_000_000, "longer than 64 KiB"),
    "60,000 characters that are 180,000 bytes": ("\u20ac" * 60_000, "longer than 64 KiB"),
    "a NUL character": ("print(1)\0", "NUL character"),
    "half of a surrogate pair": ("print('\ud800')", "surrogate"),
    "a number for code": (5, "valid string"),
    "a list for code": (["print(1)"], "valid string"),
}

# System calls (x86-64) that the random ones leave out: they only wait or end, or destroy the caller before much was tried.
WAITING = [
    0,
    7,
    19,
    23,
    34,
    35,
    60,
    61,
    72,
    73,
    128,
    130,
    202,
    219,
    230,
    231,
    232,
    247,
    270,
    271,
    281,
    295,
    441,
    449,
]
SELF_DESTRUCTIVE = [9, 10, 11, 12, 13, 15, 25, 28, 56, 131, 158, 218, 273, 334, 335, 336]


@dataclass(frozen=True)
class Attack:
    number: int
    name: str
    wants: str  # regular expression that the answer's text holds
    code: Any  # text, but for the attacks on the arguments
    twice: bool = False  # run two at once
    then: str = ""  # run afterwards, under the same rules


def _written() -> Iterator[Attack]:
    text = "\n".join(
        file.read_text(encoding="utf-8")
        for file in sorted(Path(__file__).parent.glob("attacks_*.md"))
    )
    for number, name, wants, note, code, then in SECTION.findall(text):
        yield Attack(int(number), name, wants, code, "Two calls" in note, then)


def _forged(expression: str) -> str:
    return f"""import json, pickle, struct, time
def result(header): return struct.pack('<I', len(header)) + header
os.write(3, {expression})
time.sleep(9)"""


def _bomb(width: int, height: int) -> str:
    """A PNG of some hundred bytes."""
    return f"""import io, struct, zlib
from PIL import Image, ImageFile
def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
head = struct.pack('>IIBBBBB', {width}, {height}, 1, 0, 0, 0, 0)
png = b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(bytes(99999))) + chunk(b'IEND', b'')
ImageFile.LOAD_TRUNCATED_IMAGES = True
Image.open(io.BytesIO(png)).show()"""


def _fuzz(seed: int, skipped: list[int]) -> str:
    return f"""import random
draw, skipped = random.Random({seed}), set({skipped})
memory = ctypes.create_string_buffer(1 << 16)
at = ctypes.addressof(memory)
values = [0, 1, 2, 3, 4, 64, 4096, -1, -100, 1 << 31, (1 << 63) - 1, at, at + 4096]
for _ in range(100_000):
    number = draw.randrange(470)
    if number not in skipped:
        libc.syscall(ctypes.c_long(number), *[ctypes.c_long(draw.choice(values)) for _ in range(6)])
print('finished')"""


ATTACKS = [
    *_written(),
    *[
        Attack(34, f"forged result: {name}", "stopped: the result was not readable", _forged(code))
        for name, code in FORGED.items()
    ],
    Attack(40, "image bomb of 60,000 x 60,000", "DecompressionBombError", _bomb(60_000, 60_000)),
    Attack(40, "image bomb of 1 x 89,000,000", "is not shown: at most", _bomb(1, 89_000_000)),
    *[Attack(44, name, wants, code) for name, (code, wants) in ARGUMENTS.items()],
    *[
        Attack(46, f"100,000 random system calls, seed {seed}", FUZZED, _fuzz(seed, WAITING))
        for seed in range(3)
    ],
    *[
        Attack(
            46,
            f"the same, sparing itself, seed {seed}",
            FUZZED,
            _fuzz(seed, WAITING + SELF_DESTRUCTIVE),
        )
        for seed in range(3, 6)
    ],
]
