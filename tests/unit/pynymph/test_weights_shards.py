# SPDX-License-Identifier: MIT
"""Weights of which each rank has a part: FSDP2, tensor parallelism, and DTensor, on two ranks with gloo."""

import ast
import subprocess
import sys
from typing import Any

import pytest

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
rank, store, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = torch.nn.Linear(6, 5), torch.nn.Linear(5, 6), torch.nn.LayerNorm(1)

    def forward(self, x):
        return self.norm(self.down(self.up(x)).sum(-1, keepdim=True))

def model(dtype=torch.float32):
    made = Model()
    made.load_state_dict(load_file(path))
    return made.to(dtype)

def tell(case, found):
    origins = {n: [o.how, o.proof, o.slices, o.ranges, o.why] for n, o in found.origins.items()}
    print(case, [found.ok, origins, [[w.name, w.problem, w.ranges] for w in found.wrong]])

sharded = model()
fully_shard(sharded)
tell("fsdp", weights.match(sharded, path))
half = model(torch.bfloat16)
fully_shard(half)
tell("cast", weights.match(half, path))
tell("no files", weights.match(sharded, None, weights.manifest(path)))
split = parallelize_module(model(), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
tell("tp", weights.match(split, path))
if rank == 1:
    with torch.no_grad():
        split.down.weight._local_tensor.view(torch.uint8)[2, 1] ^= 1
tell("flip", weights.match(split, path))
tensors = load_file(path)
partial = DTensor.from_local(tensors["up.weight"] / 2, mesh, [Partial()])
tell("partial", weights.match({**tensors, "up.weight": partial}, path))
shape = distribute_tensor(torch.zeros(4, 6), mesh, [Shard(0)])
tell("shape", weights.match({**tensors, "up.weight": shape}, path))
manifest = weights.manifest(sharded.state_dict())
print("manifest", [sorted(manifest.tensors), weights.verify(sharded.state_dict(), manifest).ok])
first = {"w": distribute_tensor(tensors["down.weight"], mesh, [Shard(0)])}
second = {"w": DTensor.from_local(first["w"]._local_tensor, mesh, [Replicate()], run_check=False)}
before = weights.manifest(first)
try:
    weights.verify(second, before)
    print("context", "nothing")
except weights.WeightsError as error:
    print("context", [wrong.name for wrong in error.report.wrong])
ring = torch.distributed._functional_collectives.all_gather_tensor(torch.ones(2) * (rank + 1), 0, mesh)
print("waits", [type(ring).__name__, weights.manifest({"w": ring}).tensors["w"].digest.hex()])
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # else torch's threads sometimes call std::terminate() at the end of the interpreter
"""


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.manual_seed(4)
    return {
        **{"up.weight": torch.randn(5, 6), "up.bias": torch.randn(5), "down.weight": torch.randn(6, 5)},
        **{"down.bias": torch.randn(6), "norm.weight": torch.randn(1), "norm.bias": torch.randn(1)},
    }


@pytest.fixture(scope="module")
def ranks(tensors: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks prints of each case."""
    folder = tmp_path_factory.mktemp("shards")
    safetensors.save_file(tensors, folder / "model.safetensors")
    commands = [
        [sys.executable, "-c", RANK, str(rank), str(folder / "store"), str(folder / "model.safetensors")]
        for rank in range(2)
    ]
    processes = [
        subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in commands
    ]
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), outputs
    found = []
    for out, _ in outputs:
        lines = [line for line in out.splitlines() if line.endswith("]")]
        found.append({line[: line.index(" [")]: ast.literal_eval(line[line.index("[") :]) for line in lines})
    return found


def test_fsdp_has_rows_of_the_files(ranks: list[dict[str, Any]]) -> None:
    for rank, slices in enumerate((((0, 3), (0, 6)), ((3, 5), (0, 6)))):
        ok, origins, wrong = ranks[rank]["fsdp"]
        assert ok and not wrong
        (first, last), _ = slices
        assert origins["up.weight"] == ["shard", "bytes", slices, ((24 * first, 24 * last),), ""]
    # 6 rows: 3 for each; and a row for two ranks: the second has none
    assert ranks[1]["fsdp"][1]["down.bias"][2] == ((3, 6),)
    assert ranks[0]["fsdp"][1]["norm.weight"][:2] == ["same name", "bytes"]
    assert ranks[1]["fsdp"][1]["norm.weight"][2] == ((1, 1),)


def test_shards_are_proven_after_a_cast(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        ok, origins, wrong = rank["cast"]
        assert ok and not wrong and origins["up.weight"][1] == "cast"


def test_a_shard_is_not_proven_without_the_files(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        ok, origins, wrong = rank["no files"]
        assert not ok and not wrong and origins["up.weight"][1] == ""
        assert origins["up.weight"][4] == "it is a part of up.weight; give the files to find out"


def test_tensor_parallelism_has_rows_and_columns_of_the_files(ranks: list[dict[str, Any]]) -> None:
    for rank, columns in enumerate(((0, 3), (3, 5))):
        ok, origins, _ = ranks[rank]["tp"]
        assert ok
        assert origins["up.weight"][:2] == ["shard", "bytes"]
        assert origins["down.weight"] == ["shard", "bytes", ((0, 6), columns), (), ""]  # no range of bytes
        assert origins["down.bias"][:2] == ["same name", "bytes"]  # replicated


def test_a_flipped_bit_in_a_shard_is_found_by_its_rank(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["flip"][0]
    ok, origins, wrong = ranks[1]["flip"]
    assert not ok and origins["down.weight"][1] == ""
    assert wrong == [["down.weight", "differs, in the part that is here", ((0, 48),)]]


def test_what_is_no_slice_is_not_proven(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        ok, origins, _ = rank["partial"]
        assert not ok and origins["up.weight"][0] == "unknown" and "of the whole" in origins["up.weight"][4]
        ok, origins, wrong = rank["shape"]
        assert not ok and wrong[0][1] == "is of F32 [4, 6] instead of F32 [5, 6]"


def test_a_manifest_of_shards_has_their_place_in_the_whole(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        names, ok = rank["manifest"]
        assert ok and "up.weight._local_tensor" in names and "up.weight.__context__" in names
        assert rank["context"] == ["w.__context__"]


def test_a_collective_under_way_is_waited_for(ranks: list[dict[str, Any]]) -> None:
    from pynymph import weights

    right = weights.manifest({"w": torch.tensor([1.0, 1, 2, 2])}).tensors["w"].digest.hex()
    for rank in ranks:
        assert rank["waits"] == ["AsyncCollectiveTensor", right]
