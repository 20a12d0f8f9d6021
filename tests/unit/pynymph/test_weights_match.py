# SPDX-License-Identifier: MIT
"""weights.match() and verify() of models: of torch alone, and of many architectures of transformers."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from pynymph import weights
from pynymph.errors import ArgumentError

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "weights.md"


class Attention(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = torch.nn.Linear(8, 12)
        self.o_proj = torch.nn.Linear(8, 8)


class Model(torch.nn.Module):  # type: ignore[misc]
    """As vLLM and SGLang make one."""

    def __init__(self) -> None:
        super().__init__()
        self.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
        torch.manual_seed(1)
        self.embed = torch.nn.Embedding(9, 8)
        self.layers = torch.nn.ModuleList(Attention() for _ in range(2))
        self.head = torch.nn.Linear(8, 9)
        self.head.weight = self.embed.weight
        self.register_buffer("inv_freq", torch.ones(3), persistent=False)


def save(model: Any, path: Path, **changes: Any) -> Path:
    """Write the file that the model would be loaded from."""
    tensors = {f"model.{name}": each.detach().clone() for name, each in model.state_dict().items()}
    del tensors["model.head.weight"]
    for name in [name for name in tensors if "qkv_proj" in name]:
        for part, each in zip("qkv", tensors.pop(name).split([8, 2, 2]), strict=True):
            tensors[name.replace("qkv_proj", f"{part}_proj")] = each.contiguous()
    tensors |= changes
    safetensors.save_file(tensors, path / "model.safetensors")
    return path / "model.safetensors"


def test_every_tensor_is_told_where_it_comes_from(tmp_path: Path) -> None:
    model = Model()
    found = weights.match(model, save(model, tmp_path))
    assert found.ok and found.unproven == {} and found.missing == [] and found.computed == ["inv_freq"]
    merged = found.origins["layers.1.qkv_proj.weight"]
    assert (merged.how, merged.proof, merged.nbytes) == ("merged", "bytes", 384)
    assert merged.sources == tuple(f"model.layers.1.{part}_proj.weight" for part in "qkv")
    assert merged.ranges == ((0, 256), (256, 320), (320, 384))
    assert found.origins["layers.0.o_proj.bias"].how == "other name"
    assert found.origins["head.weight"].how == "tied" and found.origins["head.weight"].proof == "bytes"
    assert found.origins["head.weight"].sources == ("model.embed.weight",)
    assert found.holders["model.layers.1.k_proj.weight"] == ("layers.1.qkv_proj.weight",)
    assert "inv_freq" not in found.of("bytes") and found.origins["inv_freq"].proof == ""


def test_a_flipped_bit_is_named_by_the_tensor_of_the_files(tmp_path: Path) -> None:
    model = Model()
    path = save(model, tmp_path)
    with torch.no_grad():
        model.layers[1].qkv_proj.weight.view(torch.uint8)[9, 3] ^= 1
    found = weights.match(model, path)
    assert [(each.name, each.problem) for each in found.wrong] == [
        ("model.layers.1.k_proj.weight", "differs, as layers.1.qkv_proj.weight")
    ]
    assert list(found.unproven) == ["layers.1.qkv_proj.weight"]
    with pytest.raises(
        weights.WeightsError, match=r"k_proj\.weight: differs, as layers\.1\.qkv_proj"
    ) as caught:
        weights.verify(model, weights.manifest(path))
    assert not caught.value.report.ok and caught.value.report.computed == ["inv_freq"]


def test_nothing_unmatched_counts_as_proven(tmp_path: Path) -> None:
    model = Model()
    path = save(model, tmp_path, unused=torch.ones(2))
    model.extra = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.extra.bias.copy_(model.head.bias[:1])
    found = weights.match(model, path)
    assert found.missing == ["unused"] and set(found.unproven) == {"extra.weight", "extra.bias"}
    assert {found.origins[name].how for name in found.unproven} == {"unknown"}
    with pytest.raises(weights.WeightsError, match=r"unused: missing; extra\.weight: not proven, no tensor"):
        weights.verify(model, weights.manifest(path))


def test_equal_bytes_under_another_name_are_no_proof(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3, bias=False)})
    safetensors.save_file({"b.weight": model["a"].weight.detach()}, tmp_path / "model.safetensors")
    found = weights.match(model, tmp_path)
    assert not found.ok and list(found.unproven) == ["a.weight"] and found.missing == ["b.weight"]


def test_swapped_tensors_are_found(tmp_path: Path) -> None:
    model = Model()
    path = save(model, tmp_path)
    first, second = (layer.o_proj.weight for layer in model.layers)
    with torch.no_grad():
        keep = first.clone()
        first.copy_(second)
        second.copy_(keep)
    assert {each.name for each in weights.match(model, path).wrong} == {
        "model.layers.0.o_proj.weight",
        "model.layers.1.o_proj.weight",
    }


def test_a_cast_is_proven_by_the_files_alone(tmp_path: Path) -> None:
    model = Model()
    path = save(model, tmp_path)
    manifest = weights.manifest(path)
    model.bfloat16()
    report = weights.verify(model, manifest, files=path)
    assert report.ok and len(report.cast) == len(model.state_dict())
    with pytest.raises(weights.WeightsError, match="perhaps a cast of F32; give the files to find out"):
        weights.verify(model, manifest)
    with torch.no_grad():
        model.embed.weight.view(torch.int16)[2, 3] ^= 1
    with pytest.raises(weights.WeightsError, match="after a cast of F32 to BF16, in bytes 0 to 144"):
        weights.verify(model, manifest, files=path)


def test_files_of_a_cast_have_to_be_those_of_the_manifest(tmp_path: Path) -> None:
    model = Model()
    manifest = weights.manifest(save(model, tmp_path))
    model.layers[0].o_proj.weight.detach()[0, 0] += 1
    other = save(model, tmp_path)
    with pytest.raises(ArgumentError, match=r"o_proj\.weight in the files differs from the manifest"):
        weights.verify(model.bfloat16(), manifest, files=other)
    safetensors.save_file({"a": torch.ones(1)}, other)
    with pytest.raises(ArgumentError, match="is not in the files"):
        weights.verify(model, manifest, files=other)


def test_other_shapes_and_dtypes_are_wrong(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(3, 2)})
    tensors = {name: each.detach() for name, each in model.state_dict().items()}
    tensors |= {"a.weight": torch.ones(2, 2), "b.bias": torch.ones(2, dtype=torch.int32)}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    assert {each.name: each.problem for each in weights.match(model, tmp_path).wrong} == {
        "a.weight": "is F32 [2, 3] instead of F32 [2, 2]",
        "b.bias": "is F32 instead of I32",
    }


def test_match_refuses_what_it_cannot_compare(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="give files, or a manifest"):
        weights.match(Model(), None)
    with pytest.raises(ArgumentError, match="leave out files"):
        weights.verify({}, weights.Manifest(), files=tmp_path)


def row(transformers: Any, name: str, folder: Path) -> str:
    """Make the row of the table in docs/reference/weights.md."""
    made = tiny_models.make(transformers, name)
    made.save_pretrained(folder)
    as_saved = weights.match(type(made).from_pretrained(folder), folder)
    cast = weights.match(type(made).from_pretrained(folder, dtype=torch.bfloat16), folder)
    kinds = ("same name", "other name", "merged", "split", "converted", "tied", "computed")
    counts = [sum(origin.how == kind for origin in as_saved.origins.values()) for kind in kinds]
    proofs = [
        len(as_saved.of("bytes")),
        len(as_saved.unproven),
        len(cast.of("bytes")),
        len(cast.of("cast")),
        len(cast.unproven),
    ]
    assert as_saved.ok == (not proofs[1]) and cast.ok == (not proofs[4])
    assert sum(proofs[2:]) == sum(proofs[:2]) == len(as_saved.origins) - len(as_saved.computed)
    return f"| {name} | {' | '.join(map(str, counts))} | {' | '.join(map(str, proofs))} |"


@pytest.mark.parametrize("name", tiny_models.MODELS)
def test_the_table_says_what_is_proven_of_an_architecture(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    page = PAGE.read_text()
    version = re.search(r"transformers (\d+\.\d+)", page)
    if version is None or not transformers.__version__.startswith(f"{version[1]}."):
        pytest.skip(f"the table is not of transformers {transformers.__version__}")
    assert row(transformers, name, tmp_path) in page.splitlines()


@pytest.mark.parametrize("name", ["Mixtral", "DINOv2 SwiGLU", "LLaVA", "T5", "ERNIE 4.5 VL MoE"])
def test_a_flipped_bit_in_any_tensor_of_a_transformers_model_is_found(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    made = tiny_models.make(transformers, name)
    made.save_pretrained(tmp_path)
    live = type(made).from_pretrained(tmp_path)
    manifest = weights.manifest(tmp_path)
    assert weights.verify(live, manifest).ok
    for each in live.state_dict().values():
        octets = each.view(-1).view(torch.uint8)
        at = int(torch.randint(len(octets), ()))
        octets[at] = octets[at] ^ 2
        assert len(weights.match(live, None, manifest).wrong) == 1
        octets[at] = octets[at] ^ 2
    assert weights.verify(live, manifest).ok
