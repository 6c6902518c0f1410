"""The training loop with its run directory: checkpoints, their questions, and what stops a run.

Flow, policy, credit and resampler are real; engines and learner are mocks without Ray.
"""

import asyncio
import io
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from axpo.errors import AxpoError
from axpo.record.run import RunDirectory
from axpo.record.summary import read_summary
from axpo.training.actors import Actors
from axpo.training.cursor import load_cursor
from axpo.training.due import Due, End
from axpo.training.flow import Flow
from axpo.training.policy import Policy
from axpo.training.progress import Progress
from axpo.training.replay import Replaying, replay
from axpo.training.trainer import TrainingRun, train
from learner import manifest
from learner.checkpoint import Saving
from rollout_workers.fleet import WorkersFailed
from tests.axpo.helpers import TOKENS, decode, direct, group
from tests.axpo.training import local


class Task(local.Task):
    def held_out(self):
        return [self.train(1000)]


class Pool(local.Pool):
    """`lost`: the question at which the last worker dies."""

    workers = ()

    def __init__(self, lost=None, **options):
        super().__init__(**options)
        self.lost = lost

    async def group(self, question, batch):
        if int(question.id) == self.lost:
            await asyncio.sleep(0.05)
            raise WorkersFailed("too many rollout workers were lost")
        return await super().group(question, batch)

    def join_with(self, bring):
        pass

    def ready(self):
        return TOKENS

    def outcomes(self, questions, step, n, *, temperature, evaluating):
        for question in questions:
            rollouts = [direct(i, float(i % 2), question.id) for i in range(n)]
            yield group(rollouts, question=question.id)

    def take_stats(self):
        return {}


class Learner:
    """A checkpoint of it is the questions trained on so far.

    `nan`: updates, counted from 1, that are not finite. `seconds`: what an update takes. `full`:
    the checkpoint for which the disk has no room.
    """

    def __init__(self, nan=(), seconds=0.0, full=None):
        self.nan, self.seconds, self.full = nan, seconds, full
        self.updates = self.in_a_row = 0
        self.trained = []
        self.saving, self.waited = Saving(), []

    def update(self, items):
        self.saving.check()
        time.sleep(self.seconds)
        self.updates += 1
        self.in_a_row = self.in_a_row + 1 if self.updates in self.nan else 0
        self.trained += sorted({int(item.question.id) for item in items})
        return {"skipped": float(self.in_a_row > 0), "skipped_in_a_row": float(self.in_a_row)}

    def save(self, folder, add, wait):
        path, text = Path(folder), " ".join(map(str, self.trained))
        temporary = manifest.begin(path)
        add(temporary)
        self.waited.append(wait)

        def write():
            time.sleep(self.seconds / 2)
            if path.name == self.full:
                raise OSError("no space left")
            (temporary / "trained").write_text(text)

        def alone(mine):
            return [mine]

        self.saving.start(partial(manifest.finish, path, [write], {"ranks": 1}, 0, alone))
        if wait:
            self.finish_save()

    def finish_save(self):
        self.saving.wait(10)

    def load(self, folder):
        self.trained = [int(question) for question in (folder / "trained").read_text().split()]


def start(run, pool, learner, /, first=0, **fields):
    """Call `train` from step `first` of a run directory on, as the command does."""
    recipe = local.recipe(**({"algorithm": "grpo", "checkpoint_every": 1} | fields))
    resampler = local.local_resampler(recipe)
    tools = SimpleNamespace(take_stats=dict)
    actors = Actors(pool, tools, learner, Policy(learner, pool), resampler, TOKENS)
    flow = Flow(recipe, Task(), pool, resampler)
    if first:
        learner.load(run.checkpoints.path(first))
        flow.resume(load_cursor(run.checkpoints.path(first)))
    with Progress(recipe.steps, first, Console(file=io.StringIO())) as progress:
        try:
            return train(TrainingRun(recipe, Task(), actors, flow, run, progress, decode), first)
        finally:
            flow.close()


