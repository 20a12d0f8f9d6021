# SPDX-License-Identifier: MIT
"""`pynymph weights match`: of models that transformers loads, and of those that a function builds."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pynymph_command import refused, run

BUILT = """
import torch
from safetensors.torch import load_file

def model(path):
    made = torch.nn.Linear(4, 3)
    made.register_buffer("steps", torch.arange(5), persistent=False)
    made.load_state_dict(load_file(path + "/model.safetensors"), assign=True)
    return made

def cast(path):
    return model(path).bfloat16()

def flipped(path):
    made = torch.nn.Linear(4, 3)
    made.load_state_dict(load_file(path + "/model.safetensors"))
    with torch.no_grad():
        made.bias.view(torch.uint8)[5] ^= 1
    return made

def larger(path):
    made = model(path)
    made.gate = torch.nn.Linear(1, 1)
    return made

def tensors(path):
    return {}

def broken(path):
    raise OSError("no such disk\\nand more")
"""


def match(*arguments: Any, **options: Any) -> Any:
    return run("weights", "match", *arguments, "--device", "cpu", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and a module beside it that builds it."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    made = tmp_path_factory.mktemp("built")
    (made / "built.py").write_text(BUILT)
    torch.manual_seed(1)
    (made / "model").mkdir()
    state = {name: each.detach() for name, each in torch.nn.Linear(4, 3).state_dict().items()}
    safetensors.save_file(state, made / "model/model.safetensors")
    return made


def test_every_tensor_of_a_built_model_is_told_with_its_proof(folder: Path) -> None:
    done = match("model", "--build", "built:model", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    assert lines == ["weight: same name", "bias: same name", "steps: computed, no file has it"]
    assert last.startswith(
        "as the files say: 2 tensors proven, 0 after a cast, 0 dequantized, 0 not, 1 computed, 0 missing,"
    )
    assert match("model", "--build", "built:model", "--quiet", cwd=folder).stdout.count("\n") == 1
    cast = match("model", "--build", "built:cast", cwd=folder)
    assert cast.returncode == 0 and "bias: same name, after a cast\n" in cast.stdout
    as_json = json.loads(match("model", "--build", "built:cast", "--json", cwd=folder).stdout)
    assert as_json["ok"] and as_json["cast"] == ["weight", "bias"] and as_json["computed"] == ["steps"]
    assert as_json["origins"]["bias"]["sources"] == ["bias"] and as_json["holders"]["bias"] == ["bias"]


def test_a_model_that_is_not_proven_ends_the_command_with_1(folder: Path) -> None:
    done = match("model", "--build", "built:flipped", "--quiet", cwd=folder)
    *lines, last = done.stdout.splitlines()
    assert (done.returncode, lines) == (
        1,
        ["bias: differs in bytes 0 to 12", "bias: not proven, its bytes differ from the files"],
    )
    assert last.startswith("NOT what the files say: 1 tensors proven, 0 after a cast, 0 dequantized, 1 not,")
    done = match("model", "--build", "built:larger", "--json", cwd=folder)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["ok"] and set(found["unproven"]) == {"gate.weight", "gate.bias"}
    assert found["origins"]["gate.bias"]["how"] == "unknown"


def test_files_have_to_agree_with_the_manifest(folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "right.json"
    run("weights", "manifest", folder / "model", "-o", manifest, check=True)
    done = match("model", manifest, "--build", "built:model", cwd=folder)
    assert done.returncode == 0 and "as the manifest says: 2 tensors proven" in done.stdout
    file = folder / "model/model.safetensors"
    right = file.read_bytes()
    try:
        file.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
        done = match("model", manifest, "--build", "built:model", cwd=folder)
        assert done.returncode == 1 and "NOT what the manifest says" in done.stdout
        refused(
            match("model", manifest, "--build", "built:cast", cwd=folder), 2, "give the files of the manifest"
        )
    finally:
        file.write_bytes(right)


def test_a_model_is_matched_with_its_signature(folder: Path, tmp_path: Path) -> None:
    for command in (
        "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key",
        "pkey -in key -pubout -out public",
    ):
        subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True)
    pytest.importorskip("cryptography")
    public = ["--signature", tmp_path / "sig", "--key", tmp_path / "public", "--build", "built:model"]
    signed = run(
        "weights", "sign", folder / "model", "--key", tmp_path / "key", "--signature", tmp_path / "sig"
    )
    assert signed.returncode == 0, signed.stderr
    done = match("model", *public, cwd=folder)
    assert done.returncode == 0 and "as the signature says: 2 tensors proven" in done.stdout, done.stderr
    done = match("model", *public[:-1], "built:flipped", cwd=folder)
    assert done.returncode == 1 and "NOT what the signature says" in done.stdout
    refused(match("model", *public[:2], cwd=folder), 2, "either --key or --ca")
    refused(match("model", tmp_path / "m.json", *public, cwd=folder), 2, "either a manifest, or --signature")
    (folder / "model/config.json").write_text("{}")
    try:
        done = match("model", *public, cwd=folder)
        assert done.returncode == 1 and "config.json" in done.stdout and "was not loaded" in done.stdout
    finally:
        (folder / "model/config.json").unlink()


def test_transformers_loads_the_class_that_the_configuration_names(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    import tiny_models

    tiny_models.make(transformers, "LLaVA").save_pretrained(tmp_path)
    done = match(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "64 tensors proven, 0 after a cast, 0 dequantized, 0 not, 3 computed, 0 missing" in done.stdout
    assert "lm_head.weight: other name, language_model.lm_head.weight\n" in done.stdout
    assert "0 tensors proven, 64 after a cast" in match(tmp_path, "--dtype", "bfloat16").stdout
    refused(match(tmp_path, "--dtype", "nothing"), 2, "no dtype 'nothing'")
    named = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(named | {"architectures": ["NoSuchModel"]}))
    done = match(tmp_path)  # other libraries may have their own lines on stderr, when they are imported
    assert done.returncode == 2 and not done.stdout
    assert "'NoSuchModel', which this transformers does not have; upgrade it" in done.stderr.splitlines()[-1]


def test_what_cannot_be_built_is_one_line(folder: Path) -> None:
    for function, words in {
        "built:tensors": "build returned a dict; return a torch module",
        "built:broken": "model can't be loaded: no such disk",
        "built:none": "built has no function 'none'; give MODULE:FUNCTION",
        "nothing:model": "of a module that Python can import: No module named 'nothing'",
    }.items():
        refused(match("model", "--build", function, cwd=folder), 2, words)
    there = run("weights", "match", "model", "--build", "built:model", "--device", "moon", cwd=folder)
    refused(there, 2, "torch has no device 'moon'")
    refused(match("model", "--build", "built:model", "--dtype", "float16", cwd=folder), 2, "leave out dtype")


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    refused(match(tmp_path), 2, "config.json can't be read: No such file or directory")
    for text in ("", "{}", "[]", '{"architectures": []}', '{"architectures": [3]}', "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        refused(match(tmp_path), 2, 'names no class under "architectures"')
    refused(match(tmp_path, "--build", "nothing"), 2, "give MODULE:FUNCTION")
    refused(match(tmp_path, tmp_path / "none.json"), 2, "none.json can't be read")


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No torch', name='torch')")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    refused(
        match(tmp_path, cwd=tmp_path), 2, "torch is not installed: No torch; pip install torch transformers"
    )
