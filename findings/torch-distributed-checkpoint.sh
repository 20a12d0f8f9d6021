#!/bin/sh
# SPDX-License-Identifier: MIT
# Two guesses about torch.distributed that are wrong. Seen with torch 2.13.0, on a CPU:
#  - DTensor.__tensor_flatten__() lists "device_mesh" among the attributes that are inner tensors, and a DeviceMesh
#    is none: code that walks inner tensors recursively, as the protocol asks for, ends with an AttributeError.
#  - torch.distributed.checkpoint.load() of a key that a checkpoint does not have raises CheckpointException, which
#    is no Exception: `except Exception` lets it through.
# Prints the version and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 'numpy>=2.1,<3'
cd "$folder"
"$folder/venv/bin/python" -W ignore - << 'END'
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

print("torch", torch.__version__)

dist.init_process_group("gloo", init_method="file://./store", rank=0, world_size=1)
tensor = distribute_tensor(torch.ones(2, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
names, _ = tensor.__tensor_flatten__()
kinds = {name: type(getattr(tensor, name)).__name__ for name in names}
print("inner tensors of a DTensor:", kinds)
assert not isinstance(getattr(tensor, "device_mesh"), torch.Tensor) and "device_mesh" in names
dist.destroy_process_group()

dcp.save({"weight": torch.ones(2)}, checkpoint_id="saved", no_dist=True)
caught = None
try:
    try:
        dcp.load({"other": torch.zeros(2)}, checkpoint_id="saved", no_dist=True)
    except Exception as error:
        caught = error
except BaseException as error:
    print("not caught by `except Exception`:", type(error).__mro__[:2])
    assert type(error).__name__ == "CheckpointException" and not isinstance(error, Exception)
else:
    raise AssertionError(f"an Exception came: {caught!r}")
END
