"""How the questions of a batch are dealt out to optimizer steps."""

import numpy as np

from learner.config import LearnerConfig
from learner.credit import TrainItem
from learner.update import deal, with_gradient
from tests.learner.helpers import DIRECT, QUESTION, trajectory

WITHOUT_KL = LearnerConfig(kl_beta=0)
QUESTIONS = ["a", "a", "b", "c", "b"]


def test_one_mini_batch_is_the_whole_batch_in_its_order():
    (part,) = deal(QUESTIONS, epochs=1, mini_batches=1, seed=[0, 0])
    assert (part.indices, part.scale) == ([0, 1, 2, 3, 4], 1.0)


def test_every_epoch_deals_all_items_and_keeps_those_of_a_question_together():
    parts = list(deal(QUESTIONS, epochs=3, mini_batches=2, seed=[7, 1]))
    assert [part.scale for part in parts] == [3 / 2, 3 / 1] * 3
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        assert sorted(first.indices + second.indices) == [0, 1, 2, 3, 4]
        assert not {QUESTIONS[i] for i in first.indices} & {QUESTIONS[i] for i in second.indices}
    assert len({tuple(part.indices) for part in parts}) > 2  # another order in another epoch


def test_there_is_at_most_one_mini_batch_for_each_question():
    parts = list(deal(QUESTIONS, epochs=1, mini_batches=9, seed=[0]))
    assert len(parts) == 3


def test_the_same_seed_deals_the_same_mini_batches():
    first, again, other = (
        [part.indices for part in deal(list("abcdefgh"), 2, 4, seed)] for seed in ([3], [3], [4])
    )
    assert first == again
    assert first != other


def test_a_mini_batch_takes_its_items_with_heavier_weights():
    mask = np.ones(4, bool)
    items = [
        TrainItem(QUESTION, trajectory(DIRECT, 1.0, rollout=i), mask.astype(np.float32), mask, 0.25)
        for i in range(3)
    ]
    part = next(deal(["a", "b", "c"], epochs=1, mini_batches=3, seed=[0]))
    (item,) = part.of(items)
    assert item.weight == 0.75
    assert item.trajectory is items[part.indices[0]].trajectory


def item(advantages: list[float], mask: list[bool]) -> TrainItem:
    return TrainItem(
        QUESTION, trajectory(DIRECT, 1.0), np.array(advantages, np.float32), np.array(mask), 1.0
    )


def test_without_a_kl_term_items_without_advantage_are_not_computed():
    items = [
        item([0, 0, 0, 0], [True] * 4),
        item([0, 0, -1, 0], [True] * 4),
        # Its advantage is on a token that does not train.
        item([0, 0, 1, 0], [True, True, False, True]),
        item([1, 1, 1, 1], [False, False, False, True]),
    ]
    assert with_gradient(items, WITHOUT_KL) == [1, 3]
    assert with_gradient(items, LearnerConfig(kl_beta=1e-3)) == [0, 1, 2, 3]


def test_a_step_without_any_gradient_is_taken_all_the_same():
    assert with_gradient([item([0] * 4, [True] * 4)] * 2, WITHOUT_KL) == [0, 1]


def test_an_objective_that_may_train_without_advantage_computes_all_items(own_files):
    config = LearnerConfig.model_validate({"kl_beta": 0, "objective": "own_objectives:squared"})
    assert with_gradient([item([0] * 4, [True] * 4), item([1] * 4, [True] * 4)], config) == [0, 1]
