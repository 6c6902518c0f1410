"""Run one part of the stack that only a GPU has: `python deploy/check_gpu.py flex|nccl`.

Each part prints a line, or fails with a traceback. They have not yet run on a GPU.
"""

import os
import socket
import sys

import torch


def flex_attention() -> str:
    """Attend over a tree, forward and backward, and compare with one SDPA call a node."""
    from learner.attention import limit_graphs, tree_attention
    from learner.tree import lay_out

    limit_graphs()
    prompt = torch.arange(200).numpy()
    rows = [torch.cat([torch.arange(200), torch.arange(n, 2 * n)]).numpy() for n in (300, 400)]
    tree = lay_out([prompt, *rows], share=True).tree
    module = torch.nn.Module()
    outcomes = []
    for mask in (tree.block_mask("cuda"), None):
        torch.manual_seed(0)
        shapes = [(1, heads, len(tree.ends), 64) for heads in (8, 4, 4)]
        given = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
        out, _ = tree_attention(module, *given, None, scaling=0.1, tree=tree, block_mask=mask)
        out.square().sum().backward()
        outcomes.append([out, *(tensor.grad for tensor in given)])
    for found, right in zip(*outcomes, strict=True):
        error = (found - right).norm() / right.norm()
        # Kernels may compute products in TF32.
        assert error < 5e-3, error
    return "FlexAttention, forward and backward"


def nccl() -> str:
    """Sum and broadcast in a group of one rank."""
    import torch.distributed as dist

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    dist.init_process_group("nccl")
    tensor = torch.arange(4.0, device="cuda")
    dist.all_reduce(tensor)
    dist.broadcast(tensor, 0)
    assert tensor.tolist() == [0, 1, 2, 3], tensor
    dist.destroy_process_group()
    return f"NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}, a group of one rank"


PARTS = {"flex": flex_attention, "nccl": nccl}

if __name__ == "__main__":
    print(PARTS[sys.argv[1]]())
