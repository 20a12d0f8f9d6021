# SPDX-License-Identifier: MIT
"""Tiny random models of many architectures of transformers, for test_weights_match.py."""

from typing import Any

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {key: TEXT[key] for key in TEXT if key not in ("head_dim", "num_key_value_heads")}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
T5 = {
    **{"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    "feed_forward_proj": "gated-gelu",
}
AUDIO = {
    **ENCODER,
    **{"conv_dim": (16, 16), "conv_stride": (2, 2), "conv_kernel": (3, 3), "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "group"},
}
WHISPER = {
    **{"vocab_size": 99, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48},
    **{"decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"num_mel_bins": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"decoder_start_token_id": 1, "max_source_positions": 16, "max_target_positions": 16},
}
DEEPSEEK = {
    **{key: TEXT[key] for key in TEXT if key != "head_dim"},
    **MOE,
    **{
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
}
NO_HEAD = {key: TEXT[key] for key in TEXT if key != "head_dim"}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0}
DEEP_VISION = {
    **{"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 8},
}
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_ctx": 64}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", "LlamaForCausalLM", TEXT),
    "Mistral": ("MistralConfig", "MistralForCausalLM", TEXT),
    "Qwen2": ("Qwen2Config", "Qwen2ForCausalLM", TEXT),
    "Qwen3": ("Qwen3Config", "Qwen3ForCausalLM", TEXT),
    "Gemma 2": ("Gemma2Config", "Gemma2ForCausalLM", TEXT),
    "Gemma 3": ("Gemma3TextConfig", "Gemma3ForCausalLM", TEXT),
    "Phi-3": ("Phi3Config", "Phi3ForCausalLM", TEXT),
    "OLMo 2": ("Olmo2Config", "Olmo2ForCausalLM", TEXT),
    "Granite": ("GraniteConfig", "GraniteForCausalLM", TEXT),
    "Cohere": ("CohereConfig", "CohereForCausalLM", TEXT),
    "StableLM": ("StableLmConfig", "StableLmForCausalLM", TEXT),
    "GLM 4": ("Glm4Config", "Glm4ForCausalLM", TEXT),
    "SmolLM3": ("SmolLM3Config", "SmolLM3ForCausalLM", TEXT),
    "Falcon": ("FalconConfig", "FalconForCausalLM", ENCODER),
    "GPT-NeoX": ("GPTNeoXConfig", "GPTNeoXForCausalLM", ENCODER),
    "GPT-2": ("GPT2Config", "GPT2LMHeadModel", GPT),
    "GPT-J": ("GPTJConfig", "GPTJForCausalLM", {**GPT, "rotary_dim": 4}),
    "BLOOM": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "OPT": ("OPTConfig", "OPTForCausalLM", {**ENCODER, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Mixtral": ("MixtralConfig", "MixtralForCausalLM", {**TEXT, **MOE}),
    "Qwen2-MoE": (
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**TEXT, **MOE, "shared_expert_intermediate_size": 24},
    ),
    "Qwen3-MoE": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {**TEXT, **MOE}),
    "OLMoE": ("OlmoeConfig", "OlmoeForCausalLM", {**TEXT, **MOE}),
    "GPT-OSS": ("GptOssConfig", "GptOssForCausalLM", {**TEXT, **MOE}),
    "PhiMoE": ("PhimoeConfig", "PhimoeForCausalLM", {**TEXT, **MOE}),
    "DeepSeek-V3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", DEEPSEEK),
    "GLM 4 MoE": (
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        {**TEXT, **MOE, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "MiniMax M2": ("MiniMaxM2Config", "MiniMaxM2ForCausalLM", {**TEXT, **MOE}),
    "Inkling 2": (
        "Inkling2TextConfig",
        "Inkling2ForCausalLM",
        {
            **{key: TEXT[key] for key in TEXT if key != "intermediate_size"},
            **{"unpadded_vocab_size": 90, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2},
            **{"swa_head_dim": 8, "d_rel": 4, "rel_extent": 8, "moe_intermediate_size": 24},
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_layers_per_attn_res_block": 1},
        },
    ),
    "Jamba": (
        "JambaConfig",
        "JambaForCausalLM",
        {
            **NO_HEAD,
            **{"num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
            **{"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4},
            **{"use_mamba_kernels": False},
        },
    ),
    "Mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2},
    ),
    "BERT": ("BertConfig", "BertForMaskedLM", ENCODER),
    "RoBERTa": ("RobertaConfig", "RobertaForMaskedLM", ENCODER),
    "DistilBERT": (
        "DistilBertConfig",
        "DistilBertModel",
        {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    ),
    "ModernBERT": ("ModernBertConfig", "ModernBertForMaskedLM", ENCODER),
    "ELECTRA": ("ElectraConfig", "ElectraModel", {**ENCODER, "embedding_size": 16}),
    "T5": ("T5Config", "T5ForConditionalGeneration", T5),
    "BART": (
        "BartConfig",
        "BartForConditionalGeneration",
        {key: WHISPER[key] for key in WHISPER if not key.startswith(("max_", "num_"))},
    ),
    "Whisper": ("WhisperConfig", "WhisperForConditionalGeneration", WHISPER),
    "wav2vec 2.0": ("Wav2Vec2Config", "Wav2Vec2Model", AUDIO),
    "HuBERT": ("HubertConfig", "HubertModel", AUDIO),
    "ViT": ("ViTConfig", "ViTModel", VISION),
    "DINOv2": ("Dinov2Config", "Dinov2Model", VISION),
    "DINOv2 SwiGLU": ("Dinov2Config", "Dinov2Model", {**VISION, "use_swiglu_ffn": True}),
    "DeiT": ("DeiTConfig", "DeiTModel", VISION),
    "SigLIP": ("SiglipVisionConfig", "SiglipVisionModel", VISION),
    "CLIP": (
        "CLIPConfig",
        "CLIPModel",
        {"text_config": ENCODER, "vision_config": VISION, "projection_dim": 16},
    ),
    "ConvNeXt": ("ConvNextConfig", "ConvNextModel", {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}),
    "LLaVA": (
        "LlavaConfig",
        "LlavaForConditionalGeneration",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model"},
            "image_token_index": 98,
        },
    ),
    "Qwen3-VL-MoE": (
        "Qwen3VLMoeConfig",
        "Qwen3VLMoeForConditionalGeneration",
        {
            "text_config": {**TEXT, **MOE, "rope_parameters": {**SECTIONS, "mrope_section": [2, 1, 1]}},
            "vision_config": {
                **DEEP_VISION,
                **{"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
            },
            **{"image_token_id": 97, "video_token_id": 96},
            **{"vision_start_token_id": 95, "vision_end_token_id": 94},
        },
    ),
    "ERNIE 4.5 VL MoE": (
        "Ernie4_5_VLMoeConfig",
        "Ernie4_5_VLMoeForConditionalGeneration",
        {
            "text_config": {
                **NO_HEAD,
                **{"moe_intermediate_size": [24, 16], "moe_num_experts": 4, "moe_k": 2},
                **{"moe_num_shared_experts": 1, "rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 2]}},
            },
            "vision_config": DEEP_VISION,
            **{"image_token_id": 97, "video_token_id": 96},
        },
    ),
    "Gemma 3 VLM": (
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {"text_config": TEXT, "vision_config": VISION, "mm_tokens_per_image": 4},
    ),
}
"""By name: configuration, class, and arguments of the configuration."""


def make(transformers: Any, name: str) -> Any:
    """Make a model of random weights, as a checkpoint would have it."""
    import torch

    configuration, kind, arguments = MODELS[name]
    torch.manual_seed(1)
    model = getattr(transformers, kind)(getattr(transformers, configuration)(**arguments))
    with torch.no_grad():
        for each in model.parameters():  # ones and zeros of norms and biases would all be equal
            each.normal_()
    return model.eval()
