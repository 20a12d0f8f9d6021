# SPDX-License-Identifier: MIT
"""Tiny random models that libraries quantized, and their files, for tests on the CPU and on GPUs."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


def quantized(kind: str, folder: Path, device: str = "cpu") -> Any:
    """A model that torchao quantized, and its files as torchao writes them."""
    torchao = pytest.importorskip("torchao.quantization")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    model = model.bfloat16().to(device)
    torchao.quantize_(model, getattr(torchao, kind)())
    tensors, metadata = support.flatten_tensor_state_dict(model.state_dict())
    safetensors.save_file(tensors, folder / "model.safetensors", metadata)
    return model


def bitsandbytes(folder: Path, device: str = "cpu", **options: Any) -> Any:
    """A model that bitsandbytes quantized, loaded from its files."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    tiny_models.make(transformers, "Llama").save_pretrained(folder / "plain")
    kind, config = transformers.LlamaForCausalLM, transformers.BitsAndBytesConfig(**options)
    made = kind.from_pretrained(folder / "plain", quantization_config=config, device_map=device)
    made.save_pretrained(folder / "quantized")
    return kind.from_pretrained(folder / "quantized", device_map=device)


def configured(folder: Path, **quantization: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def fp8(folder: Path, model: str = "Llama", device: str = "cpu") -> Any:
    """A model whose files are FP8 with a scale for each 16 rows and columns, dequantized on loading."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    pytest.importorskip("accelerate")
    made = tiny_models.make(transformers, model).bfloat16()
    made.save_pretrained(folder)
    tensors = safetensors.load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "_proj.weight" in name or ".experts." in name]:
        tensors[f"{name}_scale_inv"] = 0.1 + torch.rand([size // 16 for size in tensors[name].shape])
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    safetensors.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    configured(folder, quant_method="fp8", weight_block_size=[16, 16], activation_scheme="dynamic")
    config = transformers.FineGrainedFP8Config(dequantize=True)  # a GPU computes with FP8 else
    return type(made).from_pretrained(folder, quantization_config=config, device_map=device)


def mxfp4(folder: Path, device: str = "cpu") -> Any:
    """A model whose experts are MXFP4 in the files, dequantized on loading."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    pytest.importorskip("accelerate")
    name, classes, arguments = tiny_models.MODELS["GPT-OSS"]
    config = getattr(transformers, name)(**arguments | {"intermediate_size": 32})
    torch.manual_seed(1)
    getattr(transformers, classes)(config).bfloat16().save_pretrained(folder)
    tensors = safetensors.load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, width, rows = tensors.pop(name).shape
        shape = (experts, rows, width // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(120, 130, shape, dtype=torch.uint8)
    safetensors.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    configured(folder, quant_method="mxfp4")
    config = transformers.Mxfp4Config(dequantize=True)
    return transformers.GptOssForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map=device
    )
