"""Special tokens of trajectories written by hand."""

from rollout_workers.trajectory import SpecialTokens

TOKENS = SpecialTokens(
    im_start=1,
    im_end=2,
    think_close=4,
    call_open=5,
    call_close=6,
    vision_start=7,
    vision_end=8,
    image_pad=9,
    video_pad=10,
)
