"""Compile a Triton kernel and add two vectors with it. It has not yet run on a GPU.

Triton reads the source of a kernel and the globals of its module, so this is a file of its own.
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _add(a, b, out, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    inside = at < size
    tl.store(out + at, tl.load(a + at, inside) + tl.load(b + at, inside), inside)


def main() -> None:
    """Add, compare, and print the version."""
    a, b = torch.arange(100.0, device="cuda"), torch.ones(100, device="cuda")
    out = torch.empty_like(a)
    _add[(1,)](a, b, out, 100, BLOCK=128)
    assert torch.equal(out, a + b), out
    print(f"triton {triton.__version__}, a compiled kernel")


if __name__ == "__main__":
    main()
