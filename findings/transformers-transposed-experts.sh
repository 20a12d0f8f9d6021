#!/bin/sh
# SPDX-License-Identifier: MIT
# transformers tells by the shapes in the files whether the experts of Qwen3-VL-MoE are transposed there, and
# transposes them on loading. save_pretrained() says that it reverts the conversion, and does not revert this one: it
# looks at the model's shape. A model that is loaded and saved again has the same names, and other shapes and bytes.
# Seen with transformers 5.24.0 and torch 2.13.0. Both files load to the same model.
# Prints the versions and what was seen; fails if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 'numpy>=2.1,<3'
cd "$folder"
"$folder/venv/bin/python" -W ignore - << 'END'
import torch
import transformers
from safetensors.torch import load_file, save_file

print("torch", torch.__version__, "transformers", transformers.__version__)
transformers.logging.set_verbosity_error()
text = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 8,
          "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision, image_token_id=97, video_token_id=96,
                                       vision_start_token_id=95, vision_end_token_id=94)
kind = transformers.Qwen3VLMoeForConditionalGeneration
kind(config).save_pretrained("first")
tensors = load_file("first/model.safetensors")
name = next(name for name in tensors if name.endswith("experts.down_proj"))
for each in [each for each in tensors if each.endswith(("experts.down_proj", "experts.gate_up_proj"))]:
    tensors[each] = tensors[each].mT.contiguous()  # as the published files are
config.architectures = ["Qwen3VLMoeForConditionalGeneration"]
config.save_pretrained("published")
save_file(tensors, "published/model.safetensors", {"format": "pt"})
loaded = kind.from_pretrained("published")
loaded.save_pretrained("again")
before, after = tensors[name], load_file("again/model.safetensors")[name]
print(name, "was", list(before.shape), "and is saved as", list(after.shape))
assert torch.equal(before.mT, after) and before.shape != after.shape
again = kind.from_pretrained("again").state_dict()
assert all(torch.equal(each, again[name]) for name, each in loaded.state_dict().items())
END
