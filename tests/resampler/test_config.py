"""Which settings of the resampler make sense together, and that a recipe can be written again."""

import pickle

import pytest
from pydantic import ValidationError

from resampler.config import ResamplerConfig


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"fork_at": "observation", "ranking": "entropy_rise"},
        {"fork_at": "every_call", "min_distinct_calls": 2, "ranking": "random"},
        {"budget": {"name": "adaptive", "target_cost_s": 2, "call_costs": {"search": 0.5}}},
        {"trigger": {"name": "quantile", "quantile": 0.25}, "schedule": "batch"},
    ],
)
def test_what_is_printed_or_sent_to_an_actor_is_the_same_again(settings):
    config = ResamplerConfig.model_validate(settings)
    assert ResamplerConfig.model_validate(config.model_dump(mode="json")) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_the_defaults_are_the_papers_but_for_the_schedule():
    printed = ResamplerConfig().model_dump(mode="json")
    assert printed["budget"] == {"name": "paper", "ratio": 0.25}
    assert printed["trigger"] == {"name": "all_wrong", "success_above": 0.0}
    names = {key: printed[key] for key in ("fork_at", "ranking", "schedule")}
    assert names == {"fork_at": "first_call", "ranking": "confidence", "schedule": "streaming"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"fork_at": "observation", "ranking": "entropy"},
            "resampler.ranking='entropy': must be 'entropy_rise' with "
            "resampler.fork_at='observation'",
        ),
        (
            {
                "fork_at": "observation",
                "ranking": "entropy_rise",
                "trigger": {"success_above": 0.5},
            },
            "resampler.fork_at='observation' forks whatever the outcomes; leave it out",
        ),
        ({"min_distinct_calls": 5}, "resampler.min_distinct_calls=5: at most resampler.k=4"),
        (
            {"min_distinct_calls": 2, "fork_at": "answer"},
            "continuations of resampler.fork_at='answer' need not begin with a call; leave it out",
        ),
        ({"ranking": "entrpy"}, "expected one of confidence, entropy, random, entropy_rise"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValidationError) as caught:
        ResamplerConfig.model_validate(settings)
    assert message in str(caught.value)
