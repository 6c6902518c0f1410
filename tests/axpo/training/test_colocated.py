"""A colocated step with a real engine and real ranks. On a CPU "device memory" is what a rank's
process has resident; the engine's own sleep is vLLM's, which needs a GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch

from axpo.config import load_recipe
from axpo.session import ray_session
from axpo.training.actors import Actors, training_actors
from rollout_workers.trajectory import Group, PolicySegment
from tests.learner.multimodal import make_items

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]
TINY = Path("axpo/models/qwen3-vl-tiny")
WIDE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8, "head_dim": 96}
ROTARY = {
    "rope_type": "default",
    "rope_theta": 5e6,
    "mrope_section": [16, 16, 16],
    "mrope_interleaved": True,
}
MOST_ABOVE_FLOOR = 1.15
GENERATION = ("rollout.colocated=true", "rollout.max_turn_tokens=48", "rollout.max_turns=1")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Make the embedded model so wide (74M parameters) that its states outweigh a rank's code."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    folder = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((TINY / "config.json").read_text())
    config["text_config"] |= WIDE | {"num_attention_heads": 8, "num_key_value_heads": 4}
    config["text_config"]["rope_parameters"] = ROTARY
    config["vision_config"]["out_hidden_size"] = WIDE["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    made = Qwen3VLConfig.from_pretrained(folder)
    model = Qwen3VLForConditionalGeneration._from_config(made, dtype=torch.float32)
    model.save_pretrained(folder)
    return str(folder)


def resident(pid: int) -> float:
    """Return what a process has in memory, in MiB."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def process_of(rank: object) -> int:
    return os.getpid()


@contextmanager
def watched(pids: list[int]) -> Iterator[Callable[[], float]]:
    """Look at processes ten times a second; give the most that one of them had in the block."""
    highest, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.is_set():
            highest.append(max(map(resident, pids)))
            over.wait(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: max(highest)
    finally:
        over.set()
        thread.join()


def generated(actors: Actors, task: object, step: int) -> list[Group]:
    questions = [task.train(index) for index in range(2 * step, 2 * step + 2)]
    futures = [actors.pool.run(actors.pool.group(question, step)) for question in questions]
    return [future.result(120)[0] for future in futures]


def test_while_engines_run_the_ranks_are_back_at_their_floor(wide: str) -> None:
    recipe = load_recipe("deploy/recipes/debug.yaml", [f"model={wide}", *GENERATION])
    task, items = recipe.task.load(), make_items(wide, 6)
    with ray_session(recipe), training_actors(recipe, task) as actors:
        asked = [rank.__ray_call__.remote(process_of) for rank in actors.learner._ranks]
        pids = ray.get(asked)
        actors.policy.publish()
        floor = max(map(resident, pids))
        generated(actors, task, 0)
        for step in (1, 2):
            with watched(pids) as most:
                metrics = actors.policy.update(items)
                training = most()
            assert metrics["skipped"] == 0
            actors.policy.publish()
            with watched(pids) as most:
                groups = generated(actors, task, step)
                running = most()
            print(f"floor {floor:.0f}, update {training:.0f}, engines running {running:.0f} MiB")
            assert {segment.policy_version for segment in policy_segments(groups)} == {step}
            assert running <= MOST_ABOVE_FLOOR * floor
            # Otherwise there would have been nothing to give away.
            assert training > 1.5 * floor


def policy_segments(groups: list[Group]) -> Iterator[PolicySegment]:
    for group in groups:
        for rollout in group.rollouts:
            yield from (s for s in rollout.segments if isinstance(s, PolicySegment))
