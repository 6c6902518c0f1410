"""Families whose turns do not open inside thinking, through real vLLM.

The folders' weights are a bigram model: about half of its turns call the zoom, the others answer
7 in a box.
"""

import asyncio

import numpy as np
import pytest

from rollout_workers.chat import Chat
from rollout_workers.config import EngineConfig, RolloutConfig
from rollout_workers.settings import WorkerSettings
from rollout_workers.trajectory import EndReason, uses_tools
from rollout_workers.worker import RolloutWorker
from tests.rollout_workers.helpers import MockTools, question, zoomed

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
CONFIG = RolloutConfig(
    n=8,
    max_turns=4,
    max_turn_tokens=64,
    max_context_tokens=1024,
    deadline_s=300,
    retries=0,
    engine=EngineConfig(
        dtype="float32",
        block_size=32,
        max_num_seqs=8,
        enforce_eager=True,
        kv_cache_gb=0.25,
        weight_transfer="shared_memory",
    ),
)


def boxed_seven(question, answer):
    return float(answer is not None and "\\boxed{7}" in answer)


async def played(settings):
    """Start a worker on its event loop, and play a question."""
    worker = RolloutWorker(0, settings)
    try:
        return await worker.rollout(question(), n=8, step=0)
    finally:
        await worker.shutdown()


# `tests/real/test_end_to_end.py` starts an Instruct too.
@pytest.mark.parametrize("family", ["instruct", "qwen2_5"])
def test_calls_and_answers_are_read(family, request):
    model = str(request.getfixturevalue(family))
    chat, tools = Chat.load(model), MockTools(zoomed, ("image_zoom_in",))
    settings = WorkerSettings(model, CONFIG, tools, boxed_seven, run_seed=1)
    group = asyncio.run(played(settings))
    used = np.array([uses_tools(rollout, chat.tokens) for rollout in group.rollouts])
    answered = [rollout.end == EndReason.ANSWERED for rollout in group.rollouts]
    assert 0 < used.mean() < 1
    assert group.rewards[answered].tolist() == [1.0] * sum(answered)
    assert sum(answered) > 0
    # Each call could be read, and ran.
    calls = sum(rollout.stats.tool_calls for rollout in group.rollouts)
    failures = sum(rollout.stats.tool_failures for rollout in group.rollouts)
    assert (calls, failures) == (len(tools.calls), 0)
    assert calls > 0
    for rollout in group.rollouts:
        assert not np.isin(rollout.response_ids[rollout.policy_mask], chat.tokens.banned).any()
        # A word by chance leads out of the written turns, up to a limit of tokens.
        limits = (EndReason.OUT_OF_TURNS, EndReason.OUT_OF_TOKENS)
        assert rollout.end == EndReason.ANSWERED or rollout.end in limits
