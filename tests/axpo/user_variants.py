"""Variants of the method as a user would write them, good and bad. Recipes of tests name them."""

from pydantic import Field

from axpo.registry import Registry, Variant
from learner.baselines import Baseline
from resampler.rankings import Ranking

NUMBER = 3


class Greeting(Variant):
    """A concept of the tests' own."""

    def text(self, who):
        raise NotImplementedError


greetings = Registry("greetings", Greeting, core="text", default="polite")


@greetings.register("polite")
class Polite(Greeting):
    """Greet with a title.

    Only the first line is listed.
    """

    title: str = Field("Dr.", min_length=1, description="before the name")
    times: int = Field(1, ge=1, description="how often")

    def text(self, who):
        return " ".join([f"Good day, {self.title} {who}."] * self.times)


@greetings.register("short")
def short(who):
    """Greet in one word."""
    return f"Hi {who}"


class Loud(Greeting):
    """Greet in capitals."""

    marks: int = 1

    def text(self, who):
        return f"HELLO {who.upper()}" + "!" * self.marks


def whisper(who):
    return f"hello {who}"


def with_default(who, tail="."):
    return f"hello {who}{tail}"


def nobody():
    return "hello"


def two(who, whom):
    return f"hello {who} and {whom}"


class HalfBaseline(Baseline):
    """A class without the method that makes it one."""


class LastFirst(Ranking):
    """Take the prefixes of the later calls first."""

    def score(self, trajectory, span, draw):
        return -span[0]


class Unrelated:
    """A class of nothing."""


def surrogate(logprobs, ratio, advantages):
    """Weigh log-probabilities by advantages."""
    return logprobs * advantages
