# SPDX-License-Identifier: MIT
"""What weights.match() proves of models on a GPU: dequantized, quantized, wrapped, and cut into shards."""

import errno
from pathlib import Path
from typing import Any

import pytest
import quantized_models
import shard_ranks
import tiny_models
import torch
from safetensors.torch import save_file

from pynymph import cuda, weights
from pynymph.errors import ArgumentError, NymphError

GPU = "cuda:0"


def flipped_bits_are_found(live: Any, folder: Path, names: list[str]) -> None:
    for name in names:
        octets = live.get_parameter(name).detach().view(-1).view(torch.uint8)
        for at in (0, len(octets) // 2 + 1, len(octets) - 1):
            octets[at] ^= 1
            assert list(weights.match(live, folder).unproven) == [name]
            octets[at] ^= 1


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_what_a_gpu_dequantized_is_proven_by_it(kind: str, tmp_path: Path) -> None:
    live = getattr(quantized_models, kind)(tmp_path, device=GPU)
    found = weights.match(live, tmp_path)
    assert found.ok and found.where == GPU, (found.unproven, found.missing, found.wrong)
    names = found.of("dequantized")
    assert len(names) == {"fp8": 14, "mxfp4": 4}[kind]
    report = weights.verify(live, weights.manifest(tmp_path), files=tmp_path)
    assert report.dequantized == names and report.where == GPU
    flipped_bits_are_found(live, tmp_path, names[:3])


def test_experts_that_a_gpu_dequantized_are_proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, classes, arguments = tiny_models.MODELS["Mixtral"]
    fitting = kind, classes, arguments | {"intermediate_size": 48}
    monkeypatch.setitem(tiny_models.MODELS, "FP8 Mixtral", fitting)
    live = quantized_models.fp8(tmp_path, "FP8 Mixtral", GPU)
    found = weights.match(live, tmp_path)
    assert found.ok, (found.unproven, found.missing, found.wrong)
    experts = [name for name in found.of("dequantized") if "experts" in name]
    assert len(experts) == 4
    flipped_bits_are_found(live, tmp_path, experts)


def test_all_numbers_and_scales_are_dequantized_alike_by_gpu_and_cpu(tmp_path: Path) -> None:
    """Each byte of FP8 but NaN, and of MXFP4, at each exponent that a scale can have."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).repeat(255, 1)
    numbers = torch.where(numbers.float().isnan(), torch.zeros(()), numbers.float()).to(torch.float8_e4m3fn)
    scales = torch.arange(255, dtype=torch.uint8).reshape(255, 1)
    values = numbers.float() * torch.ldexp(torch.ones(()), scales.int() - 127)
    files = {"layer.fp8": numbers, "layer.fp8_scale_inv": scales}
    packed = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 255, 1, 1)
    exponents = scales.reshape(1, 255, 1).repeat(1, 1, 16)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = torch.cat((table, -table))
    both = torch.stack((table[(packed & 15).long()], table[(packed >> 4).long()]), -1).flatten(-2)
    made = torch.ldexp(both, exponents.unsqueeze(-1).int() - 127).flatten(-2).mT
    files |= {"layer.fp4_blocks": packed, "layer.fp4_scales": exponents}
    save_file(files, tmp_path / "model.safetensors")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        live = {"layer.fp8": values.to(dtype), "layer.fp4": made.to(dtype).contiguous()}
        for device in ("cpu", GPU):
            found = weights.match({name: each.to(device) for name, each in live.items()}, tmp_path)
            assert found.ok and len(found.of("dequantized")) == 2, (
                dtype,
                device,
                found.unproven,
                found.wrong,
            )


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao_is_proven_on_a_gpu(kind: str, tmp_path: Path) -> None:
    live = quantized_models.quantized(kind, tmp_path, GPU)
    found = weights.match(live, tmp_path)
    assert found.ok and GPU in found.where, (found.unproven, found.missing, found.wrong)
    live[2].weight.scale.view(torch.uint8)[1, 0] ^= 1
    assert list(weights.match(live, tmp_path).unproven) == ["2.weight.scale"]


@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_is_proven_on_a_gpu(tmp_path: Path, double: bool) -> None:
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}
    live = quantized_models.bitsandbytes(tmp_path, GPU, **options)
    found = weights.match(live, tmp_path / "quantized")
    assert found.ok and GPU in found.where, (found.unproven, found.missing, found.wrong)
    checker = weights.Checker(live)
    checker.snapshot()
    live.model.layers[0].mlp.up_proj.weight.quant_state.absmax.view(torch.uint8)[0] ^= 1
    name = "model.layers.0.mlp.up_proj.weight.absmax"
    assert list(weights.match(live, tmp_path / "quantized").unproven) == [name]
    assert [each.name.partition(":")[2] for each in checker.compare().mismatches] == [name]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two ranks on one GPU, with gloo: NCCL wants a GPU for each."""
    return shard_ranks.tell(tmp_path_factory.mktemp("shards"), "cuda")


def test_shards_on_a_gpu_are_proven_to_be_slices(ranks: list[dict[str, Any]]) -> None:
    for rank, columns in enumerate(((0, 3), (3, 5))):
        for case, proof in (("fsdp", "bytes"), ("cast", "cast"), ("tp", "bytes")):
            where, ok, origins, wrong = ranks[rank][case]
            assert where == GPU and ok and not wrong, (case, origins)
            assert origins["up.weight"][:2] == ["shard", proof]
        assert ranks[rank]["tp"][2]["down.weight"] == ["shard", "bytes", ((0, 6), columns), (), ""]
        assert not ranks[rank]["no files"][1]
        _, ok, origins, _ = ranks[rank]["partial"]
        assert not ok and "redistribute" in origins["up.weight"][4]


def test_a_flipped_bit_in_a_shard_on_a_gpu_is_found_by_its_rank(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["flip"][1] and not ranks[1]["flip"][1]
    assert ranks[1]["flip"][3] == [["down.weight", "differs, in the part that is here", ((0, 48),)]]


@pytest.fixture
def full() -> Any:
    """Fill the memory of the GPU, but for some, when called."""
    held: list[torch.Tensor] = []

    def fill(rest: int) -> None:
        for _ in range(3):  # pools give memory back when the GPU is waited for
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            if (free := torch.cuda.mem_get_info()[0]) > rest:
                held.append(torch.empty(free - rest, dtype=torch.uint8, device=GPU))

    yield fill
    held.clear()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("quantized", [False, True])
def test_a_gpu_that_is_full_while_a_cast_is_proven_is_one_clear_error(
    quantized: bool, tmp_path: Path, full: Any
) -> None:
    wide = torch.ones(2048, 4096)
    files = {"layer.weight": wide}
    if quantized:
        files = {"layer.weight": wide.to(torch.float8_e4m3fn), "layer.weight_scale_inv": torch.ones(16, 32)}
    save_file(files, tmp_path / "model.safetensors")
    live = {"layer.weight": wide.to(GPU, torch.bfloat16)}
    manifest = weights.manifest(tmp_path)
    assert weights.match(live, tmp_path, manifest).ok
    full(4 << 20)
    with pytest.raises(
        NymphError, match="proving the tensors of a model: the GPU is out of memory"
    ) as caught:
        weights.match(live, tmp_path, manifest)
    assert caught.value.errno == errno.ENOMEM


def test_a_gpu_that_is_full_while_gaps_are_closed_is_one_clear_error(full: Any) -> None:
    gaps = torch.ones(2, 32 << 20, dtype=torch.uint8, device=GPU)[:, : 31 << 20]
    full(4 << 20)
    for call in (cuda.digest, lambda each: weights.Checker({"w": each}).checksum()):
        with pytest.raises(NymphError, match="without gaps: the GPU is out of memory"):
            call(gaps)


def test_a_tensor_without_memory_is_one_clear_error() -> None:
    """FSDP frees a parameter's storage so, and keeps the tensor."""
    freed = torch.ones(1000, device=GPU)
    model = {"layer.weight": freed}
    checker = weights.Checker(model)
    checker.snapshot()
    freed.untyped_storage().resize_(0)
    for call in (checker.compare, lambda: weights.manifest(model)):
        with pytest.raises(ArgumentError, match=r"the memory of .*layer\.weight was freed"):
            call()
    with pytest.raises(ArgumentError, match="shows no memory: its memory was freed"):
        cuda.digest(freed)
