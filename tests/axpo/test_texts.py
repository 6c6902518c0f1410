"""What texts from outside may hold, wherever they are inside of a value."""

from __future__ import annotations

import pytest

from axpo.texts import MANY, MAX_CHARACTERS, MAX_DEPTH, check_text, has_surrogate


def nested(depth: int, inner: object) -> object:
    value = inner
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("texts", [MANY - 1, MANY, 10 * MANY])
def test_half_a_pair_is_found_among_many_texts(texts):
    tokens = ["a"] * texts
    check_text({"tokens": tokens, "numbers": [1, 2.5, None, True] * 100})
    with pytest.raises(ValueError, match="half a surrogate pair"):
        check_text({"tokens": [*tokens[:-1], "\ud83d"]})
    assert has_surrogate(tokens) is False
    assert has_surrogate({"\ud83d": 1})


@pytest.mark.parametrize("inner", [1, "a", None])
def test_what_is_too_deep_is_refused(inner):
    check_text(nested(MAX_DEPTH, inner))
    with pytest.raises(ValueError, match="inside each other"):
        check_text(nested(MAX_DEPTH + 1, inner))


def test_one_text_may_not_be_too_long_and_many_may():
    half = "a" * (MAX_CHARACTERS // MANY + 1)
    check_text([half] * MANY)
    with pytest.raises(ValueError, match="characters"):
        check_text(["a" * (MAX_CHARACTERS + 1)])
