"""Seeds are a function of what they sample, and of nothing else."""

import itertools

from rollout_workers.seeds import Seeds


def test_a_seed_is_the_same_in_every_process_and_release():
    assert Seeds(0, 0, "q", 0).of_turn(0) == 1740880109338352246


def test_every_coordinate_counts_and_no_two_collide():
    grid = list(
        itertools.product(
            (0, 1), (0, 1), ("a", "b"), (0, 1), (None, (3, 0), (3, 1), (31, 0)), (0, 1)
        )
    )
    assert len({Seeds(*rollout).of_turn(turn) for *rollout, turn in grid}) == len(grid) == 128


def test_a_seed_leaves_room_for_the_index_of_a_child_request():
    assert all(0 <= Seeds(0, step, "q", 0).of_turn(0) < 2**62 for step in range(100))
