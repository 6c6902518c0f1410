"""An engine of two processes in a Ray actor: its weights are updated, and equal."""

from collections.abc import Iterator

import pytest
import torch

from rollout_workers.pool import RolloutPool
from rollout_workers.settings import WorkerSettings
from tests.rollout_workers.test_engine import (
    CONFIG,
    PARAMETERS,
    QUESTION,
    Tools,
    engine_processes,
    get,
    halves,
    hugging_face_gap,
    new_weights,
    reward,
    rolled,
)

# It starts in 75 s on two busy cores: both processes wait for each other in busy loops.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
__all__ = ["new_weights"]  # a fixture


@pytest.fixture(scope="module")
def pool(cluster: None, model: str) -> Iterator[RolloutPool]:
    engine = CONFIG.engine.model_copy(update={"tensor_parallel_size": 2})
    config = CONFIG.model_copy(update={"n": 2, "engine": engine})
    pool = RolloutPool(
        WorkerSettings(model, config, Tools(), reward, run_seed=3, system="look closely")
    )
    pool.ready()
    yield pool
    pool.shutdown()


def test_both_halves_of_a_model_are_updated_and_equal_the_new_weights(
    pool, model, new_weights, chat, tmp_path
):
    from transformers import Qwen3VLForConditionalGeneration

    worker = pool.workers[0]
    names = [p.name() for p in engine_processes(worker)]
    assert len([name for name in names if "Worker" in name]) == 2
    buckets = halves(new_weights, tmp_path)
    get(worker.init_weight_transfer.remote({}))
    differing = {n for bucket in buckets for n in get(worker.differing_weights.remote(bucket))}
    assert len(differing) == PARAMETERS
    for version in (1, 2):
        get(worker.start_weight_update.remote())
        for bucket in buckets:
            get(worker.update_weights.remote(bucket))
        assert get(worker.finish_weight_update.remote(version)) == version
        assert [get(worker.differing_weights.remote(bucket)) for bucket in buckets] == [[], []]
    # One element in the second half of a column-parallel layer, and in that of a row-parallel one.
    for name, place in (
        ("model.language_model.layers.1.mlp.up_proj.weight", (-1, 0)),
        ("model.language_model.layers.1.mlp.down_proj.weight", (0, -1)),
    ):
        changed = new_weights[name].clone()
        changed[place] = torch.nextafter(changed[place], torch.tensor(torch.inf))
        (tmp_path / name).mkdir()
        bucket = halves({name: changed}, tmp_path / name)[0]
        assert len(get(worker.differing_weights.remote(bucket))) == 1
    reference = Qwen3VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    reference.load_state_dict(new_weights, strict=False)
    reference.tie_weights()
    gap = hugging_face_gap(reference, QUESTION, rolled(worker, QUESTION, 2, 5), chat)
    print(f"\nlogprob gap over {len(gap)} tokens: mean {gap.mean():.1e}, max {gap.max():.1e}")
    assert gap.mean() < 1e-3
