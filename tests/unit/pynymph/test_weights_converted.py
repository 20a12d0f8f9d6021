# SPDX-License-Identifier: MIT
"""weights.match() of tensors that transformers converts on loading, each operation of its conversion mapping.

The files are written by the rule of the operation, not by save_pretrained(): a wrong reversal would be wrong
in both.
"""

from pathlib import Path
from typing import Any

import pytest

from pynymph import weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
safetensors = pytest.importorskip("safetensors.torch")
loading = pytest.importorskip("transformers.core_model_loading")
mapping = pytest.importorskip("transformers.conversion_mapping")

HEADS, WIDTH, EXPERTS = 2, 8, 3


class ConvertedConfig(transformers.PreTrainedConfig):  # type: ignore[misc]
    model_type = "pynymph_converted"
    num_attention_heads: int = HEADS
    tie_word_embeddings: bool = True


class Converted(transformers.PreTrainedModel):  # type: ignore[misc]
    """A model with a tensor for each way of conversion."""

    config_class = ConvertedConfig
    _tied_weights_keys = {"head.weight": "embed.weight"}  # noqa: RUF012

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        linear = torch.nn.Linear
        self.embed = torch.nn.Embedding(9, WIDTH)
        self.router = linear(WIDTH, EXPERTS, bias=False)
        self.turned = torch.nn.ParameterDict({"w": torch.zeros(EXPERTS, 6, WIDTH)})
        self.q_proj, self.k_proj, self.v_proj = (linear(WIDTH, 8) for _ in range(3))
        self.gate_proj, self.up_proj = (linear(WIDTH, 6, bias=False) for _ in range(2))
        self.experts = torch.nn.ParameterDict(
            {"gate_up": torch.zeros(EXPERTS, 12, WIDTH), "down": torch.zeros(EXPERTS, WIDTH, 6)}
        )
        self.norm = linear(WIDTH, 1)
        self.head = linear(WIDTH, 9, bias=False)
        self.register_buffer("inv_freq", torch.ones(2), persistent=False)
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        pass


def rules() -> list[Any]:
    converter, renaming = loading.WeightConverter, loading.WeightRenaming
    roped = [loading.Chunk(dim=0), loading.PermuteForRope(permute_layer_names=["q_proj", "k_proj"])]
    return [
        renaming(r"final_norm", r"norm"),
        converter("gate.weight", "router.weight", [loading.Transpose(0, 1)]),
        converter("turned.w", "turned.w", [loading.Transpose(1, 2, check_dims=True)]),
        converter("qkv.weight", ["q_proj.weight", "k_proj.weight", "v_proj.weight"], roped),
        converter("qkv.bias", ["q_proj.bias", "k_proj.bias", "v_proj.bias"], roped),
        converter(
            "w13.weight",
            ["gate_proj.weight", "up_proj.weight"],
            [loading.Interleave(dim=0), loading.Chunk(dim=0)],
        ),
        converter(
            ["experts.*.w1.weight", "experts.*.w3.weight"],
            "experts.gate_up",
            [loading.MergeModulelist(dim=0), loading.Concatenate(dim=1)],
        ),
        converter("experts.*.w2.weight", "experts.down", [loading.MergeModulelist(dim=0)]),
    ]


def interleaved(first: Any, second: Any) -> Any:
    """Rows of both in turn."""
    return torch.stack([first, second], 1).flatten(0, 1)


def paired(tensor: Any) -> Any:
    """Rows of each head as RoPE with pairs has them: those of the first and the second half in turn."""
    heads = tensor.reshape(HEADS, 2, -1, *tensor.shape[1:])
    return heads.transpose(1, 2).reshape(tensor.shape)


