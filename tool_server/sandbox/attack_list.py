"""The list of attacks: those of attacks_*.md, and those that are the same with other values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CRASH = "crashed: SIG"
FUZZED = f"{CRASH}|stopped after|ended before|finished|not readable|more than"

SECTION = re.compile(
    r"""
    \#\#\ (?P<number>\d+)\ (?P<name>.+)\n\n
    Answer:\ `(?P<wants>.+)`(?P<note>.*)\n\n
    ```python\n(?P<code>(?s:.*?))\n```\n
    (?:\nThen,\ .+\n\n```python\n(?P<then>(?s:.*?))\n```\n)?
    """,
    re.VERBOSE,
)
"""One attack in attacks_*.md."""

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
"""What stands before the code of every attack."""

FORGED = {
    "length of 4 GiB": "b'\\xff' * 4",
    "image of 100,000 x 100,000": """result(b'{"error": 0, "images": [[100000, 100000]]}')""",
    "negative image": """result(b'{"error": 0, "images": [[-1, -1]]}')""",
    "9000 images": """result(json.dumps({'error': 0, 'images': [[1, 1]] * 9000}).encode())""",
    "deep JSON": "result(b'[' * 60000)",
    "a pickle": "result(pickle.dumps(print))",
    "more bytes than said": """result(b'{"error": 0, "images": []}') + bytes(9)""",
}
"""Results that the code itself writes to the result pipe, as an expression."""

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
"""Arguments of the tool that are refused, and what the refusal says."""

# System calls (x86-64) that the random ones leave out. These wait, or end the process, before
# much was tried.
WAITING = {
    "read": 0,
    "poll": 7,
    "readv": 19,
    "select": 23,
    "pause": 34,
    "nanosleep": 35,
    "exit": 60,
    "wait4": 61,
    "fcntl": 72,
    "flock": 73,
    "rt_sigtimedwait": 128,
    "rt_sigsuspend": 130,
    "futex": 202,
    "restart_syscall": 219,
    "clock_nanosleep": 230,
    "exit_group": 231,
    "epoll_wait": 232,
    "waitid": 247,
    "pselect6": 270,
    "ppoll": 271,
    "epoll_pwait": 281,
    "preadv": 295,
    "epoll_pwait2": 441,
    "futex_waitv": 449,
}
# These destroy the caller's own memory or signal handling.
SELF_DESTRUCTIVE = {
    "mmap": 9,
    "mprotect": 10,
    "munmap": 11,
    "brk": 12,
    "rt_sigaction": 13,
    "rt_sigreturn": 15,
    "mremap": 25,
    "madvise": 28,
    "clone": 56,
    "sigaltstack": 131,
    "arch_prctl": 158,
    "set_tid_address": 218,
    "set_robust_list": 273,
    "rseq": 334,
    "uretprobe": 335,
    "uprobe": 336,
}


@dataclass(frozen=True)
class Attack:
    """Something hostile that a policy may write, and the answer to it."""

    number: int
    name: str
    wants: str  # regular expression that the answer's text holds
    code: Any  # text, but for the attacks on the arguments
    twice: bool = False  # run two at once
    then: str = ""  # run afterwards, under the same rules


def _written() -> Iterator[Attack]:
    """Yield the attacks of attacks_*.md."""
    files = sorted(Path(__file__).parent.glob("attacks_*.md"))
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    for section in SECTION.finditer(text):
        yield Attack(
            number=int(section["number"]),
            name=section["name"],
            wants=section["wants"],
            code=section["code"],
            twice="Two calls" in section["note"],
            then=section["then"] or "",
        )


def _forged() -> Iterator[Attack]:
    for name, expression in FORGED.items():
        code = f"""import json, pickle, struct, time
def result(header): return struct.pack('<I', len(header)) + header
os.write(3, {expression})
time.sleep(9)"""
        yield Attack(34, f"forged result: {name}", "stopped: the result was not readable", code)


def _bombs() -> Iterator[Attack]:
    wants = "DecompressionBombError"
    yield Attack(40, "image bomb of 60,000 x 60,000", wants, _bomb(60_000, 60_000))
    wants = "is not shown: at most"
    yield Attack(40, "image bomb of 1 x 89,000,000", wants, _bomb(1, 89_000_000))


def _bomb(width: int, height: int) -> str:
    """Return code that shows a large image from a PNG of some hundred bytes."""
    return f"""import io, struct, zlib
from PIL import Image, ImageFile
def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
head = chunk(b'IHDR', struct.pack('>IIBBBBB', {width}, {height}, 1, 0, 0, 0, 0))
body = chunk(b'IDAT', zlib.compress(bytes(99999))) + chunk(b'IEND', b'')
ImageFile.LOAD_TRUNCATED_IMAGES = True
Image.open(io.BytesIO(b'\\x89PNG\\r\\n\\x1a\\n' + head + body)).show()"""


def _bad_arguments() -> Iterator[Attack]:
    for name, (code, wants) in ARGUMENTS.items():
        yield Attack(44, name, wants, code)


def _fuzzed() -> Iterator[Attack]:
    waiting = list(WAITING.values())
    for seed in range(3):
        name = f"100,000 random system calls, seed {seed}"
        yield Attack(46, name, FUZZED, _fuzz(seed, waiting))
    skipped = waiting + list(SELF_DESTRUCTIVE.values())
    for seed in range(3, 6):
        yield Attack(46, f"the same, sparing itself, seed {seed}", FUZZED, _fuzz(seed, skipped))


def _fuzz(seed: int, skipped: list[int]) -> str:
    """Return code that makes 100,000 system calls, but none of `skipped`."""
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


ATTACKS = [*_written(), *_forged(), *_bombs(), *_bad_arguments(), *_fuzzed()]
