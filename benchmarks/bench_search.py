"""Local search over 20,000 documents: the time of a call, and how often it finds what it should.

It should find a planted document among the first five.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.result import Entry, at_least, at_most
from benchmarks.timing import timed
from tool_server.search.build import build
from tool_server.search.options import LocalOptions
from tool_server.search.tools import Search
from tool_server.tool import Tool, ToolCall

DOCUMENTS = 20_000
PLANTED = 1_000
WORDS = 30_000
LENGTH = 170
"""Words of a document: about 1,000 characters, as a paragraph of an encyclopedia."""
TITLE = 5
"""Words of a title."""
SENTENCE = 6
"""Words of a planted sentence."""
MIDDLE = np.arange(300, 3000)
"""Words of middle frequency: each is in dozens to hundreds of documents, so none gives it away."""
FREQUENT = 50
"""The most frequent words, which are in every document."""
WARM_UP = 50

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Query:
    """What is asked, and the address of the document that should be found."""

    text: str
    address: str


def measure() -> list[Entry]:
    """Return the entries `search_median_ms` and `search_recall_at_5`."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, out = Path(folder, "corpus.jsonl"), Path(folder, "corpus.index")
        queries = _write(corpus, np.random.default_rng(0))
        (manifest, _), build_s = timed(lambda: build(corpus, out))
        megabytes = sum(size for size, _ in manifest.files.values()) / 1e6
        tool = Search(provider=LocalOptions(index=str(out))).open("search")
        seconds, found = _asked(tool, queries)
        tool.close()
    median_ms = statistics.median(seconds) * 1e3
    p99_ms = statistics.quantiles(seconds, n=100)[98] * 1e3
    what = f"{DOCUMENTS:,} documents, {len(queries):,} queries of 5 to 9 words, snippets included"
    time_detail = f"{what}; p99 {p99_ms:.2f} ms; built in {build_s:.1f} s, {megabytes:.0f} MB"
    recall_detail = f"{what}; half of a planted sentence, among words of every document"
    recall = round(found / len(queries), 4)
    return [
        at_most("search_median_ms", round(median_ms, 3), 2.0, "ms", time_detail),
        at_least("search_recall_at_5", recall, 0.95, "share", recall_detail),
    ]


def _asked(tool: Tool, queries: list[Query]) -> tuple[list[float], int]:
    """Return the seconds of each query, and how many found their document."""
    calls = [ToolCall(tool.parse({"query": query.text})) for query in queries]
    for call in calls[:WARM_UP]:
        tool.run(call)
    # Parsing is not part of the search, and is done already.
    seconds, found = [], 0
    for call, query in zip(calls, queries, strict=True):
        started = time.perf_counter()
        text, _ = tool.run(call)  # type: ignore[misc]
        seconds.append(time.perf_counter() - started)
        found += query.address in text.splitlines()
    return seconds, found


def _write(file: Path, rng: np.random.Generator) -> list[Query]:
    """Write a corpus with word frequencies by Zipf's law, and return queries for it.

    A planted document holds a sentence of words of middle frequency. Its query is half of them and
    2 to 6 of the most frequent words, in any order.
    """
    vocabulary = _vocabulary()
    frequency = 1 / (np.arange(WORDS) + 3.0)
    documents = rng.choice(WORDS, size=(DOCUMENTS, LENGTH), p=frequency / frequency.sum())
    queries = []
    for row in rng.choice(DOCUMENTS, PLANTED, replace=False):
        sentence = rng.choice(MIDDLE, SENTENCE, replace=False)
        start = int(rng.integers(0, LENGTH - SENTENCE))
        documents[row, start : start + SENTENCE] = sentence
        half = rng.choice(sentence, SENTENCE // 2, replace=False)
        frequent = rng.integers(0, FREQUENT, rng.integers(2, 7))
        asked = rng.permutation([*half, *frequent])
        queries.append(Query(_text(asked, vocabulary), _address(row)))
    with file.open("w", encoding="utf-8") as out:
        for row, words in enumerate(documents):
            document = {
                "title": _text(words[:TITLE], vocabulary),
                "text": _text(words, vocabulary),
                "url": _address(row),
            }
            out.write(json.dumps(document) + "\n")
    return queries


def _text(words: Numbers, vocabulary: list[str]) -> str:
    return " ".join(vocabulary[word] for word in words)


def _address(document: int) -> str:
    return f"https://corpus.example/{document}"


def _vocabulary() -> list[str]:
    """Return distinct pronounceable words, the frequent ones short.

    None has an English ending, so that the stemmer merges none.
    """
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprtvz", "aou")]
    words: list[str] = []
    for length in (1, 2, 3):
        words += ["".join(word) for word in itertools.product(syllables, repeat=length)]
    words = words[:WORDS]
    # The short words stay in front: the front of the vocabulary is what is frequent.
    short, long = words[:1500], words[1500:]
    random.Random(0).shuffle(short)
    random.Random(1).shuffle(long)
    return short + long


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
