"""Where does training push the choice between calling a tool and answering at once, by kind of question, and which stream of credit pushes?

    axpo train RECIPE --run NAME --set logging.groups_kept=16       # as many as questions_per_step
    python -m benchmarks.study.push RUN [RUN ...] [--out FILE]

A rollout decides on its tokens up to and including the first `<tool_call>`, or up to `</think>` where it answers at once. What an entry
of the loss puts there is its advantage times the share of its trained tokens that lie there, each entry being a mean over its tokens.
Three streams push: rollouts that call, frozen prefixes, and rollouts that answer; the net push towards calls is the first two less the
third. Continuations begin after the decision. Numbers are sums over the entries of a question (one whole entry of advantage one is 1),
means over a run's questions of the kind, recomputed from the kept trajectories with the run's own credit settings.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from axpo.config import Recipe, parse_recipe
from axpo.errors import AxpoError
from axpo.record.records import group_from_json
from axpo.record.run import RunDirectory
from axpo.tasks import load_task
from benchmarks.study.intervals import estimate
from benchmarks.study.runs import written
from learner.credit import TrainItem, credit
from resampler.places import Answer, FirstCall
from rollout_workers.trajectory import Group, SpecialTokens

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
        """Towards calls."""
        return self.calling + self.prefix - self.answering


def decided(item: TrainItem, tokens: SpecialTokens) -> float:
    """The part of an entry's advantage that falls on tokens up to the decision; 0 where there was none."""
    found = [
        *FirstCall().points(item.trajectory, tokens),
        *Answer().points(item.trajectory, tokens),
    ]
    if not found:
        return 0.0
    before = item.advantages[: found[0][0]]  # 0 outside the mask
    return float(before.sum(dtype=np.float64) / item.mask.sum())


def pushes(
    run: str, groups: Sequence[tuple[str, Group]], tokens: SpecialTokens, recipe: Recipe
) -> list[Push]:
    """One for each kind, of (kind, group) pairs."""
    sums: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(STREAMS, 0.0))
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind, group in groups:
        counts[kind][0] += 1
        counts[kind][1] += bool(group.resamples)
        sources = {resample.source for resample in group.resamples}
        for item in credit([group], tokens, recipe.learner):
            t = item.trajectory
            if t.fork is None:
                calls = bool(FirstCall().points(t, tokens))
                stream = (
                    "prefix"
                    if t.rollout in sources and calls
                    else "calling"
                    if calls
                    else "answering"
                )
                sums[kind][stream] += decided(item, tokens)
    return [
        Push(
            run,
            kind,
            counts[kind][0],
            counts[kind][1],
            *(sums[kind][stream] / counts[kind][0] for stream in STREAMS),
        )
        for kind in sorted(sums)
    ]


def measure(path: Path) -> list[Push]:
    """Of one run. Raises AxpoError where it did not keep all groups of its steps, or its task does not number its questions."""
    from axpo.session import local_path
    from rollout_workers.chat import Chat

    directory = RunDirectory.open(path)
    recipe = parse_recipe(directory.recipe(), (), str(directory.path / "recipe.yaml"))
    task, tokens = load_task(recipe.task), Chat.load(local_path(recipe.model)).tokens
    pairs = []
    for step in directory.group_steps():
        records = directory.groups(step)
        if len(records) < recipe.questions_per_step:
            raise AxpoError(
                f"{path}: step {step} kept {len(records)} groups (logging.groups_kept={recipe.questions_per_step} keeps all)"
            )
        for record in records:
            group = group_from_json(record, directory.images)
            number = group.question.id.rpartition("-")[2]
            if (
                not number.isdecimal()
                or (question := task.train(int(number))).id != group.question.id
            ):
                raise AxpoError(
                    f"{path}: question {group.question.id} is not found again by its number, so its kind is not known"
                )
            info = question.info
            pairs.append(
                (
                    "/".join(str(info[name]) for name in ("family", "kind") if name in info)
                    or "all",
                    group,
                )
            )
    return pushes(directory.path.name, pairs, tokens, recipe)


def markdown(found: Sequence[Push]) -> str:
    """Mean over runs with the interval over runs, a line an arm and kind; an arm is a run's name without its seed."""
    lines = [
        "| arm, kind | runs | resampled, % | rollouts that call | prefixes | rollouts that answer | net, towards calls |",
        "|---" * 7 + "|",
    ]
    for arm, kind in sorted({(_arm(push), push.kind) for push in found}):
        own = [push for push in found if (_arm(push), push.kind) == (arm, kind)]
        share = 100 * sum(push.resampled for push in own) / sum(push.questions for push in own)
        cells = [_cell([getattr(push, column) for push in own]) for column in (*STREAMS, "net")]
        lines.append(f"| {arm}, {kind} | {len(own)} | {share:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Exit code 2 where a run is not what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories that kept all groups"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "control" / "push.json", help="file of the raw result"
    )
    options = parser.parse_args()
    try:
        found = [push for path in options.runs for push in measure(path)]
    except AxpoError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.write_text(written({"pushes": [asdict(push) for push in found]}), encoding="utf-8")
    print(markdown(found))
    return 0


def _arm(push: Push) -> str:
    return push.run.rpartition("-")[0]


def _cell(values: Sequence[float]) -> str:
    mean, low, high = estimate(values)
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if len(values) > 1 else f"{mean:+.3f}"


if __name__ == "__main__":
    sys.exit(main())
