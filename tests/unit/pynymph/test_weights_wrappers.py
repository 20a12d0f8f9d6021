# SPDX-License-Identifier: MIT
"""Weights that are made of other tensors: a class of torch's, torchao, bitsandbytes, compressed-tensors."""

import dataclasses
import enum
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from pynymph_command import run
from quantized_models import bitsandbytes, fp8, mxfp4, quantized

import pynymph
from pynymph import weights
from pynymph.errors import ArgumentError

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


class Kind(enum.Enum):
    ROW = 1
    BLOCK = 2


@dataclasses.dataclass
class Fields:
    block: list[int]
    kind: Kind = Kind.ROW
    eps: float = 0.1
    dtype: Any = torch.bfloat16


class Scaled(torch.Tensor):  # type: ignore[misc]
    """Numbers and their scale, which may be made of others again."""

    @staticmethod
    def __new__(cls, numbers: Any, scale: Any, fields: Any) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.bfloat16)
        made.numbers, made.scale, made.fields = numbers, scale, fields
        return made

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["numbers", "scale"], {"fields": self.fields}

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function is torch.ops.aten.detach.default:
            return arguments[0]
        if function is torch.ops.aten.is_pinned.default:
            return False
        raise NotImplementedError(function)


def scaled(**changes: Any) -> Any:
    numbers = torch.arange(12, dtype=torch.int8).reshape(3, 4)
    inner = Scaled(torch.ones(3, 1, dtype=torch.int8), torch.full((1,), 0.5), {"of": "scales"})
    return Scaled(numbers, inner, Fields([1, 4], **changes))


def test_a_wrapper_is_listed_by_its_tensors_and_contexts() -> None:
    found = weights.manifest({"w": scaled()}).tensors
    assert list(found) == [
        *("w.numbers", "w.scale.numbers", "w.scale.scale", "w.scale.__context__", "w.__context__"),
    ]
    assert [each.nbytes for each in found.values()][:3] == [12, 3, 4]


@pytest.mark.parametrize(
    "change", [{"kind": Kind.BLOCK}, {"eps": 0.2}, {"dtype": torch.float16}, {"kind": (Kind.ROW,)}]
)
def test_another_context_is_another_digest(change: dict[str, Any]) -> None:
    manifest = weights.manifest({"w": scaled()})
    assert weights.verify({"w": scaled()}, manifest).ok
    with pytest.raises(weights.WeightsError) as caught:
        weights.verify({"w": scaled(**change)}, manifest)
    assert [each.name for each in caught.value.report.wrong] == ["w.__context__"]
    model = {"w": scaled()}
    checker = weights.Checker(model)
    checker.snapshot()
    assert checker.compare().match and checker.compare(checker.checksum()).match
    model["w"] = scaled(**change)
    assert [each.name.partition(":")[2] for each in checker.compare().mismatches] == ["w.__context__"]


def test_a_device_is_no_part_of_the_context() -> None:
    digests = [
        weights.manifest({"w": Scaled(torch.ones(2), torch.ones(1), {"at": torch.device(at)})})
        .tensors["w.__context__"]
        .digest
        for at in ("cpu", "cuda:1")
    ]
    assert digests[0] == digests[1]


def test_a_context_without_a_digest_is_an_error() -> None:
    made = Scaled(torch.ones(2), torch.ones(1), {"how": object()})
    with pytest.raises(ArgumentError, match="w has a object in its context, of which no digest"):
        weights.manifest({"w": made})


