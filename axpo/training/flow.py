"""Turn questions into batches of finished groups; nothing waits for anything that it does not need.

The trainer feeds questions and takes batches:

    synchronous   (max_staleness 0)  a batch is exactly the questions of the step, all of them begun
                                     by the policy that is updated
    asynchronous  (S >= 1)           the engines work on S + 1 batches. A batch is whatever is
                                     finished; groups that would be more than S versions old in
                                     the next batch come first. If such a group is not finished,
                                     the trainer waits for it (`stale: wait`) or drops it
                                     (`stale: drop`)

So no group is trained on that was begun by a policy more than S updates older. A group that
infrastructure broke keeps its place in the batch; it is dropped, counted and never padded. So is a
question that turns out to be unusable, because an image cannot be read or the prompt fills the
context. It is remembered: when its row comes again, the next one is asked in its place.

With `dynamic_sampling` (DAPO, arXiv 2503.14476, section 3.2) groups that teach nothing are set
aside, and as many further questions are asked as the batch lacks, round by round. Each round is a
batch of its own for the resampler's budget. So the questions of a synchronous step still follow
from the outcomes alone, whichever group finishes first.

With `resampler.schedule: carry` a group does not wait for its forks. The batch is trained without
their sources, and these come with the next batch (`carrying.py`).

How questions are asked is in `asking.py`; what happens to one of them is in `following.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from axpo.config import Recipe
from axpo.errors import AxpoError
from axpo.tasks import Task
from axpo.training.asking import Asking
from axpo.training.carrying import Carrying, kept_of
from axpo.training.cursor import Cursor
from axpo.training.following import Following
from axpo.training.in_flight import InFlight, QuestionInFlight
from learner.credit import Carried, Update
from resampler.client import ResamplerClient
from rollout_workers.fleet import Log, no_log
from rollout_workers.pool import RolloutPool
from rollout_workers.trajectory import Group

MOST_UNUSABLE = 64
"""Questions in a row that turn out to be unusable. A data set with so many has lost its disk."""


@dataclass(frozen=True)
class Taken:
    """A batch for the learner."""

    groups: list[Group]  # complete, with their resamples or the sources that they carry
    uninformative: list[Group]  # complete, set aside by dynamic sampling
    dropped: int  # questions that infrastructure broke
    unusable: tuple[str, ...]  # why questions could not be asked, one line each
    stale: int  # questions dropped because they would have been too old
    forks_dropped: int  # resamples that infrastructure broke
    forks_collapsed: int  # prefixes given up because their continuations agreed on the call
    verifier_failures: int  # rollouts and continuations whose verifier failed
    staleness: dict[str, int]  # question id -> updates between the policy that began it and now
    carried: list[Carried] = field(default_factory=list)  # of earlier batches; their forks are back

    @property
    def finished(self) -> list[Group]:
        """Return what the policy did, trained on or not: the groups that diagnostics describe."""
        return self.groups + self.uninformative

    @property
    def resampled(self) -> list[Group]:
        """Return the groups whose continuations came with this batch."""
        own = [group for group in self.finished if group.resamples]
        return own + [carried.group for carried in self.carried]


class Flow:
    """Keep questions in flight and hand out batches. For the trainer's thread alone."""

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        pool: RolloutPool,
        resampler: ResamplerClient,
        log: Log = no_log,
    ) -> None:
        # The order of a data set's rows is the run's; a task that inherits nothing may lack this.
        if hasattr(task, "shuffle"):
            task.shuffle(recipe.seed)
        self._recipe = recipe
        self._resampler = resampler
        self._log = log
        self._following = Following(recipe, pool, resampler, log)
        self._asking = Asking(task, recipe.questions_per_step, self._following, log)
        self._in_flight = InFlight()
        self._carrying = Carrying(log)
        self._unusable_in_a_row = 0

    def resume(self, cursor: Cursor) -> None:
        """Go on where an earlier process of the run stood; call it before the first `feed`."""
        for restored in self._asking.resume(cursor):
            self._in_flight.add(restored)
        self._carrying.resume(cursor.carried, self._asking)
        if cursor.history is not None:
            self._resampler.restore(cursor.history)

    @property
    def cursor(self) -> Cursor:
        """Return what a resume needs, between `take` and `feed`."""
        # A question may become complete while this looks: each is asked once.
        complete = {asked: None for asked in self._in_flight if asked.complete}
        found = {q.question.id: q.unusable for q in self._in_flight if q.unusable is not None}
        again = sorted(
            asked.index
            for asked in self._in_flight
            if asked not in complete and asked.unusable is None
        )
        return Cursor(
            following=self._asking.next_index,
            batch=self._asking.next_batch,
            pending=(*again, *self._asking.pending),
            kept=tuple(kept_of(asked) for asked in complete),
            carried=self._carrying.kept(),
            history=self._resampler.history(),
            set_aside=self._asking.set_aside | found,
        )

    def feed(self, step: int) -> None:
        """Ask as many questions as the staleness bound allows, of policy version `step`."""
        recipe = self._recipe
        # The engines serve the policy of this step.
        self._following.let_forks_start()
        # The engines work ahead by as many batches as a group may be stale, but not past the end.
        batches = min(recipe.max_staleness + 1, recipe.steps - step)
        self._ask(batches * recipe.questions_per_step - len(self._in_flight), step)

    def take(self, step: int) -> Taken:
        """Wait for the batch that policy version `step` is updated with.

        Raises:
            Exception: what a question's own task raised, as soon as it did.
        """
        size = self._recipe.questions_per_step
        may_ask = self._recipe.extra_questions
        batch: list[QuestionInFlight] = []
        stale: list[QuestionInFlight] = []
        set_aside: list[QuestionInFlight] = []
        # One round; with dynamic sampling another one for as long as groups teach nothing.
        while True:
            finished, late = self._wait(step, size - len(batch))
            uninformative = self._uninformative(finished)
            batch += [asked for asked in finished if asked not in uninformative]
            stale += late
            set_aside += uninformative
            missing = min(size - len(batch), may_ask)
            if not uninformative or not missing:
                return self._taken(step, batch, stale, set_aside)
            self._ask(missing, step)
            may_ask -= missing

    def close(self) -> None:
        """Give up what is in flight."""
        for asked in self._in_flight:
            asked.result.cancel()
        self._carrying.close()

    def _ask(self, count: int, step: int) -> None:
        for asked in self._asking.ask(count, version=step):
            self._in_flight.add(asked)

    def _uninformative(self, finished: Sequence[QuestionInFlight]) -> dict[QuestionInFlight, None]:
        if not self._recipe.dynamic_sampling:
            return {}
        return {asked: None for asked in finished if asked.uninformative}

    def _wait(self, step: int, size: int) -> tuple[list[QuestionInFlight], list[QuestionInFlight]]:
        """Wait for `size` finished questions, or for all.

        Returns:
            The oldest finished questions, and those that were given up because they are too old.
        """
        dropped: list[QuestionInFlight] = []
        in_flight = self._in_flight
        # Groups that this version began are too old in the batch of the next step.
        too_old = step - self._recipe.max_staleness
        with in_flight.lock:
            in_flight.wait_for_finished(size)
            if self._recipe.stale == "drop":
                # A question that waits for the resampler only is kept: it waits for the
                # stragglers of its batch, and they are dropped here.
                overdue = in_flight.overdue(too_old)
                dropped = [asked for asked in overdue if not asked.has_rollouts]
                self._give_up(dropped)
            in_flight.wait_for_overdue(too_old)
            # The order does not depend on which question finished first: a synchronous run repeats.
            by_age = sorted(in_flight.finished(), key=lambda asked: (asked.version, asked.index))
            oldest = by_age[:size]
            in_flight.forget(oldest)
        return oldest, dropped

    def _give_up(self, late: Sequence[QuestionInFlight]) -> None:
        self._in_flight.forget(late)
        for asked in late:
            asked.result.cancel()

    def _taken(
        self,
        step: int,
        batch: Sequence[QuestionInFlight],
        stale: Sequence[QuestionInFlight],
        set_aside: Sequence[QuestionInFlight],
    ) -> Taken:
        """Write down what becomes of each question, and return the batch."""
        trained = [asked for asked in batch if asked.complete]
        trained.sort(key=lambda asked: asked.index)
        unusable = [asked for asked in batch if asked.unusable is not None]
        broken = [asked for asked in batch if not asked.complete and asked.unusable is None]
        for asked in trained:
            self._log("trained", question=asked.question.id, step=step)
        self._log_dropped(broken, step, "infrastructure")
        self._log_dropped(unusable, step, "unusable")
        self._log_dropped(stale, step, "stale")
        self._log_dropped(set_aside, step, "uninformative")
        reasons = self._asking.take_passed_over()
        for asked in unusable:
            assert asked.unusable is not None
            self._asking.remember(asked.question.id, asked.unusable)
            reasons.append(asked.unusable)
        self._check_usable(batch, unusable)
        carried = self._take_carried(step, trained)
        faults = self._following.faults.take()
        return Taken(
            groups=[asked.finished_group for asked in trained],
            uninformative=[asked.finished_group for asked in set_aside],
            dropped=len(broken),
            unusable=tuple(reasons),
            stale=len(stale),
            forks_dropped=faults["fork dropped"],
            forks_collapsed=faults["fork collapsed"],
            verifier_failures=faults["verifier failed"],
            staleness={asked.question.id: step - asked.version for asked in trained},
            carried=carried,
        )

    def _take_carried(self, step: int, trained: Sequence[QuestionInFlight]) -> list[Carried]:
        """Return what the batch before left out, and keep what this one leaves out."""
        carried = self._carrying.take(step)
        self._carrying.hold(trained, Update(step, len(trained)))
        if step + 1 == self._recipe.steps:
            # There is no next batch.
            self._following.let_forks_start()
            carried += self._carrying.take(step)
        return carried

    def _check_usable(
        self, batch: Sequence[QuestionInFlight], unusable: Sequence[QuestionInFlight]
    ) -> None:
        """Raise AxpoError if nothing could be asked for a while: the data is gone, not a row."""
        usable = len(unusable) < len(batch)
        self._unusable_in_a_row = 0 if usable else self._unusable_in_a_row + len(unusable)
        if self._unusable_in_a_row >= MOST_UNUSABLE:
            raise AxpoError(
                f"{self._unusable_in_a_row} questions in a row cannot be asked; the last one: "
                f"{unusable[-1].unusable}. If the data is there again, continue with --resume"
            )

    def _log_dropped(self, dropped: Sequence[QuestionInFlight], step: int, reason: str) -> None:
        for asked in dropped:
            self._log("dropped", question=asked.question.id, step=step, reason=reason)
