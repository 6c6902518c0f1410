"""What vLLM's NCCL and CUDA IPC backends need of a GPU, on the CPU and between processes.

vLLM's own engines run on both sides. Replaced are the communicator (by sockets) and CUDA memory
that another process opens by a handle (by a file that both map). A process calls `install` once.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from multiprocessing.connection import Client, Connection, Listener
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

CONNECT_S = 60.0


class Wire:
    """A communicator. Like NCCL it waits for ever if a peer is gone.

    Every broadcast is confirmed: the buffers of a socket would take what a dead peer never reads,
    and the sender would go on.
    """

    def __init__(self, host: str, port: int, rank: int, world_size: int, device: object) -> None:
        self.rank = rank
        self.device = torch.device("cpu")
        self.broadcasts = 0
        self.peers: list[Connection] = []
        if rank:
            self.peers = [_connected(host, port)]
            self.peers[0].send(rank)
            return
        with Listener((host, port)) as listener:
            self.peers = [listener.accept() for _ in range(world_size - 1)]
        ranks = [peer.recv() for peer in self.peers]
        # Every process of every engine has a rank of its own, behind the sender's.
        assert sorted(ranks) == list(range(1, world_size)), ranks

    def broadcast(self, tensor: torch.Tensor, src: int = 0, stream: object = None) -> None:
        self.broadcasts += 1
        data = tensor.view(torch.uint8)
        try:
            if self.rank == src:
                for peer in self.peers:
                    peer.send_bytes(data.numpy().tobytes())
                for peer in self.peers:
                    peer.recv_bytes()
            else:
                (sender,) = self.peers
                data.copy_(torch.frombuffer(bytearray(sender.recv_bytes()), dtype=torch.uint8))
                sender.send_bytes(b"received")
        except (OSError, EOFError):
            threading.Event().wait()

    def destroy(self) -> None:
        for peer in self.peers:
            peer.close()


def _connected(host: str, port: int) -> Connection:
    until = time.monotonic() + CONNECT_S
    while True:
        try:
            return Client((host, port))
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


class _Stream:
    def synchronize(self) -> None:
        pass


def install(gpu: str) -> None:
    """Let this process believe that it has the GPU of this name."""
    from torch.multiprocessing import reductions
    from vllm.distributed.weight_transfer import (
        ipc_engine,
        nccl_common,
        packed_tensor,
    )

    nccl_common.stateless_init_process_group = Wire
    packed_tensor._get_streams = lambda device, count: tuple(_Stream() for _ in range(count))
    packed_tensor.reduce_tensor = _handle_of
    ipc_engine.reduce_tensor = _handle_of
    reductions.rebuild_cuda_tensor = _opened
    real_empty = torch.empty

    def empty(*sizes: Any, **options: Any) -> torch.Tensor:
        if str(options.get("device")) == "cuda":
            return _shared(tempfile.mkstemp(prefix="axpo-gpu-")[1], *sizes)
        return real_empty(*sizes, **options)

    torch.empty = empty
    torch.cuda.stream = lambda stream: contextlib.nullcontext()
    torch.cuda.current_stream = lambda device=None: _Stream()
    torch.cuda.synchronize = torch.cuda.ipc_collect = lambda: None
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(uuid=gpu)
    torch.accelerator.current_device_index = lambda: 0
    torch.accelerator.device_index = lambda index: contextlib.nullcontext()


_FILES: dict[int, str] = {}  # by the address of a shared tensor


def _shared(file: str, size: int) -> torch.Tensor:
    if os.path.getsize(file) < size:
        os.truncate(file, size)
    tensor = torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,)))
    _FILES[tensor.data_ptr()] = file
    return tensor


def _handle_of(tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
    """Return what torch's reduce_tensor returns for CUDA memory: a function and these types."""
    file = _FILES[tensor.data_ptr()].encode()
    where = (tensor.size(), tensor.stride(), 0, torch.UntypedStorage, tensor.dtype, 0)
    return None, (torch.Tensor, *where, file, tensor.numel(), 0, False, b"", 0, b"", True)


def _opened(*handle: Any) -> torch.Tensor:
    return _shared(handle[7].decode(), handle[8])