def test_a_wrapper_is_never_read_by_its_pointer(tmp_path: Path) -> None:
    made = scaled()
    assert made.data_ptr() == 0
    safetensors.save_file({"w": torch.ones(3, 4, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    header = weights.read_header(tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match="w is made of other tensors; give those"):
        weights.file_digest(header, {"w": made})
    with pytest.raises(ArgumentError, match="shows no memory; give the tensors that it wraps"):
        pynymph.digest.payload(made)


def test_reset_reaches_the_inner_tensors() -> None:
    model = {"w": scaled()}
    checker = weights.Checker(model)
    checker.snapshot()
    checker.reset()
    names = {each.name.partition(":")[2] for each in checker.compare().mismatches}
    assert names == {"w.numbers", "w.scale.numbers", "w.scale.scale"}  # no update brings a context


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao_is_proven_with_its_fields(kind: str, tmp_path: Path) -> None:
    model = quantized(kind, tmp_path)
    found = weights.match(model, tmp_path)
    assert found.ok and len(found.of("bytes")) == len(found.origins), (found.unproven, found.missing)
    assert found.origins["0.weight.qdata"].sources == ("0._weight_qdata",)
    assert found.origins["0.weight.__context__"].how == "context"
    assert weights.verify(model, weights.manifest(tmp_path)).ok
    for part in ("qdata", "scale"):
        inner = getattr(model[2].weight, part).view(torch.uint8)
        inner[1, 0] ^= 1
        found = weights.match(model, tmp_path)
        assert [each.name for each in found.wrong] == [f"2._weight_{part}"]
        assert list(found.unproven) == [f"2.weight.{part}"]
        inner[1, 0] ^= 1
    model[0].weight.block_size = [1, 16]
    assert weights.match(model, tmp_path).unproven == {
        "0.weight.__context__": "the fields of this wrapper tensor differ from those in the files"
    }


def test_fields_that_no_file_has_are_not_proven(tmp_path: Path) -> None:
    model = quantized("Int8WeightOnlyConfig", tmp_path)
    path = tmp_path / "model.safetensors"
    safetensors.save_file(safetensors.load_file(path), path)
    why = set(weights.match(model, tmp_path).unproven.values())
    assert why == {"the files say nothing of the fields of this wrapper tensor"}
    for damaged in ("[", '{"_type": "Int8Tensor"}', "[" * 100_000):
        metadata = {"0.weight": damaged, "2.weight": damaged}
        safetensors.save_file(safetensors.load_file(path), path, metadata)
        assert set(weights.match(model, tmp_path).unproven) == {
            "0.weight.__context__",
            "2.weight.__context__",
        }


def test_torchao_in_transformers_is_proven(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torchao = pytest.importorskip("torchao.quantization")
    pytest.importorskip("accelerate")
    tiny_models.make(transformers, "Llama").save_pretrained(tmp_path / "plain")
    config = transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig())
    kind = transformers.LlamaForCausalLM
    kind.from_pretrained(tmp_path / "plain", quantization_config=config).save_pretrained(tmp_path / "int8")
    live = kind.from_pretrained(tmp_path / "int8")
    assert type(live.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    found = weights.match(live, tmp_path / "int8")
    assert found.ok, (found.unproven, found.missing, found.wrong)
    assert sum(each.how == "context" for each in found.origins.values()) == 14


@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_is_proven_with_its_quant_state(tmp_path: Path, double: bool) -> None:
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": double}
    live = bitsandbytes(tmp_path, **options)
    found = weights.match(live, tmp_path / "quantized")
    assert found.ok, (found.unproven, found.missing, found.wrong)
    name = "model.layers.0.mlp.up_proj.weight"
    for part in ("absmax", "quant_map", "quant_state.bitsandbytes__nf4"):
        assert found.origins[f"{name}.{part}"].proof == "bytes"
    done = run("weights", "match", tmp_path / "quantized", "--device", "cpu", "--quiet")
    assert done.returncode == 0 and " 0 not, " in done.stdout, (
        done.stderr
    )  # it can't be moved once it is loaded
    checker = weights.Checker(live)
    checker.snapshot()
    state = live.model.layers[0].mlp.up_proj.weight.quant_state
    state.absmax.view(torch.uint8)[0] ^= 1
    assert list(weights.match(live, tmp_path / "quantized").unproven) == [f"{name}.absmax"]
    assert [each.name.partition(":")[2] for each in checker.compare().mismatches] == [f"{name}.absmax"]
    state.absmax.view(torch.uint8)[0] ^= 1
    state.blocksize *= 2
    assert list(weights.match(live, tmp_path / "quantized").unproven) == [
        f"{name}.quant_state.bitsandbytes__nf4"
    ]


def test_bitsandbytes_int8_is_proven_with_its_scales(tmp_path: Path) -> None:
    live = bitsandbytes(tmp_path, load_in_8bit=True)
    found = weights.match(live, tmp_path / "quantized")
    assert found.ok, (found.unproven, found.missing, found.wrong)
    live.model.layers[1].mlp.up_proj.weight.SCB[2] += 1
    assert list(weights.match(live, tmp_path / "quantized").unproven) == ["model.layers.1.mlp.up_proj.SCB"]


def test_compressed_tensors_are_proven_under_their_names(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    compressed = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    made = tiny_models.make(transformers, "Llama")
    config = quantization.QuantizationConfig(
        config_groups={
            "group_0": quantization.QuantizationScheme(
                targets=["Linear"],
                weights=quantization.QuantizationArgs(num_bits=8, symmetric=True, strategy="channel"),
            )
        },
        format="int-quantized",
        quantization_status="frozen",
        ignore=["lm_head"],
    )
    quantization.apply_quantization_config(made, config)
    for module in made.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data.fill_(0.02)
    compressor = compressed.ModelCompressor.from_pretrained_model(made, quantization_format="int-quantized")
    compressor.compress_model(made)
    made.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    live = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert live.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    found = weights.match(live, tmp_path)
    assert found.ok, (found.unproven, found.missing, found.wrong)
    octets = live.model.layers[1].mlp.up_proj.weight_scale.detach().view(-1).view(torch.uint8)
    octets[0] ^= 1
    assert list(weights.match(live, tmp_path).unproven) == ["model.layers.1.mlp.up_proj.weight_scale"]
    config = transformers.CompressedTensorsConfig(run_compressed=False)
    live = transformers.LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=config)
    weight = "model.layers.0.mlp.up_proj.weight"
    assert live.get_parameter(weight).is_floating_point()
    found = weights.match(live, tmp_path)
    assert not found.ok and weight in found.unproven and "model.norm.weight" in found.of("bytes")


@pytest.mark.parametrize("make", [fp8, mxfp4])
def test_dequantized_tensors_are_proven_by_the_files(make: Any, tmp_path: Path) -> None:
    live = make(tmp_path)
    found = weights.match(live, tmp_path)
    assert found.ok, (found.unproven, found.missing, found.wrong)
    made = {name for name, holders in found.holders.items() if name.endswith(("_scale_inv", "_blocks"))}
    assert len(found.of("dequantized")) == len(made) == {fp8: 14, mxfp4: 4}[make]
    manifest = weights.manifest(tmp_path)
    assert weights.verify(live, manifest, files=tmp_path).dequantized == found.of("dequantized")
    with pytest.raises(weights.WeightsError, match="and scales; give the files to find out"):
        weights.verify(live, manifest)
    for name in found.of("dequantized"):
        octets = live.get_parameter(name).detach().view(-1).view(torch.uint8)
        for at in (0, int(torch.randint(len(octets), ())), len(octets) - 1):
            octets[at] ^= 1
            assert list(weights.match(live, tmp_path).unproven) == [name]
            octets[at] ^= 1


@pytest.mark.parametrize("make", [fp8, mxfp4])
def test_numbers_and_scales_have_to_be_those_of_the_manifest(make: Any, tmp_path: Path) -> None:
    live = make(tmp_path)
    manifest = weights.manifest(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.load_file(path)
    for suffix in ("_scale_inv", "_scales", "_blocks", "up_proj.weight"):
        name = next((name for name in tensors if name.endswith(suffix)), None)
        if name is not None:
            changed = tensors[name].clone()
            changed.view(-1).view(torch.uint8)[-1] ^= 1
            safetensors.save_file(tensors | {name: changed}, path)
            with pytest.raises(ArgumentError, match="or its scales in the files differ from the manifest"):
                weights.match(live, path, manifest)
            rest = {each: tensors[each] for each in tensors if each != name}
            safetensors.save_file(rest, path)
            with pytest.raises(ArgumentError, match="is not in the files; give the files of the manifest"):
                weights.match(live, path, manifest)
            assert not weights.match(live, path).ok


def test_scales_of_another_grid_prove_nothing(tmp_path: Path) -> None:
    live = fp8(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.load_file(path)
    name = "model.layers.0.mlp.up_proj.weight_scale_inv"
    for grid in ((5, 2), (1, 3, 2), (3, 2, 1), (0, 2), ()):
        safetensors.save_file(tensors | {name: torch.ones(grid)}, path)
        found = weights.match(live, path)
        assert list(found.unproven) == [name.removesuffix("_scale_inv")]
        assert "its scales are F32" in found.wrong[0].problem


def test_experts_that_were_dequantized_and_merged_are_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, classes, arguments = tiny_models.MODELS["Mixtral"]
    fitting = kind, classes, arguments | {"intermediate_size": 48}
    monkeypatch.setitem(tiny_models.MODELS, "FP8 Mixtral", fitting)
    live = fp8(tmp_path, "FP8 Mixtral")
    found = weights.match(live, tmp_path)
    assert found.ok, (found.unproven, found.missing, found.wrong)
    for part, experts in (("gate_up_proj", 8), ("down_proj", 4)):
        name = f"model.layers.1.mlp.experts.{part}"
        origin = found.origins[name]
        assert (origin.how, origin.proof, len(origin.sources)) == ("merged", "dequantized", experts)
        assert found.holders[f"{origin.sources[2]}_scale_inv"] == (name,)
        octets = live.get_parameter(name).detach()[2].view(-1).view(torch.uint8)
        octets[5] ^= 1
        flipped = weights.match(live, tmp_path)
        assert list(flipped.unproven) == [name]
        assert [each.name for each in flipped.wrong] == [origin.sources[2]]
        octets[5] ^= 1
