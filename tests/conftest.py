"""Fixtures that the tests of several rooms use."""

from collections.abc import Iterator

import pytest

from tests.real.fixtures import instruct, qwen2_5, thinking  # noqa: F401  (fixtures)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Start a Ray session for the tests of a module, if there is none yet."""
    import ray  # the tests of tests/gpu do without it

    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    if started:
        ray.shutdown()
