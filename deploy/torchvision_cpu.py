"""Let torchvision import beside a CPU build of torch.

`axpo setup` copies this file into the environment's site-packages. A `.pth` file loads it when the
interpreter starts, so it must stay free of imports.

The torchvision wheel on PyPI is linked against CUDA. Beside a CPU torch its extension does not
load, its operators stay undefined, and `import torchvision` dies with "operator torchvision::nms
does not exist". That happens in every process that builds a Qwen3-VL processor (vLLM inspects
models in a subprocess).

Only the two operators whose fake kernels are registered on import need a schema, and nothing in
this project calls them. The schema is defined when torchvision's registrations are imported, after
the extension had its chance to load. A torchvision that works, or a CUDA torch, is left alone.
"""

import sys

NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _DefineMissingOperators:
    """Define the operators just before `torchvision._meta_registrations` is imported.

    This is an import hook that acts once, and never finds a module itself.
    """

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision._meta_registrations":
            sys.meta_path.remove(cls)
            import torch
            from torchvision.extension import _has_ops

            if torch.version.cuda is None and not _has_ops():
                for operator in ("nms", "qnms"):
                    torch.library.define(f"torchvision::{operator}", NMS_SCHEMA)


sys.meta_path.insert(0, _DefineMissingOperators)
