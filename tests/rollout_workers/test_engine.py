"""Rollout workers on real vLLM in a Ray actor.

One engine serves the tests in file order; the last ones end it.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch

from rollout_workers.config import EngineConfig, RolloutConfig
from rollout_workers.logprobs import logprob_table
from rollout_workers.pool import RolloutPool
from rollout_workers.segments import turn_index
from rollout_workers.settings import ForkRequest, WorkerSettings
from rollout_workers.special_tokens import BAN_BIAS
from rollout_workers.trajectory import EndReason, PolicySegment, Question, UnusableQuestion
from tests.rollout_workers.helpers import Result, picture

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
BLOCK = 32
# The engine's parameters: 4 layers x (qkv, o, q norm, k norm, gate_up, down, 2 norms), embedding,
# tied head, final norm; in the vision tower 4 blocks x 12, merger and deepstack merger 6 each,
# patch embedding 2, position embedding.
PARAMETERS = 4 * 8 + 3 + 4 * 12 + 2 * 6 + 2 + 1
ENGINE = EngineConfig(
    dtype="float32",
    block_size=BLOCK,
    max_num_seqs=16,
    enforce_eager=True,
    kv_cache_gb=0.25,
    weight_transfer="shared_memory",
)
CONFIG = RolloutConfig(
    n=4,
    max_turn_tokens=96,
    max_context_tokens=1024,
    temperature=0.7,
    deadline_s=90,
    retries=0,
    engine=ENGINE,
)
QUESTION = Question("q1", "what is the digit in the red frame? " * 12, (picture(0, 128),), "7")


SCHEMAS = [{"type": "function", "function": {"name": "zoom", "parameters": {}}}]


class Tools:
    async def schemas(self):
        return SCHEMAS

    async def call(self, name, arguments, images, earlier=()):
        return Result("ok", "zoomed.")


def reward(question, answer):
    return float(answer == question.answer)


def start(model: str) -> RolloutPool:
    settings = WorkerSettings(
        model, CONFIG, Tools(), reward, run_seed=3, system="look closely", want_entropies=True
    )
    pool = RolloutPool(settings)
    pool.ready()
    return pool


@pytest.fixture(scope="module")
def pool(cluster: None, model: str) -> Iterator[RolloutPool]:
    pool = start(model)
    yield pool
    pool.shutdown()


@pytest.fixture(scope="module")
def worker(pool):
    return pool.workers[0]


@pytest.fixture(scope="module")
def new_weights(model) -> dict[str, torch.Tensor]:
    """The model folder's tensors with noise, in float32."""
    from safetensors.torch import load_file

    noise = torch.Generator().manual_seed(1)
    tensors = load_file(f"{model}/model.safetensors").items()
    return {name: t.float() + 0.02 * torch.randn(t.shape, generator=noise) for name, t in tensors}


def payload(tensors: dict[str, torch.Tensor], folder) -> dict:
    """Write one bucket in the wire format."""
    file, entries = folder / "bucket", []
    with file.open("wb") as out:
        for name, tensor in tensors.items():
            entries.append(
                {
                    "name": name,
                    "dtype": "float32",
                    "shape": list(tensor.shape),
                    "offset": out.tell(),
                }
            )
            out.write(tensor.numpy().tobytes())
    return {"file": str(file), "tensors": entries}


def get(reference):
    return ray.get(reference, timeout=120)


def rolled(worker, *arguments):
    """Return a group. The actor's answer has the images of its rollouts, too (none here)."""
    return get(worker.rollout.remote(*arguments))[0]


def engine_processes(worker) -> list[psutil.Process]:
    return psutil.Process(get(worker.__ray_call__.remote(lambda self: os.getpid()))).children(
        recursive=True
    )


def test_a_group(pool, chat):
    (group,) = pool.rollout([QUESTION], step=0)
    assert [t.rollout for t in group.rollouts] == [0, 1, 2, 3]
    assert len({t.response_ids.tobytes() for t in group.rollouts}) == 4
    for t in group.rollouts:
        assert t.end in (
            EndReason.ANSWERED,
            EndReason.OUT_OF_TOKENS,
            EndReason.OUT_OF_TURNS,
            EndReason.MALFORMED_CALL,
        )
        assert t.reward == 0.0
        assert not np.isin(t.response_ids[t.policy_mask], chat.tokens.banned).any()
        assert (t.logprobs[t.policy_mask] < 0).all()
        assert t.entropies[t.policy_mask].min() > 0
        for segment in t.segments:
            if isinstance(segment, PolicySegment):
                assert segment.policy_version == 0
                assert (segment.token_ids == chat.tokens.im_end).sum() == (
                    segment.token_ids[-1] == chat.tokens.im_end
                )
                assert segment.token_ids[-1] == chat.tokens.im_end or len(segment.token_ids) == 96


