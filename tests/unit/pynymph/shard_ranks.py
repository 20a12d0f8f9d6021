# SPDX-License-Identifier: MIT
"""A model of which each of two ranks has a part, with gloo: what the ranks find, on the CPU or on one GPU."""

import ast
from pathlib import Path
from typing import Any

import pytest
from rank_processes import run_ranks

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("torch.distributed.tensor")

RANK = """
import os, sys, torch, torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from pynymph import weights
from pynymph.errors import ArgumentError
rank, store, path, device = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
if device == "cuda":
    torch.cuda.set_device(0)
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
mesh = init_device_mesh(device, (2,))

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = torch.nn.Linear(6, 5), torch.nn.Linear(5, 6), torch.nn.LayerNorm(1)

    def forward(self, x):
        return self.norm(self.down(self.up(x)).sum(-1, keepdim=True))

def model(dtype=torch.float32):
    made = Model()
    made.load_state_dict(load_file(path))
    return made.to(device, dtype)

def tell(case, found):
    origins = {n: [o.how, o.proof, o.slices, o.ranges, o.why] for n, o in found.origins.items()}
    print(case, [found.where, found.ok, origins, [[w.name, w.problem, w.ranges] for w in found.wrong]])

sharded = model()
fully_shard(sharded, mesh=mesh)
tell("fsdp", weights.match(sharded, path))
half = model(torch.bfloat16)
fully_shard(half, mesh=mesh)
tell("cast", weights.match(half, path))
tell("no files", weights.match(sharded, None, weights.manifest(path)))
split = parallelize_module(model(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()},
                          src_data_rank=None)
tell("tp", weights.match(split, path))
if rank == 1:
    with torch.no_grad():
        split.down.weight._local_tensor.view(torch.uint8)[2, 1] ^= 1
tell("flip", weights.match(split, path))
tensors = load_file(path, device=device)
partial = DTensor.from_local(tensors["up.weight"] / 2, mesh, [Partial()])
tell("partial", weights.match({**tensors, "up.weight": partial}, path))
shape = distribute_tensor(torch.zeros(4, 6, device=device), mesh, [Shard(0)], src_data_rank=None)
tell("shape", weights.match({**tensors, "up.weight": shape}, path))
manifest = weights.manifest(sharded.state_dict())
print("manifest", [sorted(manifest.tensors), weights.verify(sharded.state_dict(), manifest).ok])
first = {"w": distribute_tensor(tensors["down.weight"], mesh, [Shard(0)], src_data_rank=None)}
second = {"w": DTensor.from_local(first["w"]._local_tensor, mesh, [Replicate()], run_check=False)}
before = weights.manifest(first)
try:
    weights.verify(second, before)
    print("context", "nothing")
except weights.WeightsError as error:
    print("context", [wrong.name for wrong in error.report.wrong])
if device == "cpu":  # gloo gathers no tensors of a GPU
    ring = torch.distributed._functional_collectives.all_gather_tensor(torch.ones(2) * (rank + 1), 0, mesh)
    print("waits", [type(ring).__name__, weights.manifest({"w": ring}).tensors["w"].digest.hex()])
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # else torch's threads sometimes call std::terminate() at the end of the interpreter
"""


def tell(folder: Path, device: str) -> list[dict[str, Any]]:
    """Return what each rank prints of each case: devices, whether all is proven, origins, what is wrong."""
    torch.manual_seed(4)
    tensors = {
        **{"up.weight": torch.randn(5, 6), "up.bias": torch.randn(5), "down.weight": torch.randn(6, 5)},
        **{"down.bias": torch.randn(6), "norm.weight": torch.randn(1), "norm.bias": torch.randn(1)},
    }
    safetensors.save_file(tensors, folder / "model.safetensors")
    files = [str(folder / "store"), str(folder / "model.safetensors")]
    found = []
    for out in run_ranks(RANK, 2, *files, device):
        lines = [line for line in out.splitlines() if line.endswith("]")]
        found.append({line[: line.index(" [")]: ast.literal_eval(line[line.index("[") :]) for line in lines})
    return found
