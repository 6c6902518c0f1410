"""The folder of an evaluation: what is measured, every answer, and what came out.

    settings.json       what is measured; the same command goes on with it, another is refused
    questions.jsonl     benchmark, id, text, accepted answers, categories of each question
    results.jsonl       one line a sample: answer, verdict, judge's reply, tools, tokens, end
    trajectories.jsonl  whole rollouts of the first questions of each benchmark; images/ beside it
    given/              what an image search had found, for the tool `image_search`
    summary.json        the numbers; exists only if the evaluation came to its end
    report.html         the page
    lock                the process that writes here

results.jsonl grows by all samples of a question at once, as questions finish. At the end it is
replaced by the same lines in the order of the questions, with the judge's verdicts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from axpo.errors import AxpoError
from axpo.record.files import appending, read_rows, read_text, replace_file
from axpo.record.lock import RunLock

Row = dict[str, Any]
RESULTS, QUESTIONS, SUMMARY = "results.jsonl", "questions.jsonl", "summary.json"
SETTINGS, TRAJECTORIES, IMAGES = "settings.json", "trajectories.jsonl", "images"
GIVEN = "given"

_HALF = re.compile("[\ud800-\udfff]")


class Results:
    """Hold the folder of an evaluation for this process until `close`."""

    def __init__(self, path: Path, settings: Mapping[str, Any], questions: Iterable[Row]) -> None:
        """Make the folder, or go on with what is there.

        Args:
            path: the folder.
            settings: what is measured, as JSON.
            questions: of all benchmarks, in order.

        Raises:
            AxpoError: another process holds the folder, it was started with other settings, or
                there is something else in it.
        """
        self.path = path
        self._start(settings)
        try:
            replace_file(path / QUESTIONS, "".join(map(_line, questions)))
            self.rows = self._complete_rows(int(settings["samples"]))
            # A kill may have left half a line, to which nothing may be appended.
            self._replace(RESULTS, self.rows)
            kept = _by_question(read_rows(path / TRAJECTORIES), "question_id")
            self._replace(TRAJECTORIES, [rows[-1] for rows in kept.values()])
            self._shown = set(kept)
        except OSError as error:
            self.close()
            raise disk_error(path, error) from None

    @property
    def done(self) -> set[str]:
        """Return the ids of the questions whose samples are all there, `<benchmark>/<id>`."""
        return {f"{row['benchmark']}/{row['question']}" for row in self.rows}

    def add(self, rows: Sequence[Row], trajectories: Row | None = None) -> None:
        """Keep all samples of a question, and its rollouts if they are to be shown.

        Raises:
            AxpoError: the disk is full.
        """
        try:
            if trajectories is not None and trajectories["question_id"] not in self._shown:
                self._append(TRAJECTORIES, [trajectories])
                self._shown.add(trajectories["question_id"])
            self._append(RESULTS, rows)
        except OSError as error:
            raise disk_error(self.path, error) from None
        self.rows += rows

    def finish(self, rows: Sequence[Row], summary: Mapping[str, Any]) -> None:
        """Write the results in their final order, then the summary.

        Raises:
            AxpoError: the disk is full.
        """
        try:
            self._replace(RESULTS, rows)
            replace_file(self.path / SUMMARY, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            raise disk_error(self.path, error) from None
        self.rows = list(rows)

    def close(self) -> None:
        """Let another process have the folder."""
        self._lock.release()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self, settings: Mapping[str, Any]) -> None:
        path = self.path
        file = path / SETTINGS
        if path.exists() and not path.is_dir():
            raise AxpoError(f"{path}: not a folder")
        if path.is_dir() and not file.exists() and any(_strangers(path)):
            raise AxpoError(f"{path}: there is something else in it; choose another --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(path)
        except OSError as error:
            raise disk_error(path, error) from None
        try:
            if file.exists():
                _check_same(path, _object(file), settings)
            else:
                replace_file(file, json.dumps(settings, indent=2) + "\n")
        except OSError as error:
            self.close()
            raise disk_error(path, error) from None
        except AxpoError:
            self.close()
            raise

    def _complete_rows(self, samples: int) -> list[Row]:
        """Return the rows of the questions whose samples are all there."""
        rows: list[Row] = []
        for of_one in _by_question(read_rows(self.path / RESULTS), "question").values():
            numbers = [row["sample"] for row in of_one]
            if sorted(numbers) == list(range(samples)):
                rows += of_one
        return rows

    def _append(self, name: str, rows: Sequence[Row]) -> None:
        lines = "".join(map(_line, rows))
        with appending(self.path / name) as file:
            file.write(lines)

    def _replace(self, name: str, rows: Iterable[Row]) -> None:
        lines = list(map(_line, rows))
        if lines or (self.path / name).exists():
            replace_file(self.path / name, "".join(lines))


def read_evaluation(path: Path) -> tuple[dict[str, Any], list[Row], list[Row]]:
    """Return the summary, the questions and the results of an evaluation that came to its end.

    Raises:
        AxpoError: there is none.
    """
    if not (path / SETTINGS).is_file():
        raise AxpoError(f"{path}: no evaluation (expected a {SETTINGS} in it)")
    if not (path / SUMMARY).is_file():
        raise AxpoError(f"{path}: the evaluation has not come to its end; run its command again")
    return (
        _object(path / SUMMARY),
        list(read_rows(path / QUESTIONS)),
        list(read_rows(path / RESULTS)),
    )


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(file))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise AxpoError(f"{file}: not the JSON of an evaluation")
    return found


def _line(row: Row) -> str:
    """Return a row as a line of JSON, readable if UTF-8 can write it."""
    text = json.dumps(row, ensure_ascii=False)
    # Half a character of UTF-16, which JSON may hold, cannot be written.
    return (json.dumps(row) if _HALF.search(text) else text) + "\n"


def _by_question(rows: Iterable[Row], name: str) -> dict[tuple[str, str], list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        # Half a line can be JSON of another kind: `1` of `12`.
        if isinstance(row, dict) and name in row:
            found.setdefault((row.get("benchmark", ""), row[name]), []).append(row)
    return found


def _check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(now))
    for name in plain:
        if before.get(name) != plain[name]:
            raise AxpoError(
                f"{path} was started with {name}={before.get(name)!r}, now {plain[name]!r}: "
                "choose another --out"
            )


def _strangers(path: Path) -> Iterable[Path]:
    return (found for found in path.iterdir() if found.name != "lock")


def disk_error(path: Path, error: OSError) -> AxpoError:
    """Return what to tell if a file of an evaluation cannot be written."""
    reason = error.strerror or str(error)
    return AxpoError(f"{path}: {reason}; nothing is lost, the same command goes on from here")