def test_the_same_seeds_give_the_same_rollouts(worker):
    first, again, other = (rolled(worker, QUESTION, 2, step) for step in (1, 1, 2))
    assert [t.response_ids.tolist() for t in first.rollouts] == [
        t.response_ids.tolist() for t in again.rollouts
    ]
    assert [t.response_ids.tolist() for t in first.rollouts] != [
        t.response_ids.tolist() for t in other.rollouts
    ]


def fork(worker, step):
    """Returns (source, resample, prefix tokens of the fork's request, of these cached)."""
    source = max(
        rolled(worker, QUESTION, 4, step).rollouts,
        key=lambda t: len(t.segments[0].token_ids),
    )
    prefix = len(source.segments[0].token_ids) // 2
    request = ForkRequest(source.rollout, prefix, k=4)
    resample, *_ = get(worker.fork.remote(QUESTION, source, request, step))
    stats = resample.continuations[0].stats
    return source, resample, stats.prompt_tokens, stats.cached_tokens


def test_a_fork_continues_from_the_engines_cache(worker):
    source, resample, tokens, cached = fork(worker, step=3)
    in_whole_blocks = (tokens - 1) // BLOCK * BLOCK
    print(f"\nfork: {cached} of {tokens} prefix tokens cached, whole blocks: {in_whole_blocks}")
    assert cached == in_whole_blocks
    assert cached / tokens >= 0.8
    prefix = resample.prefix_tokens
    # 128 x 128 pixels: 16 features for one placeholder.
    assert tokens == len(source.prompt_ids) + prefix + 15
    assert len({c.response_ids.tobytes() for c in resample.continuations}) == 4
    for k, c in enumerate(resample.continuations):
        assert c.fork.index == k
        assert np.array_equal(c.response_ids[:prefix], source.response_ids[:prefix])
        assert np.array_equal(c.logprobs[:prefix], source.logprobs[:prefix])


def halves(tensors, folder) -> list[dict]:
    """Two interleaved buckets: q, k, v and gate, up of one layer arrive apart."""
    buckets = []
    for i in range(2):
        (folder / str(i)).mkdir(parents=True)
        buckets.append(payload(dict(list(tensors.items())[i::2]), folder / str(i)))
    return buckets


def test_weight_updates_change_the_policy(worker, new_weights, tmp_path):
    (before,) = rolled(worker, QUESTION, 1, 1).rollouts
    get(worker.init_weight_transfer.remote({}))
    outputs = [before.response_ids.tolist()]
    for version, scale in ((1, 0.9), (2, 1.0)):
        buckets = halves(
            {name: tensor * scale for name, tensor in new_weights.items()}, tmp_path / str(version)
        )
        differing = {
            name for bucket in buckets for name in get(worker.differing_weights.remote(bucket))
        }
        assert len(differing) == PARAMETERS
        get(worker.start_weight_update.remote())
        held_back = worker.rollout.remote(QUESTION, 1, 1)
        for bucket in buckets:
            get(worker.update_weights.remote(bucket))
        assert ray.wait([held_back], timeout=0.5)[0] == []
        get(worker.finish_weight_update.remote(version))

        assert [get(worker.differing_weights.remote(bucket)) for bucket in buckets] == [[], []]
        (after,) = get(held_back)[0].rollouts
        assert {s.policy_version for s in after.segments if isinstance(s, PolicySegment)} == {
            version
        }
        assert after.stats.cached_tokens == 0
        assert after.response_ids.tolist() not in outputs
        outputs.append(after.response_ids.tolist())


def test_one_wrong_element_is_found(worker, new_weights, tmp_path):
    name = "model.language_model.layers.2.self_attn.k_proj.weight"
    changed = new_weights[name].clone()
    changed[5, 7] = torch.nextafter(changed[5, 7], torch.tensor(torch.inf))
    bucket = payload({name: changed}, tmp_path)
    fused = ["language_model.model.layers.2.self_attn.qkv_proj.weight"]
    assert get(worker.differing_weights.remote(bucket)) == fused
    # To an engine on another machine it comes as bytes.
    sent = {"bytes": Path(bucket["file"]).read_bytes(), "tensors": bucket["tensors"]}
    assert get(worker.differing_weights.remote(sent)) == fused


