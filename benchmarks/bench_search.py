"""Local search over 20,000 documents: time of a call, and how often a planted document is among the first five."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tool_server.search.index import build
from tool_server.search.options import LocalOptions
from tool_server.search.tools import Search
from tool_server.tool import ToolCall

DOCUMENTS = 20_000
PLANTED = 1_000
WORDS = 30_000
LENGTH = 170
"""Words of a document: about 1,000 characters, as a paragraph of an encyclopedia."""


def measure() -> list[dict[str, Any]]:
    """Entries `search_median_ms` and `search_recall_at_5`."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        corpus, out = Path(folder, "corpus.jsonl"), Path(folder, "corpus.index")
        queries = _write(corpus, rng)
        started = time.perf_counter()
        manifest, _ = build(corpus, out)
        build_s = time.perf_counter() - started
        search = Search(provider=LocalOptions(index=str(out)))
        tool = search.open("search")
        size = sum(size for size, _ in manifest.files.values()) / 1e6
        calls = [(ToolCall(tool.parse({"query": query})), address) for query, address in queries]
        for call, _ in calls[:50]:
            tool.run(call)
        seconds, found = [], 0
        for call, address in calls:
            started = time.perf_counter()
            text, _ = tool.run(call)  # type: ignore[misc]
            seconds.append(time.perf_counter() - started)
            found += address in text.splitlines()
        tool.close()
    median, p99 = statistics.median(seconds) * 1e3, statistics.quantiles(seconds, n=100)[98] * 1e3
    detail = f"{DOCUMENTS:,} documents, {len(calls):,} queries of 5 to 9 words, snippets included"
    return [
        {
            "name": "search_median_ms",
            "value": round(median, 3),
            "target": 2.0,
            "better": "lower",
            "unit": "ms",
            "detail": f"{detail}; p99 {p99:.2f} ms; built in {build_s:.1f} s, {size:.0f} MB",
        },
        {
            "name": "search_recall_at_5",
            "value": round(found / len(calls), 4),
            "target": 0.95,
            "better": "higher",
            "unit": "share",
            "detail": f"{detail}; half of a planted sentence, among words of every document",
        },
    ]


def _write(file: Path, rng: np.random.Generator) -> list[tuple[str, str]]:
    """A corpus with word frequencies by Zipf's law. Returns (query, address of its document).

    A planted document holds a sentence of 6 words of middle frequency (each in dozens to hundreds of documents, so none gives it
    away); its query is 3 of them and 2 to 6 of the most frequent words, in any order.
    """
    vocabulary = _vocabulary()
    frequency = 1 / (np.arange(WORDS) + 3.0)
    text = rng.choice(WORDS, size=(DOCUMENTS, LENGTH), p=frequency / frequency.sum())
    planted = rng.choice(DOCUMENTS, PLANTED, replace=False)
    queries = []
    for row in planted:
        sentence = rng.choice(np.arange(300, 3000), 6, replace=False)
        start = int(rng.integers(0, LENGTH - 6))
        text[row, start : start + 6] = sentence
        asked = [*rng.choice(sentence, 3, replace=False), *rng.integers(0, 50, rng.integers(2, 7))]
        queries.append(
            (
                " ".join(vocabulary[i] for i in rng.permutation(asked)),
                f"https://corpus.example/{row}",
            )
        )
    with file.open("w", encoding="utf-8") as out:
        for row, words in enumerate(text):
            title, body = (" ".join(vocabulary[i] for i in part) for part in (words[:5], words))
            out.write(
                json.dumps({"title": title, "text": body, "url": f"https://corpus.example/{row}"})
                + "\n"
            )
    return queries


def _vocabulary() -> list[str]:
    """Distinct pronounceable words, the frequent ones short. No English ending, so that the stemmer merges none."""
    syllables = ["".join(pair) for pair in itertools.product("bdfgklmnprtvz", "aou")]
    words = [
        "".join(word)
        for length in (1, 2, 3)
        for word in itertools.product(syllables, repeat=length)
    ][:WORDS]
    short, long = words[:1500], words[1500:]
    random.Random(0).shuffle(short)
    random.Random(1).shuffle(long)
    return short + long


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