def test_the_ranks_are_profiled_in_the_steps_of_the_window_alone(tmp_path):
    class Profiled(Learner):
        folders = ()

        def begin_profile(self):
            self.begun = self.updates

        def end_profile(self, folder):
            assert self.updates == self.begun + 1
            self.folders += (Path(folder).relative_to(tmp_path),)

    learner = Profiled()
    with RunDirectory.create("a", {}, tmp_path) as run:
        start(run, Pool(), learner, learner={"profile_steps": [2, 3]})
    assert learner.updates == 4
    assert [str(folder) for folder in learner.folders] == [
        "a/profile/step_0002",
        "a/profile/step_0003",
    ]


@pytest.mark.parametrize(
    ("done", "skipped", "stopped", "end"),
    [
        (3, 0, False, None),
        (3, 2, False, None),
        (3, 3, False, End.NOT_FINITE),
        (3, 0, True, End.STOPPED),
        (8, 0, False, End.COMPLETE),
        (8, 0, True, End.COMPLETE),
        (8, 3, True, End.NOT_FINITE),
    ],
)
def test_what_ends_a_run(done, skipped, stopped, end):
    recipe = local.recipe(steps=8, learner={"max_skipped": 3})
    due = Due(recipe, SimpleNamespace(requested=stopped))
    assert due.end(done, {"skipped_in_a_row": skipped}) is end


def test_a_step_without_an_update_does_not_end_a_run():
    due = Due(local.recipe(steps=8), SimpleNamespace(requested=False))
    assert due.end(3, {}) is None


def test_what_is_due_after_a_step():
    recipe = local.recipe(steps=8, checkpoint_every=3, evaluation={"every": 2})
    due = Due(recipe, SimpleNamespace(requested=False))
    steps = range(1, 9)
    assert [done for done in steps if due.evaluation(done)] == [2, 4, 6, 8]
    assert [done for done in steps if due.checkpoint(done, None)] == [3, 6]
    assert [done for done in steps if due.checkpoint(done, End.STOPPED)] == list(steps)
    rarely = Due(local.recipe(steps=8), SimpleNamespace(requested=False))
    assert [done for done in steps if rarely.evaluation(done)] == [8]


def test_updates_in_a_row_that_are_not_finite_stop_the_run_with_a_checkpoint(tmp_path):
    learner = Learner(nan=(2, 4, 5, 6))
    with (
        RunDirectory.create("a", {}, tmp_path) as run,
        pytest.raises(
            AxpoError,
            match="2 updates in a row were not finite: stopped after step 5, with a checkpoint",
        ),
    ):
        start(run, Pool(), learner, steps=8, checkpoint_every=100, learner={"max_skipped": 2})
    assert run.held_out() == [{"step": 0, "counts": {"": [[4, 2, 0, 0]]}}]
    assert learner.updates == 5  # one alone, the second, did not stop it
    assert run.checkpoints.latest() == (5, run.checkpoints.path(5))
    assert manifest.verify(run.checkpoints.path(5))["ranks"] == 1
    assert [row.get("skipped_in_a_row") for row in run.metrics()] == [None, 0, 1, 0, 1, 2]
    assert read_summary(run.path) is None


def test_finished_groups_survive_a_lost_cluster_and_a_resume(tmp_path):
    """Asynchronous: eight questions ahead.

    While the second batch is trained on, 8 to 11 are under way, and at 9 the last worker dies.
    """
    fields = {"max_staleness": 1, "steps": 4, "checkpoint_every": 100}
    before = Learner(seconds=0.1)
    with (
        RunDirectory.create("a", {}, tmp_path) as run,
        pytest.raises(AxpoError, match="too many rollout workers were lost"),
    ):
        start(run, Pool(lost=9), before, **fields)
    run, first = RunDirectory.resume(run.path)
    assert first == 2
    cursor = load_cursor(run.checkpoints.path(2))
    assert (cursor.pending, {kept.index for kept in cursor.kept}) == ((9,), {8, 10, 11})
    pool, learner = Pool(), Learner()
    with run:
        assert start(run, pool, learner, first, **fields)["steps"] == 4
    assert sorted(learner.trained) == list(range(16))
    assert sorted(q for q, _ in pool.asked) == [9, 12, 13, 14, 15]