def checkpoint(live: dict[str, Any], *, turned: bool) -> dict[str, Any]:
    """The tensors of the files for those of the model."""
    made = {
        "embed.weight": live["embed.weight"],
        "final_norm.weight": live["norm.weight"],
        "final_norm.bias": live["norm.bias"],
        "gate.weight": live["router.weight"].T,
        "turned.w": live["turned.w"].mT if turned else live["turned.w"],
        "w13.weight": interleaved(live["gate_proj.weight"], live["up_proj.weight"]),
    }
    for kind in ("weight", "bias"):
        q, k, v = (live[f"{part}_proj.{kind}"] for part in "qkv")
        made[f"qkv.{kind}"] = torch.cat([paired(q), paired(k), v])
    for expert in range(EXPERTS):
        gate, up = live["experts.gate_up"][expert].split(6)
        made |= {f"experts.{expert}.w1.weight": gate, f"experts.{expert}.w3.weight": up}
        made[f"experts.{expert}.w2.weight"] = live["experts.down"][expert]
    return {name: each.clone(memory_format=torch.contiguous_format) for name, each in made.items()}


def save(folder: Path, *, turned: bool = False) -> dict[str, Any]:
    """Write a checkpoint, and return the tensors that a model has to have."""
    mapping.register_checkpoint_conversion_mapping("pynymph_converted", rules(), overwrite=True)
    model = Converted(ConvertedConfig(tie_word_embeddings=True))
    torch.manual_seed(5)
    live = {name: torch.randn(each.shape) for name, each in model.state_dict().items()}
    live["head.weight"] = live["embed.weight"]
    model.config.save_pretrained(folder)
    safetensors.save_file(checkpoint(live, turned=turned), folder / "model.safetensors", {"format": "pt"})
    return live


def load(folder: Path, live: dict[str, Any], **options: Any) -> Any:
    """Load it, and check that transformers made of it what it has to."""
    model = Converted.from_pretrained(folder, **options)
    for name, each in model.state_dict().items():
        assert torch.equal(each, live[name].to(each.dtype)), name
    return model


@pytest.mark.parametrize("turned", [False, True])
def test_every_conversion_is_proven(tmp_path: Path, turned: bool) -> None:
    model = load(tmp_path, save(tmp_path, turned=turned))
    found = weights.match(model, tmp_path)
    assert found.ok, (found.unproven, found.missing, found.wrong)
    assert set(found.of("bytes")) == set(model.state_dict()) and found.computed == ["inv_freq"]
    assert {name: origin.how for name, origin in found.origins.items()} == {
        "embed.weight": "same name",
        "router.weight": "converted",
        "turned.w": "converted" if turned else "same name",
        **dict.fromkeys([f"{part}_proj.{kind}" for part in "qkv" for kind in ("weight", "bias")], "split"),
        **dict.fromkeys(["gate_proj.weight", "up_proj.weight"], "split"),
        **dict.fromkeys(["experts.gate_up", "experts.down"], "merged"),
        **dict.fromkeys(["norm.weight", "norm.bias"], "other name"),
        "head.weight": "tied",
        "inv_freq": "computed",
    }
    assert found.holders["w13.weight"] == ("gate_proj.weight", "up_proj.weight")
    assert found.holders["qkv.bias"] == ("k_proj.bias", "q_proj.bias", "v_proj.bias")


@pytest.mark.parametrize("turned", [False, True])
def test_every_conversion_is_proven_after_a_cast(tmp_path: Path, turned: bool) -> None:
    model = load(tmp_path, save(tmp_path, turned=turned), dtype=torch.bfloat16)
    found = weights.match(model, tmp_path)
    assert found.ok and set(found.of("cast")) == set(model.state_dict()), found.unproven
    manifest = weights.manifest(tmp_path)
    with pytest.raises(weights.WeightsError, match="perhaps a cast of F32"):
        weights.verify(model, manifest)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_flipped_bit_in_any_element_is_found(tmp_path: Path, turned: bool, dtype: str) -> None:
    model = load(tmp_path, save(tmp_path, turned=turned), dtype=getattr(torch, dtype))
    manifest = weights.manifest(tmp_path)
    for name, each in model.state_dict().items():
        octets = each.view(-1).view(torch.uint8)
        for at in {0, int(torch.randint(len(octets), ())), len(octets) - 1}:
            octets[at] ^= 1
            found = weights.match(model, tmp_path, manifest)
            assert len(found.wrong) == 1 and name in found.unproven, (name, at)
            octets[at] ^= 1
    assert weights.match(model, tmp_path, manifest).ok


