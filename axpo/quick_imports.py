"""Import large packages in about half of their time.

transformers imports scikit-learn and SciPy if they are installed, and DeepSpeed imports MLflow.
Nothing of ours uses what they do with them. Python's garbage collector looks again and again at the
thousands of new modules, none of which is garbage.

CPU seconds on two cores, before and after: the imports of a rank 7.6 and 3.8, those of vLLM 9.7 and
6.4, the driver's check of a model folder 6.1 and 3.9.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("mlflow", "scipy", "sklearn")
"""Optional packages of transformers, vLLM and DeepSpeed, by the name of their import."""
_OF_TRANSFORMERS = ("scipy", "sklearn")


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import what a block imports without `UNUSED`, and without collecting garbage.

    A module that asks for one of them is told that it is not installed. After the block they can
    be imported as ever: a verifier or a tool of a user may need them.
    """
    hidden = [name for name in UNUSED if name not in sys.modules and not _is_promised(name)]
    collects = gc.isenabled()
    # None is Python's own way to say that a module cannot be imported.
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    gc.disable()
    try:
        from transformers.utils.import_utils import is_scipy_available, is_sklearn_available

        # transformers remembers its first answers: these.
        is_scipy_available()
        is_sklearn_available()
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collects:
            gc.enable()


def _is_promised(name: str) -> bool:
    """Tell whether transformers, if it is there already, counts on a package.

    It imports the package then whenever a part of it needs it.
    """
    utils = sys.modules.get("transformers.utils.import_utils")
    if utils is None or name not in _OF_TRANSFORMERS:
        return False
    return bool(getattr(utils, f"is_{name}_available")())
