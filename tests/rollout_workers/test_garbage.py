"""How often Python looks for cycles."""

import gc

from rollout_workers.garbage import ALLOCATIONS, few_collections


def test_within_the_block_python_looks_rarely_and_afterwards_as_before():
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with few_collections():
        assert gc.get_threshold() == (ALLOCATIONS, *before[1:])
        # What was there is not looked at again: at least the modules and functions of this test.
        assert gc.get_freeze_count() > frozen + 10_000
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)


def test_a_cycle_is_still_freed():
    class Node:
        freed = 0

        def __del__(self):
            Node.freed += 1

    with few_collections():
        for _ in range(2 * ALLOCATIONS):
            node = Node()
            node.itself = node
        assert Node.freed > ALLOCATIONS // 2
