"""Trackers: a run's numbers and trajectories in TensorBoard, Weights & Biases, Trackio and others.

The run directory is the truth; a tracker gets a copy of it, and no fault of a tracker ends a run.
May import `axpo.registry`, `axpo.errors` and `axpo.texts`; the packages themselves are imported
when a run asks for them. Start reading in `tracker.py`; `followers.py` is what the run directory
talks to.
"""

from axpo.trackers import mlflow, swanlab, tensorboard, trackio, wandb  # noqa: F401 (registers)
from axpo.trackers.followers import Followers
from axpo.trackers.tracker import History, Session, Sink, Table, Tracker, check_all, trackers

__all__ = ["Followers", "History", "Session", "Sink", "Table", "Tracker", "check_all", "trackers"]
