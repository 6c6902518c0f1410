"""Memory that a rank lends, on storages that lie as DeepSpeed's do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from learner import parking
from learner.parking import Memory, needs_memory

MIB = 1 << 20
CPU = torch.device("cpu")


class Engine:
    """What `Memory` reads of DeepSpeed's engine: partitions are views of one flat buffer."""

    def __init__(self, numbers: int = 4 * MIB, *, trained: bool = True) -> None:
        torch.manual_seed(0)
        self.flat = torch.randn(numbers)
        half = numbers // 2
        views = [self.flat[:half], self.flat[half:]]
        parameters = [SimpleNamespace(ds_tensor=view) for view in views]
        self.module = SimpleNamespace(parameters=lambda: parameters)
        self.caches_emptied = 0
        self.optimizer = SimpleNamespace()
        if trained:
            exact = torch.randn(numbers)
            moments = {"step": torch.tensor(3.0), "exp_avg": torch.randn(numbers)}
            self.optimizer.fp32_partitioned_groups_flat = [exact]
            self.optimizer.state = {exact: moments}
            self.optimizer.grad_partitions_flat_buffer = torch.randn(numbers)
            self.optimizer.ipg_buckets = {
                torch.float32: SimpleNamespace(buffer=torch.randn(numbers)),
                torch.bfloat16: SimpleNamespace(buffer=None),
            }

    def empty_partition_cache(self) -> None:
        self.caches_emptied += 1

    def kept(self) -> list[torch.Tensor]:
        return list(parking._kept([self]))

    def scratch(self) -> list[torch.Tensor]:
        return list(parking._scratch([self]))


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_what_is_kept_comes_back_to_the_bit_in_the_same_views_and_sums_come_back_as_zeros() -> None:
    engine = Engine()
    right = [tensor.clone() for tensor in engine.kept()]
    memory = Memory([engine], CPU)
    memory.release()
    assert memory.released
    # Small numbers stay: AdamW's step is read between updates.
    assert engine.optimizer.state[engine.optimizer.fp32_partitioned_groups_flat[0]]["step"] == 3
    memory.reclaim()
    assert not memory.released
    for found, expected in zip(engine.kept(), right, strict=True):
        assert torch.equal(found, expected)
    assert not any(tensor.any() for tensor in engine.scratch())
    # The parameters are still the flat buffer.
    engine.flat.fill_(7)
    assert all(p.ds_tensor.eq(7).all() for p in engine.module.parameters())


@pytest.mark.parametrize("seen_by_numpy", [False, True])
def test_the_process_is_smaller_while_its_memory_is_lent(seen_by_numpy: bool) -> None:
    engine, reference = Engine(16 * MIB), Engine(16 * MIB, trained=False)
    if seen_by_numpy:
        engine.flat.numpy()  # torch resizes no such storage
    memory = Memory([engine, reference], CPU)
    # What earlier tests freed would count as given back, and not come again.
    parking.give_back(CPU)
    before = resident()
    memory.release()
    # Six buffers of 64 MiB: weights, exact weights, a moment, sums, a bucket, and the reference.
    assert before - resident() > 6 * 64 * MIB - 16 * MIB
    memory.reclaim()
    assert resident() > before - 16 * MIB
    assert (engine.caches_emptied, reference.caches_emptied) == (1, 1)


def test_the_next_time_changed_numbers_come_back() -> None:
    engine = Engine()
    memory = Memory([engine], CPU)
    for value in (1.0, 2.0):
        engine.flat.fill_(value)
        memory.release()
        memory.release()  # changes nothing
        memory.reclaim()
        memory.reclaim()
        assert engine.flat.eq(value).all()


def test_without_room_for_all_of_it_nothing_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    right = [tensor.clone() for tensor in engine.kept()]
    memory = Memory([engine], CPU)
    write, calls = parking._File.write, []

    def full(self: Any, data: torch.Tensor) -> None:
        calls.append(data)
        if len(calls) == 2:
            raise OSError("no space left on device")
        write(self, data)

    monkeypatch.setattr(parking._File, "write", full)
    with pytest.raises(OSError, match="no space left"):
        memory.release()
    assert not memory.released
    for found, expected in zip(engine.kept(), right, strict=True):
        assert torch.equal(found, expected)


class Rank:
    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    @needs_memory
    def work(self, *, fail: bool = False) -> bool:
        """Return whether the memory is lent."""
        if fail:
            raise ValueError("no")
        return self.memory.released


def test_a_call_takes_the_memory_back_and_leaves_it_as_it_was() -> None:
    memory = Memory([Engine()], CPU)
    rank = Rank(memory)
    assert not rank.work()
    assert not memory.released
    memory.release()
    assert not rank.work()
    assert memory.released
    with pytest.raises(ValueError, match="no"):
        rank.work(fail=True)
    assert memory.released


def test_a_rank_calls_nothing_without_its_memory() -> None:
    """Every method that a learner calls holds the memory, or does not need it."""
    from learner.rank import LearnerRank

    without = {"finish_save", "release_memory", "reclaim_memory", "begin_profile", "end_profile"}
    public = {name for name in vars(LearnerRank) if not name.startswith("_")}
    holding = {name for name in public if hasattr(getattr(LearnerRank, name), "__wrapped__")}
    assert public - holding == without
