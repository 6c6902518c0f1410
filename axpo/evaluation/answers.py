"""Read answers: the final text, the choice that it makes, the number that it is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from axpo.tasks.choices import without_fonts
from axpo.tasks.verifiers import boxed, choice

LONGEST = 2000
"""Characters of a final text that are looked at: its end, where the answer stands."""

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# A point between digits, a sign before a number and a percent sign are part of what is said.
_POINTS = re.compile(r"\.(?!\d)|['\u2019]")
_PUNCTUATION = re.compile(r"(?<=\w)-|-(?!\.?\d)|[^\w\s.%-]|_")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OFFICIAL_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
# A small letter without brackets may be the article of "the answer is a red cup".
_NAMED = re.compile(
    r"(?i:answer|option|choice)\s*(?:is\b)?\s*:?\s*(?:(?i:option)\s+)?"
    r"(?:([A-Z])|[(\[]([A-Za-z])[)\]])(?=[\s.,;:!]|$)"
)
_OPTION = re.compile(r"(?i:option|choice)\s+([a-z])[.)]?\s*$")
_BRACKETED = re.compile(r"(?<!\w)[(\[]([A-Z])[)\]]")
_ALONE = re.compile(r"(?<![\w'])[A-HJ-Z](?![\w'])")
_LAST = re.compile(r"\s([A-Z])[.!]?$")
# Letters in a formula, P(A) or AB = C, name no choice.
_FORMULA = re.compile(r"[\\=^]")
_EMPHASIS = re.compile(r"\*\*|__|`")
_ESCAPED = re.compile(r"\\([%$&#_])")


def final_text(answer: str) -> str:
    """Return what an answer says in the end: its last box, else its last <answer>, else all."""
    box = boxed(answer)
    if box is not None:
        return box[-LONGEST:]
    tagged = _TAGGED.findall(answer)
    text = tagged[-1] if tagged else answer
    # A whole answer in bold: **3**.
    return text.strip().strip("*`").strip()[-LONGEST:]


def normalised(text: str) -> str:
    """Return a text without case, articles, punctuation and TeX's fonts, for exact comparisons.

    Signs, decimal points and % stay: -2 is not 2, and 3.5 is not 35.
    """
    text = _words_of(text).replace("\u2212", "-").casefold()
    text = _THOUSANDS.sub("", text)
    text = _PUNCTUATION.sub(" ", _POINTS.sub("", text))
    # What is nothing but an article is the letter of a choice, or a grade.
    return " ".join(_ARTICLES.sub(" ", text).split()) or " ".join(text.split())


def f1(given: str, truths: Sequence[str]) -> float:
    """Return the token F1 of a text against the best of several truths, as SQuAD defines it."""
    return max((_f1(given, truth) for truth in truths), default=0.0)


def chosen(text: str, options: Sequence[str]) -> int | None:
    """Return which option a text chooses, by its letter or its words; None if that is not clear.

    Args:
        text: a final text.
        options: the texts of the choices A, B, C ...
    """
    plain = _EMPHASIS.sub("", text).strip()
    position = _position(choice(plain) or _named(plain), options)
    if position is None:
        position = _by_words(plain, options)
    if position is None:
        position = _position(_at_the_end(plain), options)
    return position


def within(given: float | None, truth: float, absolute: float = 0.0, relative: float = 0.0) -> bool:
    """Return whether a number is close enough to the truth, by one tolerance or the other."""
    if given is None or not math.isfinite(given):
        return False
    # 1e-9: 6.284 is within 0.001 of 6.283, whatever floats say.
    allowed = max(absolute, relative * abs(truth)) + 1e-9 * max(1.0, abs(truth))
    return abs(given - truth) <= allowed


def _position(letter: str | None, options: Sequence[str]) -> int | None:
    """Return which option a letter names, from 0; None if there are not so many."""
    position = ord(letter) - ord("A") if letter else len(options)
    return position if position < len(options) else None


def _named(text: str) -> str | None:
    """Return the letter that a sentence names: `the answer is B`, `option b`, `it is (B)`."""
    named = ["".join(letters) for letters in _NAMED.findall(text)] or _OPTION.findall(text)
    if not named and not _FORMULA.search(text):
        bracketed = set(_BRACKETED.findall(text))
        named = list(bracketed) if len(bracketed) == 1 else []
    return named[-1].upper() if named else None


def _at_the_end(text: str) -> str | None:
    """Return the capital that ends a sentence, if no other stands alone: `so it is B`."""
    last = None if _FORMULA.search(text) else _LAST.search(text)
    return last[1] if last and set(_ALONE.findall(text)) == {last[1]} else None


def _by_words(text: str, options: Sequence[str]) -> int | None:
    """Return the option whose words stand in a text, if it is exactly one."""
    said = normalised(text)
    words = [normalised(option) for option in options]
    # An option that is a letter of the picture is one only by itself: of "A, D" an article is left.
    if len(text.strip(" .()")) > 1:
        words = [word if len(word) > 1 or word.isdigit() else "" for word in words]
    if said and said in words:
        return words.index(said) if words.count(said) == 1 else None
    # The longest first, so that "dark red" is not taken for "red" too.
    parts = sorted({word for word in words if word}, key=len, reverse=True)
    if not parts:
        return None
    pattern = re.compile(r"(?<![\w.-])(?:" + "|".join(map(re.escape, parts)) + r")(?![\w%])")
    found = set(pattern.findall(said))
    if len(found) != 1:
        return None
    only = found.pop()
    return words.index(only) if words.count(only) == 1 else None


def _f1(given: str, truth: str) -> float:
    said, wanted = _tokens(given), _tokens(truth)
    common = sum((Counter(said) & Counter(wanted)).values())
    if not common:
        return float(said == wanted)
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _words_of(text: str) -> str:
    r"""Return a text as it would be read: `50%` of `\text{50\%}`."""
    return _ESCAPED.sub(r"\1", without_fonts(text))


def _tokens(text: str) -> list[str]:
    text = _words_of(text)
    return _ARTICLES.sub(" ", _OFFICIAL_PUNCTUATION.sub("", text.lower())).split()