@pytest.mark.parametrize("lost", [9, 12, 13])
def test_a_synchronous_run_with_dynamic_sampling_goes_on_exactly(lost, tmp_path):
    """The batches and seeds are the same.

    It does not matter if the last worker dies in the first questions of a step or in further ones.
    """
    fields = {"dynamic_sampling": True, "steps": 3, "checkpoint_every": 100}
    uninformative = {"easy": (1, 5, 7), "hard": (4, 10)}
    uninterrupted, expected = Pool(**uninformative), Learner()
    with RunDirectory.create("uninterrupted", {}, tmp_path) as run:
        start(run, uninterrupted, expected, **fields)
    with RunDirectory.create("lost", {}, tmp_path) as run, pytest.raises(AxpoError, match="lost"):
        start(run, Pool(lost=lost, **uninformative), Learner(), **fields)
    run, first = RunDirectory.resume(run.path)
    assert first == (2 if lost == 13 else 1)
    pool, learner = Pool(**uninformative), Learner()
    with run:
        start(run, pool, learner, first, **fields)
    assert learner.trained == expected.trained
    assert sorted(pool.asked) == sorted(uninterrupted.asked)[-len(pool.asked) :]
    assert [row.get("groups_uninformative") for row in run.metrics()][1:] == [3.0, 2.0, 0.0]


def test_checkpoints_are_written_while_training_goes_on_and_the_last_is_waited_for(tmp_path):
    learner = Learner(seconds=0.05)
    with RunDirectory.create("a", {}, tmp_path) as run:
        start(run, Pool(), learner, steps=3, checkpoint_async=True, keep_checkpoints=9)
        assert learner.waited == [False, False, True]
        for step in (1, 2, 3):
            folder = run.checkpoints.path(step)
            manifest.verify(folder)
            as_it_was_when_saved = " ".join(map(str, range(4 * step)))
            assert (folder / "trained").read_text() == as_it_was_when_saved


def test_a_checkpoint_that_fails_while_training_goes_on_stops_the_run(tmp_path):
    learner = Learner(seconds=0.05, full="step_0002")
    with (
        RunDirectory.create("a", {}, tmp_path) as run,
        pytest.raises(OSError, match="no space left"),
    ):
        start(run, Pool(), learner, steps=8, checkpoint_async=True)
    assert learner.updates in (2, 3)
    run, first = RunDirectory.resume(run.path)
    run.close()
    assert first == 1


def test_a_replay_gives_credit_as_the_learners_objective_wants_it(tmp_path):
    class Keeping:
        def update(self, items):
            self.items = items
            return {}

        def save(self, folder):
            pass

    learner = Keeping()
    recipe = local.recipe(learner={"objective": {"name": "dr_grpo", "loss_length": 100}})
    with (
        RunDirectory.create("a", {}, tmp_path) as run,
        Progress(1, console=Console(file=io.StringIO())) as progress,
    ):
        made = group([direct(0, 1.0), direct(1, 0.0)])
        of_text = replace(made, question=replace(made.question, images=()))
        # The prompt has no token for an image, so no model could compute a group with one.
        run.save_rollouts(1, [made, of_text], decode)
        assert replay(Replaying(recipe, learner, TOKENS, run, progress), run) == 1
    assert len(learner.items) == 2
    advantages = [set(item.advantages[item.mask].tolist()) for item in learner.items]
    assert advantages == [{0.5}, {-0.5}]  # r - mean, not divided by the std