def test_wrong_order_of_rows_is_no_conversion(tmp_path: Path) -> None:
    """What a loader makes that knows the names and not the operation."""
    live = save(tmp_path)
    model = load(tmp_path, live)
    wrong = {
        "q_proj.weight": paired(live["q_proj.weight"]),
        "gate_proj.weight": live["gate_proj.weight"].flip(0),
        "experts.gate_up": live["experts.gate_up"].roll(6, 1),
        "experts.down": live["experts.down"].flip(0),
        "router.weight": live["router.weight"].flip(1),
    }
    for name, each in wrong.items():
        assert not torch.equal(each, live[name])
        with torch.no_grad():
            model.get_parameter(name).copy_(each)
        found = weights.match(model, tmp_path)
        assert not found.ok and name in found.unproven and name not in found.of("bytes"), name
        with torch.no_grad():
            model.get_parameter(name).copy_(live[name])


def test_a_tensor_that_the_files_lack_is_not_proven(tmp_path: Path) -> None:
    live = save(tmp_path)
    tensors = safetensors.load_file(tmp_path / "model.safetensors")
    for lost in ("experts.1.w3.weight", "qkv.weight", "gate.weight", "turned.w"):
        rest = {name: each for name, each in tensors.items() if name != lost}
        safetensors.save_file(rest, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "whole").mkdir(exist_ok=True)
        (tmp_path / "whole/config.json").write_text((tmp_path / "config.json").read_text())
        safetensors.save_file(tensors, tmp_path / "whole/model.safetensors", {"format": "pt"})
        model = load(tmp_path / "whole", live)
        found = weights.match(model, tmp_path)
        assert not found.ok and found.unproven, lost
        assert not set(found.unproven) & set(found.of("bytes"))


def test_a_shard_is_proven_if_its_tensor_is_only_renamed(tmp_path: Path) -> None:
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dtensors = pytest.importorskip("torch.distributed.tensor")
    dist = torch.distributed
    model = load(tmp_path, save(tmp_path))
    dist.init_process_group("fake", store=fake.FakeStore(), rank=1, world_size=2)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for name, at in {
            "norm.weight": 1,
            "router.weight": 0,
            "q_proj.weight": 0,
            "experts.gate_up": 1,
        }.items():
            each = model.get_parameter(name).detach()
            here = each.chunk(2, at)[1].contiguous()
            made = dtensors.DTensor.from_local(
                here, mesh, [dtensors.Shard(at)], run_check=False, shape=each.shape, stride=each.stride()
            )
            path, _, last = name.rpartition(".")
            model.get_submodule(path)._parameters[last] = torch.nn.Parameter(made)
        replicated = dtensors.DTensor.from_local(
            model.experts["down"].detach(), mesh, [dtensors.Replicate()], run_check=False
        )
        model.experts._parameters["down"] = torch.nn.Parameter(replicated)
        found = weights.match(model, tmp_path)
    finally:
        dist.destroy_process_group()
    norm = found.origins["norm.weight"]
    assert (norm.how, norm.proof, norm.sources) == ("shard", "bytes", ("final_norm.weight",))
    assert (norm.slices, norm.ranges) == (((0, 1), (4, 8)), ((16, 32),))
    assert found.origins["experts.down"].how == "merged" and found.origins["experts.down"].proof == "bytes"
    for name in ("router.weight", "q_proj.weight", "experts.gate_up"):
        assert found.unproven[name] == "it is a part of what transformers converted", name
    assert not found.ok and "gate.weight" in found.missing
