"""The verifier of this project: when is an answer right?"""

from __future__ import annotations

from axpo.tasks.verifiers import boxed
from rollout_workers.trajectory import Question


def right_count(question: Question, answer: str | None) -> float:
    """Return 1 if the number in the answer's last \\boxed{} is the right one, else 0.

    Args:
        question: the row: its `answer`, and in `info` the further columns that the recipe names.
        answer: what the policy wrote after its thinking; None: it gave no answer.
    """
    # A policy may write anything: what is no number is wrong. An exception would be a fault of the
    # machine, and its group would be dropped.
    given = boxed(answer)
    return float(given is not None and given.strip() == question.answer)
