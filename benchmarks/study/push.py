"""Measure where training pushes the choice between calling a tool and answering at once.

    axpo train RECIPE --run NAME --set logging.groups_kept=16       # as many as questions_per_step
    python -m benchmarks.study.push RUN [RUN ...] [--out FILE]

The push is told by kind of question, and by stream of credit. A rollout decides on its tokens up to
and including the first `<tool_call>`, or up to `</think>` if it answers at once. What an entry of
the loss puts there is its advantage times the share of its trained tokens that lie there, because
each entry is a mean over its tokens. Three streams push: rollouts that call, frozen prefixes, and
rollouts that answer. The net push towards calls is the first two less the third. Continuations
begin after the decision. Numbers are sums over the entries of a question (one whole entry of
advantage one is 1), means over a run's questions of the kind, recomputed from the kept trajectories
with the run's own credit settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from axpo.config import Recipe, parse_recipe
from axpo.errors import AxpoError
from axpo.record.records import group_from_json
from axpo.record.run import RunDirectory
from axpo.tasks import Task
from benchmarks.study.intervals import estimate
from benchmarks.study.runs import written
from learner.credit import TrainItem, credit
from resampler.places import Answer, FirstCall
from rollout_workers.trajectory import Group, Question, SpecialTokens

HERE = Path(__file__).parent
STREAMS = ("calling", "prefix", "answering")


@dataclass(frozen=True)
class Push:
    """What a run's credit put before the decision: means over its questions of one kind."""

    run: str
    kind: str
    questions: int
    resampled: int  # of these, questions with a frozen prefix
    calling: float
    prefix: float
    answering: float

    @property
    def net(self) -> float:
        """The push towards calls."""
        return self.calling + self.prefix - self.answering


def decided(item: TrainItem, tokens: SpecialTokens) -> float:
    """Return the part of an entry's advantage that falls on tokens up to the decision.

    It is 0 if the rollout did not come to a decision.
    """
    calls = FirstCall().points(item.trajectory, tokens)
    answers = Answer().points(item.trajectory, tokens)
    # A rollout that calls a tool has no point at its answer.
    points = [*calls, *answers]
    if not points:
        return 0.0
    # Outside the mask advantages are 0.
    before = item.advantages[: points[0].prefix_tokens]
    return float(before.sum(dtype=np.float64) / item.mask.sum())


def pushes(
    run: str, groups: Sequence[tuple[str, Group]], tokens: SpecialTokens, recipe: Recipe
) -> list[Push]:
    """Return the push on each kind of question.

    Args:
        run: the name of the run.
        groups: pairs of a kind and a group.
        tokens: ids of the tokenizer.
        recipe: says how credit is given.
    """
    by_kind: dict[str, list[Group]] = {}
    for kind, group in groups:
        by_kind.setdefault(kind, []).append(group)
    return [_push(run, kind, by_kind[kind], tokens, recipe) for kind in sorted(by_kind)]


def measure(path: Path) -> list[Push]:
    """Return the pushes of one run.

    Raises:
        AxpoError: the run did not keep all groups of its steps, or its task does not number its
            questions.
    """
    from axpo.session import local_path
    from rollout_workers.chat import Chat

    directory = RunDirectory.open(path)
    recipe = parse_recipe(directory.recipe(), (), str(directory.path / "recipe.yaml"))
    task = recipe.task.load()
    tokens = Chat.load(local_path(recipe.model)).tokens
    pairs = []
    for group in _kept_groups(directory, recipe):
        question = _found_again(task, group, path)
        pairs.append((_kind(question), group))
    return pushes(directory.path.name, pairs, tokens, recipe)


def markdown(found: Sequence[Push]) -> str:
    """Return a table with a line for each arm and kind: means over runs, with intervals over runs.

    An arm is a run's name without its seed.
    """
    lines = [
        "| arm, kind | runs | resampled, % | rollouts that call | prefixes | "
        "rollouts that answer | net, towards calls |",
        "|---" * 7 + "|",
    ]
    of_lines: dict[tuple[str, str], list[Push]] = {}
    for push in found:
        of_lines.setdefault((_arm(push), push.kind), []).append(push)
    for arm, kind in sorted(of_lines):
        own = of_lines[arm, kind]
        resampled = sum(push.resampled for push in own)
        share = 100 * resampled / sum(push.questions for push in own)
        cells = [f"{arm}, {kind}", str(len(own)), f"{share:.0f}"]
        for column in (*STREAMS, "net"):
            cells.append(_cell([getattr(push, column) for push in own]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, keep the raw result and print the table.

    Returns:
        Exit code: 2 if a run is not what was asked for.
    """
    options = _parser().parse_args()
    found: list[Push] = []
    try:
        for path in options.runs:
            found += measure(path)
    except AxpoError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.write_text(written({"pushes": [asdict(push) for push in found]}), encoding="utf-8")
    print(markdown(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories that kept all groups"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "control" / "push.json", help="file of the raw result"
    )
    return parser


def _push(
    run: str, kind: str, groups: Sequence[Group], tokens: SpecialTokens, recipe: Recipe
) -> Push:
    """Return the push on the questions of one kind."""
    sums = dict.fromkeys(STREAMS, 0.0)
    for group in groups:
        for item in credit([group], tokens, recipe.learner):
            # Continuations begin after the decision.
            if item.trajectory.fork is None:
                sums[_stream(item, group, tokens)] += decided(item, tokens)
    means = {stream: total / len(groups) for stream, total in sums.items()}
    resampled = sum(bool(group.resamples) for group in groups)
    return Push(run, kind, len(groups), resampled, **means)


def _stream(item: TrainItem, group: Group, tokens: SpecialTokens) -> str:
    """Return which stream of credit an entry of a group belongs to; see `STREAMS`."""
    if not FirstCall().points(item.trajectory, tokens):
        return "answering"
    # Of a source that was forked, only the prefix trains.
    sources = {resample.source for resample in group.resamples}
    return "prefix" if item.trajectory.rollout in sources else "calling"


def _kept_groups(directory: RunDirectory, recipe: Recipe) -> Iterator[Group]:
    """Yield the groups that a run kept, step by step."""
    for step in directory.group_steps():
        records = directory.groups(step)
        if len(records) < recipe.questions_per_step:
            raise AxpoError(
                f"{directory.path}: step {step} kept {len(records)} groups "
                f"(logging.groups_kept={recipe.questions_per_step} keeps all)"
            )
        for record in records:
            yield group_from_json(record, directory.images)


def _found_again(task: Task, group: Group, run: Path) -> Question:
    """Return the question of a group as its task gives it: the record has no kind."""
    number = group.question.id.rpartition("-")[2]
    question = task.train(int(number)) if number.isdecimal() else None
    if question is None or question.id != group.question.id:
        raise AxpoError(
            f"{run}: question {group.question.id} is not found again by its number, so its kind "
            "is not known"
        )
    return question


def _kind(question: Question) -> str:
    """Return the family and the kind of a question, as far as it has them."""
    names = [str(question.info[name]) for name in ("family", "kind") if name in question.info]
    return "/".join(names) or "all"


def _arm(push: Push) -> str:
    return push.run.rpartition("-")[0]


def _cell(values: Sequence[float]) -> str:
    mean, low, high = estimate(values)
    # Of one run there is no interval.
    if len(values) == 1:
        return f"{mean:+.3f}"
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    sys.exit(main())