def test_a_payload_reaches_the_engine_as_handles_do(worker, new_weights, tmp_path):
    """Its bytes pass vLLM's messages, and the engine's process loads what they hold."""
    get(worker.__ray_call__.remote(_take_handles, True))
    buckets = halves(new_weights, tmp_path)
    get(worker.start_weight_update.remote())
    for bucket in buckets:
        get(worker.update_weights.remote(bucket))
    assert get(worker.finish_weight_update.remote(3)) == 3
    get(worker.__ray_call__.remote(_take_handles, False))
    assert [get(worker.differing_weights.remote(bucket)) for bucket in buckets] == [[], []]


def _take_handles(worker, handles) -> None:
    worker._engine._updates._has_handles = handles


def test_logprobs_are_those_of_hugging_face(worker, new_weights, model, chat):
    """After an update, on the same tokens, in float32.

    Bans come first, then temperature, as in the learner.
    """
    from transformers import Qwen3VLForConditionalGeneration

    reference = Qwen3VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    reference.load_state_dict(new_weights, strict=False)
    reference.tie_weights()
    gap = hugging_face_gap(reference, QUESTION, rolled(worker, QUESTION, 4, 5), chat)
    print(f"\nlogprob gap over {len(gap)} tokens: mean {gap.mean():.1e}, max {gap.max():.1e}")
    assert gap.mean() < 1e-3


def hugging_face_gap(reference, question, group, chat) -> np.ndarray:
    """Return |engine's - reference's| log-probability of every sampled token.

    The question has one image of 16 tokens, and the rollouts have no tool call.
    """
    from PIL import Image
    from transformers import AutoImageProcessor

    pixels = AutoImageProcessor.from_pretrained(reference.name_or_path)(
        images=[Image.fromarray(question.images[0])], return_tensors="pt"
    )
    pad = chat.tokens.image_pad
    gaps = []
    for t in group.rollouts:
        assert turn_index(t.segments) == 0
        ids = [*t.prompt_ids, *t.response_ids]
        at = ids.index(pad)
        ids = torch.tensor([ids[:at] + [pad] * 16 + ids[at + 1 :]])
        with torch.no_grad():
            output = reference(input_ids=ids, mm_token_type_ids=(ids == pad).long(), **pixels)
        logits = output.logits[0].float()
        logits[:, list(chat.tokens.banned)] += BAN_BIAS
        logprobs = (logits / CONFIG.temperature).log_softmax(-1)[:-1]
        sampled = logprobs.gather(1, ids[0, 1:, None])[-len(t.response_ids) :, 0]
        gaps.append(np.abs(sampled.numpy() - t.logprobs))
    return np.concatenate(gaps)


def long_question(chat, tokens: int) -> Question:
    """Return a question whose prompt has so many tokens, 16 of them its image's."""
    empty = len(chat.prompt("", (0,), SCHEMAS, "look closely")) + 15
    word = len(chat.plain.encode(" digit", add_special_tokens=False).ids)
    assert word == 1
    asked = Question(f"long {tokens}", " digit" * (tokens - empty), QUESTION.images, "7")
    assert len(chat.prompt(asked.text, (0,), SCHEMAS, "look closely")) + 15 == tokens
    return asked


def test_the_context_limit_is_an_end(worker, chat):
    group = rolled(worker, long_question(chat, 1023), 2, 0)
    assert [t.end for t in group.rollouts] == [EndReason.OUT_OF_TOKENS] * 2
    assert [len(t.response_ids) for t in group.rollouts] == [1, 1]
    assert [t.stats.prompt_tokens for t in group.rollouts] == [1023, 1023]


def test_a_prompt_that_fills_the_context_is_unusable_by_our_count_and_by_the_engines(worker, chat):
    full = long_question(chat, 1024)
    with pytest.raises(UnusableQuestion, match="16 tokens of images and 1,008 of text"):
        rolled(worker, full, 2, 0)
    get(worker.__ray_call__.remote(_count_nothing))
    with pytest.raises(UnusableQuestion, match="question long 1024: "):
        rolled(worker, full, 2, 0)


def _count_nothing(worker) -> None:
    worker._context = replace(worker._context, limit=10**9)


def test_an_image_is_hashed_and_processed_once_however_often_it_is_shown(worker):
    """Count what reaches vLLM's processor and hasher: 4 rollouts and a fork show the same image."""
    get(worker.__ray_call__.remote(_watch))
    question = Question("new", QUESTION.text, (picture(7, 128),), "7")
    rollouts = rolled(worker, question, 4, 6).rollouts
    prefix = len(rollouts[0].segments[0].token_ids) // 2
    get(worker.fork.remote(question, rollouts[0], ForkRequest(0, prefix, k=4), 6))
    assert get(worker.__ray_call__.remote(lambda self: self.seen)) == {"processed": 1, "hashed": 0}


