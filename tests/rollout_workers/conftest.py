"""A tiny random Qwen3-VL folder and its chat format, once a session."""

import pytest

from axpo.sft.embedded import build
from rollout_workers.chat import Chat

TEXTS = [
    "the digit in the red frame is seven. the larger digit is in the blue frame.",
    '{"name": "image_zoom_in", "arguments": '
    '{"bbox_2d": [10, 20, 30, 40], "label": "red", "img_idx": 0}}',
]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    return str(build(tmp_path_factory.mktemp("model") / "tiny", TEXTS))


@pytest.fixture(scope="session")
def chat(model) -> Chat:
    return Chat.load(model)
