"""The ranking's proxy, measured: how well does a call's confidence, free with sampling, follow the policy's exact entropy over the call?

    axpo train RECIPE --rollouts-only --run NAME        # records rollouts of one policy, exactly
    python -m benchmarks.study.confidence RUN [--out FILE]

For the first tool call of each recorded rollout, both tags included (docs/method.md, rule 2): the mean probability of its tokens as the
engine sampled them (`resampler.rankings.confidence`), and the mean entropy in nats of the distributions they were sampled from, over the
whole vocabulary, which the learner computes from the same weights. Both correlations are of 1 - confidence with the entropy; the paper
gives 0.84 (Pearson). The raw result is JSON; the table goes to the standard output.
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
from rollout_workers.trajectory import Floats, Group, SpecialTokens

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
    """Every rollout that calls a tool, under a mask that holds its first call: what the learner computes entropies of."""
    items = []
    for group in groups:
        for trajectory in group.rollouts:
            for _, (start, stop) in FirstCall().points(trajectory, tokens):
                places = np.arange(len(trajectory.response_ids))
                mask = (places >= start) & (places < stop)
                items.append(
                    TrainItem(
                        group.question, trajectory, np.zeros(len(mask), np.float32), mask, 1.0
                    )
                )
    return items


def calls(items: Sequence[TrainItem], entropies: Sequence[Floats]) -> list[Call]:
    """`entropies`: of each item [R] nats, read under its mask."""
    found = []
    for item, values in zip(items, entropies, strict=True):
        places = np.flatnonzero(item.mask)
        span = int(places[0]), int(places[-1]) + 1
        t = item.trajectory
        exact = float(values[item.mask].astype(np.float64).mean())
        found.append(Call(t.question_id, t.rollout, len(places), confidence(t, span), exact))
    return found


def pearson(x: Array, y: Array) -> float:
    """Linear correlation of [M] and [M]; NaN where either is constant."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")


def spearman(x: Array, y: Array) -> float:
    """Pearson's of the ranks; equal values share the mean of their ranks."""
    return pearson(_ranks(x), _ranks(y))


def correlated(found: Sequence[Call], measure: Correlation) -> Estimate:
    """`measure` of 1 - confidence and entropy, with a 95 % percentile bootstrap interval over questions: calls of one question are alike.

    Raises ValueError where there is no correlation to speak of: under three calls, or all of one confidence or entropy.
    """
    blocks = [
        np.array([(1 - c.confidence, c.entropy) for c in found if c.question == q]).T
        for q in dict.fromkeys(c.question for c in found)
    ]
    whole = measure(*np.concatenate(blocks, axis=1)) if len(found) > 2 else float("nan")
    if np.isnan(whole):
        raise ValueError(f"{len(found)} calls, or all alike: no correlation to measure")
    rng = np.random.default_rng(0)
    draws = [
        measure(
            *np.concatenate(
                [blocks[i] for i in rng.integers(len(blocks), size=len(blocks))], axis=1
            )
        )
        for _ in range(DRAWS)
    ]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return whole, float(low), float(high)


def markdown(found: Sequence[Call]) -> str:
    """Both correlations, and what they are of. Raises as `correlated`."""
    lines = ["| of 1 - confidence with the exact entropy | |", "|---|---|"]
    for name, measure in (("Pearson", pearson), ("Spearman", spearman)):
        mean, low, high = correlated(found, measure)
        lines.append(f"| {name} | {mean:.3f} [{low:.3f}, {high:.3f}] |")
    questions = len({call.question for call in found})
    sure, exact = np.mean([(call.confidence, call.entropy) for call in found], axis=0)
    end = f"{len(found)} calls of {questions} questions; mean confidence {sure:.3f}, entropy {exact:.3f} nats a token."
    return "\n".join([*lines, "", end]) + "\n"


def main() -> int:
    """Exit code 1 where there is nothing to correlate, 2 where RUN is not what was asked for."""
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
    options = parser.parse_args()
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
    """Every recorded call, its entropies computed by the recipe's learner. Raises AxpoError where `run` holds no recorded rollouts."""
    from axpo.session import learner_ranks, local_path, ray_session
    from rollout_workers.chat import Chat

    directory = RunDirectory.open(run)
    recipe = parse_recipe(directory.recipe(), (), str(directory.path / "recipe.yaml"))
    recipe.check_inputs()
    groups = [group for _, groups in directory.rollouts() for group in groups]
    if not groups:
        raise AxpoError(
            f"{run}: no recorded rollouts (write them with axpo train RECIPE --rollouts-only)"
        )
    items = call_items(groups, Chat.load(local_path(recipe.model)).tokens)
    with ray_session(recipe, workers=False), learner_ranks(recipe) as learner:
        return calls(items, learner.entropies(items)), recipe


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(np.cumsum(counts) - (counts - 1) / 2, np.float64)[inverse]


if __name__ == "__main__":
    sys.exit(main())
