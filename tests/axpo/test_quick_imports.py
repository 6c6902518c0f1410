"""Imports without packages that nothing of ours uses."""

from __future__ import annotations

import subprocess
import sys

import pytest


def in_new_process(*lines):
    """Run lines of Python in a process that has imported nothing; return what they print."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_package_is_hidden_in_the_block_and_there_after_it():
    found = in_new_process(
        "from axpo.quick_imports import quick_imports",
        "with quick_imports():",
        "    try:",
        "        import sklearn",
        "    except ImportError:",
        "        print('hidden')",
        "import sklearn",
        "print(sklearn.__name__)",
    )
    assert found == ["hidden", "sklearn"]


def test_a_package_that_is_imported_already_stays():
    found = in_new_process(
        "import scipy",
        "from axpo.quick_imports import quick_imports",
        "with quick_imports():",
        "    import scipy.optimize",
        "print(scipy.optimize.__name__)",
    )
    assert found == ["scipy.optimize"]


def test_garbage_is_collected_again_after_an_error():
    found = in_new_process(
        "import gc",
        "from axpo.quick_imports import quick_imports",
        "try:",
        "    with quick_imports():",
        "        print(gc.isenabled())",
        "        raise ValueError",
        "except ValueError:",
        "    print(gc.isenabled())",
    )
    assert found == ["False", "True"]


# transformers remembers whether it found SciPy, and imports it later if it did.
ASKED = "from transformers.utils.import_utils import is_scipy_available as a; a()"


@pytest.mark.parametrize(("before", "imported"), [("", "False"), (ASKED, "True")])
def test_a_model_class_loads_whoever_imported_transformers_first(before, imported):
    found = in_new_process(
        before,
        "import sys",
        "from axpo.quick_imports import quick_imports",
        "with quick_imports():",
        "    import transformers",
        "    print(transformers.Qwen3VLForConditionalGeneration.__name__)",
        "print('scipy' in sys.modules)",
    )
    assert found == ["Qwen3VLForConditionalGeneration", imported]
