"""Measure the ranking's proxy: does a call's confidence follow the policy's exact entropy?

    axpo train RECIPE --rollouts-only --run NAME        # records rollouts of one policy, exactly
    python -m benchmarks.study.confidence RUN [--out FILE]

Two numbers of the first tool call of each recorded rollout, both tags included (docs/method.md,
rule 2), are compared. One comes free with sampling: the mean probability of its tokens as the
engine sampled them (`resampler.rankings.confidence`). The other is the mean entropy in nats of the
distributions they were sampled from, over the whole vocabulary, which the learner computes from the
same weights. Both correlations are of 1 - confidence with the entropy; the paper gives 0.84
(Pearson). The raw result is JSON; the table goes to the standard output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from axpo.config import Recipe, parse_recipe
from axpo.errors import AxpoError
from axpo.record.run import RunDirectory
from benchmarks.result import machine, versions
from benchmarks.study.intervals import Estimate
from benchmarks.study.runs import written
from learner.credit import TrainItem
from resampler.places import FirstCall
from resampler.rankings import confidence
from rollout_workers.trajectory import Floats, Group, Question, Span, SpecialTokens, Trajectory

HERE = Path(__file__).parent
DRAWS = 2_000

Array: TypeAlias = NDArray[np.float64]
Correlation: TypeAlias = Callable[[Array, Array], float]


@dataclass(frozen=True)
class Call:
    """One recorded tool call."""

    question: str
    rollout: int
    tokens: int
    confidence: float  # mean probability as sampled
    entropy: float  # exact, mean over the tokens, nats


def call_items(groups: Sequence[Group], tokens: SpecialTokens) -> list[TrainItem]:
    """Return every rollout that calls a tool, under a mask that holds its first call.

    The learner computes the entropies of the tokens under the mask.
    """
    items = []
    for group in groups:
        for trajectory in group.rollouts:
            for point in FirstCall().points(trajectory, tokens):
                items.append(_item(group.question, trajectory, point.span))
    return items


def calls(items: Sequence[TrainItem], entropies: Sequence[Floats]) -> list[Call]:
    """Return the calls of the items.

    Args:
        items: see `call_items`.
        entropies: of each item, in nats, shape [R]; they are read under its mask.
    """
    found = []
    for item, values in zip(items, entropies, strict=True):
        trajectory = item.trajectory
        places = np.flatnonzero(item.mask)
        exact = values[item.mask].astype(np.float64)
        call = Call(
            question=trajectory.question_id,
            rollout=trajectory.rollout,
            tokens=len(places),
            confidence=confidence(trajectory, (int(places[0]), int(places[-1]) + 1)),
            entropy=float(exact.mean()),
        )
        found.append(call)
    return found


def pearson(x: Array, y: Array) -> float:
    """Return the linear correlation of two vectors of shape [M]; NaN if either is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")


def spearman(x: Array, y: Array) -> float:
    """Return Pearson's correlation of the ranks; equal values share the mean of their ranks."""
    return pearson(_ranks(x), _ranks(y))


def correlated(found: Sequence[Call], measure: Correlation) -> Estimate:
    """Return a correlation of 1 - confidence and entropy, with its interval.

    It is a 95 % percentile bootstrap interval over questions, because the calls of one question
    are alike.

    Raises:
        ValueError: there are fewer than three calls, or all have one confidence or one entropy.
    """
    by_question: dict[str, list[tuple[float, float]]] = {}
    for call in found:
        by_question.setdefault(call.question, []).append((1 - call.confidence, call.entropy))
    blocks = [np.array(pairs).T for pairs in by_question.values()]
    # Two points lie on a line, whatever they are.
    whole = float("nan")
    if len(found) > 2:
        whole = measure(*np.concatenate(blocks, axis=1))
    if np.isnan(whole):
        raise ValueError(f"{len(found)} calls, or all alike: no correlation to measure")
    rng = np.random.default_rng(0)
    # Each draw takes as many questions as there are, with replacement, with all their calls.
    draws = []
    for _ in range(DRAWS):
        drawn = [blocks[i] for i in rng.integers(len(blocks), size=len(blocks))]
        draws.append(measure(*np.concatenate(drawn, axis=1)))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return whole, float(low), float(high)


def markdown(found: Sequence[Call]) -> str:
    """Return a table of both correlations, and what they are of.

    Raises:
        ValueError: there is no correlation to measure; see `correlated`.
    """
    lines = ["| of 1 - confidence with the exact entropy | |", "|---|---|"]
    for name, measure in (("Pearson", pearson), ("Spearman", spearman)):
        mean, low, high = correlated(found, measure)
        lines.append(f"| {name} | {mean:.3f} [{low:.3f}, {high:.3f}] |")
    questions = len({call.question for call in found})
    sure, exact = np.mean([(call.confidence, call.entropy) for call in found], axis=0)
    end = (
        f"{len(found)} calls of {questions} questions; mean confidence {sure:.3f}, "
        f"entropy {exact:.3f} nats a token."
    )
    return "\n".join([*lines, "", end]) + "\n"


def main() -> int:
    """Measure, keep the raw result and print the table.

    Returns:
        Exit code: 1 if there is nothing to correlate, 2 if RUN is not what was asked for.
    """
    options = _parser().parse_args()
    try:
        found, recipe = measure(options.run)
    except AxpoError as error:
        print(error, file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "run": str(options.run),
        "calls": [asdict(call) for call in found],
        "recipe": recipe.model_dump(mode="json"),
        "machine": machine(),
        "versions": versions(("torch", "deepspeed", "ray", "transformers", "numpy")),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(written(result), encoding="utf-8")
    try:
        print(markdown(found))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def measure(run: Path) -> tuple[list[Call], Recipe]:
    """Return every recorded call, its entropies computed by the recipe's learner.

    Raises:
        AxpoError: `run` holds no recorded rollouts.
    """
    from axpo.session import learner_ranks, local_path, ray_session
    from rollout_workers.chat import Chat

    directory = RunDirectory.open(run)
    recipe = parse_recipe(directory.recipe(), (), str(directory.path / "recipe.yaml"))
    recipe.check_inputs()
    groups: list[Group] = []
    for _, of_step in directory.rollouts():
        groups += of_step
    if not groups:
        raise AxpoError(
            f"{run}: no recorded rollouts (write them with axpo train RECIPE --rollouts-only)"
        )
    items = call_items(groups, Chat.load(local_path(recipe.model)).tokens)
    # Entropies need the learner only, no engine.
    with ray_session(recipe, workers=False), learner_ranks(recipe) as learner:
        return calls(items, learner.entropies(items)), recipe


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a run directory that `axpo train --rollouts-only` wrote",
    )
    parser.add_argument(
        "--out", type=Path, default=HERE / "confidence.json", help="file of the raw result"
    )
    return parser


def _item(question: Question, trajectory: Trajectory, span: Span) -> TrainItem:
    """Return a trajectory under a mask of a span; nothing is trained on it."""
    places = np.arange(len(trajectory.response_ids))
    mask = (places >= span[0]) & (places < span[1])
    return TrainItem(question, trajectory, np.zeros(len(mask), np.float32), mask, weight=1.0)


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    # The last rank of each value, less half of how many follow its first one.
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(ranks, np.float64)[inverse]


if __name__ == "__main__":
    sys.exit(main())
