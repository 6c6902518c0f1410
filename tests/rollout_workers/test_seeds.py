"""Seeds are a function of what they sample, and of nothing else."""

import itertools

from rollout_workers.seeds import Seeds


def test_a_seed_is_the_same_in_every_process_and_release():
    assert Seeds(0, 0, "q", 0).of_turn(0) == 1740880109338352246


def test_every_coordinate_counts_and_no_two_collide():
    forks = (None, (3, 0), (3, 1), (31, 0))
    rollouts = list(itertools.product((0, 1), (0, 1), ("a", "b"), (0, 1), forks))
    seeds = {Seeds(*rollout).of_turn(turn) for rollout in rollouts for turn in (0, 1)}
    assert len(seeds) == 2 * len(rollouts) == 128


def test_each_part_of_a_turn_that_an_update_cut_has_a_seed_of_its_own():
    seeds = Seeds(0, 0, "q", 0)
    assert seeds.of_turn(0, part=0) == seeds.of_turn(0)
    assert len({seeds.of_turn(0, part) for part in range(4)}) == 4


def test_a_fork_has_the_seeds_of_its_place():
    assert Seeds(0, 0, "q", 0).of_fork(3, 1) == Seeds(0, 0, "q", 0, (3, 1))


def test_a_seed_leaves_room_for_the_index_of_a_child_request():
    assert all(0 <= Seeds(0, step, "q", 0).of_turn(0) < 2**62 for step in range(100))
