"""CUDA IPC handles as bytes: what vLLM's messages take, and what is read back."""

import pickle

import pytest
import torch
from vllm.v1.serial_utils import MsgpackEncoder

from rollout_workers import ipc_handles

# What torch's reduce_tensor gives for a CUDA tensor: the types are its, the bytes are made up.
HANDLE = (
    *(torch.Tensor, torch.Size([1024]), (1,), 0, torch.UntypedStorage, torch.uint8, 0),
    *(b"h" * 64, 1024, 0, False, b"r" * 64, 0, b"e" * 64, True),
)
PAYLOAD = {
    "names": ["a"],
    "dtype_names": ["bfloat16"],
    "shapes": [[512]],
    "ipc_handles": {"GPU-0": HANDLE},
    "tensor_sizes": [1024],
}


def call(method, arguments):
    """What AsyncLLM sends to the engine's process."""
    return (0, 1, "collective_rpc", (method, None, arguments, None))


def test_vllm_takes_the_bytes_of_a_payload_and_not_the_payload(monkeypatch):
    monkeypatch.delenv("VLLM_ALLOW_INSECURE_SERIALIZATION", raising=False)
    data = ipc_handles.pack(PAYLOAD)
    MsgpackEncoder().encode(call("update_weights_by_handles", (data,)))
    assert ipc_handles.unpack(data) == PAYLOAD
    with pytest.raises(TypeError, match="not serializable"):
        MsgpackEncoder().encode(call("update_weights", (PAYLOAD,)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_every_dtype_is_part_of_a_handle(dtype):
    assert ipc_handles.unpack(pickle.dumps({"handle": dtype})) == {"handle": dtype}


@pytest.mark.parametrize("other", [len, eval, torch.load, torch.nn.Linear, pickle.loads, pytest])
def test_nothing_else_is_read(other):
    try:
        data = pickle.dumps({"handle": other})
    except TypeError:  # a module
        data = b"cos\nsystem\n."
    with pytest.raises(pickle.UnpicklingError, match="is no part of a CUDA IPC handle"):
        ipc_handles.unpack(data)
