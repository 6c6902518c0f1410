"""Decide which prefixes are forked, and when: one resampler sees every finished group of a run.

It holds no engine and runs no fork. The forks that it asks for go through the rollout pool, which
knows where each prefix lies in a cache, which engines live and how full they are.
"""

from __future__ import annotations

from resampler.client import ResamplerClient
from resampler.config import ResamplerConfig
from resampler.history import History, Outcome
from resampler.schedules import Decision, Selection, Terms
from resampler.select import Rules, candidates
from rollout_workers.garbage import collect_rarely
from rollout_workers.trajectory import Group, SpecialTokens


class Resampler:
    """Take in the groups of each batch as they finish, and answer with the prefixes to fork.

    This is a plain class; `start_resampler` makes it an actor.
    """

    def __init__(
        self, config: ResamplerConfig, tokens: SpecialTokens, n: int, seed: int = 0
    ) -> None:
        self._config = config
        self._n = n
        self._rules = Rules(tokens, config.fork_at, config.ranking, seed)
        self._selections: dict[int, Selection] = {}  # of the batches under way, by their number
        self._history = History()
        self._failed_up_to: float | None = None  # the trigger's answer, until a batch is finished

    def offer(
        self,
        group: Group | None,
        batch: int,
        place: int,
        questions: int,
        trained: int | None = None,
    ) -> Decision:
        """Take in a finished group, and return what it leads to.

        The budget is that of the batch's questions, whether or not all of them are answered.
        Questions that were asked only because some will be aborted add nothing to it.

        Args:
            group: None if the group was lost.
            batch: number of the batch.
            place: place of the question in the batch; each is offered once.
            questions: questions of the batch.
            trained: those that the budget is for; None: all.

        Raises:
            ValueError: a rollout has no reward, or a fork place gave a point that cannot be forked.
        """
        # The budget and the prices of a batch stay what they are when its first question comes in.
        if batch not in self._selections:
            self._selections[batch] = self._opened(questions, trained or questions)
        selection = self._selections[batch]
        decision = self._offered(selection, group, batch, place)
        if selection.complete:
            del self._selections[batch]
            self._history = self._history.after_batch(selection.past)
            self._failed_up_to = None
        return decision

    def learn(self, outcome: Outcome) -> None:
        """Remember what came of a resampled prefix. The budget of the next batch may follow it."""
        self._history = self._history.after(outcome)

    def history(self) -> History:
        """Return what a checkpoint keeps.

        Batches under way are not in it: a resume asks their questions again.
        """
        return self._history

    def restore(self, history: History) -> None:
        """Go on from the history of an earlier process of the run."""
        self._history = history
        self._selections = {}
        self._failed_up_to = None

    def _opened(self, questions: int, trained: int) -> Selection:
        """Return the choice of a new batch of `questions`, with the budget of those trained."""
        config, history = self._config, self._history
        prefixes = config.budget.prefixes(trained, self._n, config.k, history)
        # The rule may be a user's own.
        if prefixes < 0 or prefixes != int(prefixes):
            raise ValueError(
                f"resampler.budget={config.budget.name!r}: gave {prefixes!r} prefixes for "
                f"{trained} questions, expected a whole number from 0"
            )
        terms = Terms(questions, int(prefixes), config.budget.prices(history))
        return Selection(config.schedule, terms, history.past)

    def _offered(
        self, selection: Selection, group: Group | None, batch: int, place: int
    ) -> Decision:
        # A lost group has no candidates, but its question still counts for the budget.
        if group is None:
            return selection.offer(place, [])
        # Once a batch, not once a question: there are four batches of rewards.
        if self._failed_up_to is None:
            self._failed_up_to = self._config.trigger.failed_up_to(self._history.rewards)
        failed_up_to = self._failed_up_to
        found = candidates(group, self._rules, batch=batch, place=place, failed_up_to=failed_up_to)
        return selection.offer(place, found, group.rewards.tolist())


class _ResamplerActor(Resampler):
    """The resampler in a process of its own."""

    def __init__(
        self, config: ResamplerConfig, tokens: SpecialTokens, n: int, seed: int = 0
    ) -> None:
        super().__init__(config, tokens, n, seed)
        collect_rarely()


def start_resampler(
    config: ResamplerConfig, tokens: SpecialTokens, n: int, seed: int = 0
) -> ResamplerClient:
    """Start the resampler as a Ray actor.

    Args:
        config: the recipe's `resampler`.
        tokens: ids of the tokenizer.
        n: rollouts of a question.
        seed: seed of the run.
    """
    import ray

    # It computes for milliseconds a group, so it takes no CPU from what a plan has placed.
    actor_class = ray.remote(_ResamplerActor).options(num_cpus=0)
    return ResamplerClient(actor_class.remote(config, tokens, n, seed))
