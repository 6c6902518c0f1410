"""Engine and learner see an image of any size in the same tokens and pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from learner.images import image_processor
from rollout_workers.config import RolloutConfig
from rollout_workers.engine_setup import engine_arguments
from rollout_workers.image_rule import ImagesConfig, image_rule
from rollout_workers.settings import WorkerSettings

pytestmark = [pytest.mark.engine]
SIZES = [
    *((1, 1), (200, 1), (1, 200), (20, 20), (31, 33), (56, 28), (640, 480), (480, 640)),
    *((1023, 767), (1280, 960), (2000, 30), (16384, 82), (3840, 2160), (4000, 4000)),
]
LIMITS = [ImagesConfig(), ImagesConfig(min_pixels=9000, max_pixels=300_000)]
PROMPT = [151652, 151655, 151653]  # the real vocabulary's vision start, image pad, vision end


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("family", ["thinking", "qwen2_5"])
def test_engine_and_learner_process_images_alike(request, family, limits):
    """Process images as a request of the engine does: with vLLM's processor and our arguments.

    vLLM 0.32 normalizes pixels on the device. They are compared after that.
    """
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    folder = str(request.getfixturevalue(family))
    settings = WorkerSettings(folder, RolloutConfig(), None, None, run_seed=0, images=limits)
    arguments = engine_arguments(settings)
    names = ("model", "dtype", "limit_mm_per_prompt", "mm_processor_kwargs")
    config = ModelConfig(**{name: arguments[name] for name in names})
    engine = MULTIMODAL_REGISTRY.create_processor(config)
    learner, rule = image_processor(folder, limits), image_rule(folder, limits)
    rng = np.random.default_rng(0)
    # Pixels of the largest sizes once are enough: they take half of the time.
    sizes = SIZES if family == "thinking" or limits.max_pixels else SIZES[:-3]
    for width, height in sizes:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        request_of_engine = engine(PROMPT, engine.info.parse_mm_data({"image": [image]}))
        processed = learner([image], return_tensors="pt")
        tokens = int(processed["image_grid_thw"].prod()) // learner.merge_size**2
        assert len(request_of_engine["prompt_token_ids"]) == 2 + tokens
        assert rule.tokens(width, height) == tokens
        (of_engine,) = request_of_engine["mm_kwargs"]["image"]
        assert of_engine["image_grid_thw"].data.tolist() == processed["image_grid_thw"][0].tolist()
        seen = normalized(of_engine["pixel_values"].data, learner)
        assert (seen - processed["pixel_values"]).abs().max() < 1e-5


def normalized(values: torch.Tensor, processor) -> torch.Tensor:
    """Return patches as the vision tower takes them, of bytes or of what was normalized already."""
    if values.dtype != torch.uint8:
        return values
    # A patch is laid out as channel, time, height, width.
    of_channel = values.shape[1] // 3
    mean = torch.tensor(processor.image_mean).repeat_interleave(of_channel)
    std = torch.tensor(processor.image_std).repeat_interleave(of_channel)
    return (values * processor.rescale_factor - mean) / std
