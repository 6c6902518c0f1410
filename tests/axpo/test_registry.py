"""Variants of a concept: by name, with options, and by the import path of one's own."""

import pickle
import subprocess
import sys
from abc import abstractmethod
from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from axpo.registry import REGISTRIES, Registered, Registry, Variant, find
from tests.axpo import user_variants
from tests.axpo.user_variants import Greeting, greetings

OWN = "tests.axpo.user_variants"
REGISTRIES.pop("greetings")  # other tests list all concepts


class Letter(BaseModel):
    """A recipe with one concept."""

    greeting: Annotated[Greeting, Registered()] = user_variants.Polite()


def faults(value):
    """Return (place, message) of each fault of a letter."""
    with pytest.raises(ValidationError) as caught:
        Letter(greeting=value)
    return [(".".join(map(str, e["loc"])), e["msg"]) for e in caught.value.errors()]


def test_a_name_finds_its_variant():
    assert Letter(greeting="polite").greeting.text("Who") == "Good day, Dr. Who."
    assert Letter(greeting="short").greeting.text("Who") == "Hi Who"
    assert Letter(greeting=user_variants.Polite(times=2)).greeting.times == 2


def test_options_go_with_a_name_or_with_the_default():
    named = Letter(greeting={"name": "polite", "title": "Ms.", "times": 2}).greeting
    assert named.text("Li") == "Good day, Ms. Li. Good day, Ms. Li."
    assert Letter(greeting={"title": "Ms."}).greeting.text("Li") == "Good day, Ms. Li."


@pytest.mark.parametrize(
    "spec",
    [
        "short",
        {"name": "polite", "title": "Ms.", "times": 3},
        f"{OWN}:whisper",
        {"name": f"{OWN}:Loud", "marks": 2},
    ],
)
def test_what_is_written_down_is_read_back(spec):
    letter = Letter(greeting=spec)
    assert letter.greeting.spec() == spec
    written = letter.model_dump(mode="json")
    assert written == {"greeting": spec}
    assert Letter.model_validate(written).greeting == letter.greeting


def test_options_with_their_defaults_are_written_down_too():
    polite = Letter(greeting="polite").greeting
    assert polite.spec() == {"name": "polite", "title": "Dr.", "times": 1}


def test_a_class_of_ones_own():
    loud = Letter(greeting=f"{OWN}:Loud").greeting
    assert isinstance(loud, user_variants.Loud)
    assert loud.text("you") == "HELLO YOU!"
    assert loud.name == f"{OWN}:Loud"


@pytest.mark.parametrize("name", ["whisper", "with_default"])
def test_a_function_of_ones_own_stands_for_the_core_method(name):
    greeting = Letter(greeting=f"{OWN}:{name}").greeting
    assert isinstance(greeting, Greeting)
    assert greeting.text("you").startswith("hello you")
    assert faults({"name": f"{OWN}:{name}", "times": 2}) == [
        ("greeting.times", "Extra inputs are not permitted")
    ]


@pytest.mark.parametrize(
    ("value", "place", "message"),
    [
        ("rude", "greeting", "expected one of polite, short, or package.module:name"),
        ({"name": "rude"}, "greeting.name", "expected one of polite, short, or"),
        (3, "greeting", "expected one of polite, short, or"),
        ({"name": "polite", "times": 0}, "greeting.times", "greater than or equal to 1"),
        ({"times": "often"}, "greeting.times", "valid integer"),
        ("nowhere:hello", "greeting", "cannot import nowhere: ModuleNotFoundError"),
        (f"{OWN}:shout", "greeting", f"{OWN} has no shout"),
        (f"{OWN}:NUMBER", "greeting", "expected a function of (who)"),
        (f"{OWN}:Unrelated", "greeting", "expected a function of (who)"),
        (f"{OWN}:nobody", "greeting", "expected a function of (who)"),
        (f"{OWN}:two", "greeting", "expected a function of (who)"),
    ],
)
def test_what_cannot_be_is_said_with_its_place(value, place, message):
    ((where, said),) = faults(value)
    assert where == place
    assert message in said
    assert "\n" not in said


def test_a_path_that_finds_nothing_says_what_was_expected():
    expected = f"expected a function of (who) or a subclass of {OWN}.Greeting"
    for path in ("nowhere:hello", f"{OWN}:shout", f"{OWN}:nobody"):
        ((_, said),) = faults(path)
        assert said.endswith(expected)


def test_several_bad_options_are_several_faults():
    assert [place for place, _ in faults({"times": 0, "title": "", "tone": "low"})] == [
        "greeting.title",
        "greeting.times",
        "greeting.tone",
    ]


def test_a_class_without_its_method_is_refused():
    class Strict(Variant):
        """A concept whose method has no default."""

        @abstractmethod
        def text(self, who): ...

    stricts = Registry("stricts", Strict, core="text")
    REGISTRIES.pop("stricts")

    class Half(Strict):
        """It lacks `text`."""

    with pytest.raises(ValueError, match=r"has no text; expected a function of \(who\)"):
        stricts.register("half")(Half)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="greetings: 'short' is registered twice"):
        greetings.register("short")(user_variants.whisper)


def test_the_first_line_describes_a_variant():
    assert greetings.described() == [
        ("polite", "Greet with a title."),
        ("short", "Greet in one word."),
    ]


def test_without_a_default_a_name_is_required():
    names = Registry("names", type("Name", (Variant,), {"text": lambda self: ""}), core="text")
    REGISTRIES.pop("names")
    with pytest.raises(ValueError, match="name: required, but not given"):
        names.parse({"times": 1})


def test_parse_gives_one_line():
    with pytest.raises(ValueError, match="greetings: times=0: Input should be greater") as caught:
        greetings.parse({"times": 0})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["short", {"times": 2}, f"{OWN}:whisper", {"name": f"{OWN}:Loud", "marks": 3}]
)
def test_a_variant_travels_to_another_process(spec, tmp_path):
    """As to a Ray actor: the other process has imported nothing of it yet."""
    greeting = greetings.parse(spec)
    file = tmp_path / "greeting"
    file.write_bytes(pickle.dumps(greeting))
    code = f"import pickle; print(pickle.load(open({str(file)!r}, 'rb')).text('you'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == greeting.text("you")


@pytest.mark.parametrize("path", ["json", "json:", ":loads", "json:a b", "json:a.b"])
def test_a_path_has_a_module_and_a_name(path):
    with pytest.raises(ValueError, match=r"expected package\.module:name"):
        find(path)


def test_find_returns_the_object_itself():
    assert find(f"{OWN}:whisper") is user_variants.whisper
    assert find(f"{OWN}:NUMBER") == 3


def test_a_module_that_exits_when_it_is_imported_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "exits_at_once.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"^cannot import exits_at_once: SystemExit: 0$"):
        find("exits_at_once:anything")