def _watch(worker) -> None:
    from vllm.multimodal.hasher import MultiModalHasher

    worker.seen = {"processed": 0, "hashed": 0}
    processor = worker._engine._llm.renderer.mm_processor
    process, hash_kwargs = processor._apply_hf_processor_main, MultiModalHasher.hash_kwargs

    def counted_process(mm_items, hf_kwargs):
        worker.seen["processed"] += mm_items.get_all_counts().get("image", 0)
        return process(mm_items, hf_kwargs)

    def counted_hash(*arguments, **options):
        worker.seen["hashed"] += 1
        return hash_kwargs(*arguments, **options)

    processor._apply_hf_processor_main = counted_process
    MultiModalHasher.hash_kwargs = counted_hash


def test_prompts_are_prefilled_whole_and_one_process_has_scheduler_and_model(worker):
    """Why both matter on a CPU.

    vLLM dies of requests with a seed whose prompt it prefills in chunks, and a process of the model
    alone costs a core.
    """
    assert get(worker.__ray_call__.remote(_chunked_prefill)) is False
    names = [process.name() for process in engine_processes(worker)]
    assert [name for name in names if "EngineCore" in name]
    assert not [name for name in names if "Worker" in name]


def _chunked_prefill(worker) -> bool:
    return bool(worker._engine._llm.vllm_config.scheduler_config.enable_chunked_prefill)


def test_outputs_that_vllm_merged_hold_the_same_logprobs():
    """It merges them when the consumer lags, through dictionaries.

    A sampled token among the largest is then there once, not twice.
    """
    from itertools import repeat

    from vllm.logprobs import FlatLogprobs

    def position(tokens, values):
        flat = FlatLogprobs()
        flat.append_fast(tokens, values, iter(range(4)), repeat(None))
        return flat

    # The sampled token is the second largest, the largest, and none of the three largest.
    rows = [
        ([7, 5, 7, 9], [-1.0, -0.5, -1.0, -3.0]),
        ([5, 5, 7, 9], [-0.25] * 2 + [-2.0, -3.0]),
        ([1, 5, 7, 9], [-6.0, -0.5, -1.0, -3.0]),
    ]
    merged = position(*rows[0])
    for row in rows[1:]:
        merged.extend(position(*row))
    assert len(merged.logprobs) == 4 + 3 + 4
    table = logprob_table(merged, 3)
    assert table.shape == (3, 4)
    assert table[:, 0].tolist() == [-1.0, -0.25, -6.0]
    assert [sorted(row[1:], reverse=True) for row in table.tolist()] == [
        values[1:] for _, values in rows
    ]
    assert logprob_table(merged, 0).tolist() == [[-1.0], [-0.25], [-6.0]]


def test_stats_count_tokens(worker):
    stats = get(worker.engine_stats.remote())
    assert stats["generated_tokens"] > 0
    assert 0 < stats["cached_tokens"] < stats["prompt_tokens"]
    assert stats["running"] == 0


def test_a_dead_engine_is_a_typed_end(worker):
    next(p for p in engine_processes(worker) if "EngineCore" in p.name()).kill()
    group = rolled(worker, QUESTION, 2, 0)
    assert [(t.end, t.reward) for t in group.rollouts] == [(EndReason.ENGINE_FAILURE, None)] * 2


@pytest.mark.slow
def test_a_refused_update_and_a_killed_actor(cluster, model, new_weights, tmp_path):
    """On a second engine.

    An update without all parameters is refused; a killed actor leaves no engine process.
    """
    second = start(model)
    worker = second.workers[0]
    get(worker.init_weight_transfer.remote({}))
    get(worker.start_weight_update.remote())
    get(
        worker.update_weights.remote(
            payload({k: v for k, v in new_weights.items() if "k_norm" not in k}, tmp_path)
        )
    )
    with pytest.raises(
        Exception,
        match=r"had no tensor for 4 parameters, first language_model\..*\.0\.self_attn\.k_norm",
    ):
        get(worker.finish_weight_update.remote(2))
    processes = engine_processes(worker)
    assert any("EngineCore" in p.name() for p in processes)
    ray.kill(worker)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(map(alive, processes)):
        time.sleep(0.1)
    assert not [p for p in processes if alive(p)]
    second.shutdown()  # else it would go on replacing its worker


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
