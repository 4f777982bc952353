"""The architectures that merges are tested on, each at a size of a few kilobytes.

Beside each stands what published files have that save_pretrained of today does not write: other names, and tensors
that no class reads any more.
"""

from __future__ import annotations

from typing import Any

from published import (
    Architecture,
    Beside,
    copies,
    for_each,
    frequencies,
    grid_in_words,
    lower_mask,
    mask_and_frequencies,
    nothing,
    picture_in_words,
    pictures_in_words,
    pixels,
    position_ids,
    prediction_layer,
    relative_bias,
    several,
    sound_to_words,
    wave,
    window_index,
    words,
    words_and_pixels,
    words_to_words,
)

_LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {**_LAYERS, **_SPECIAL, "num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 32}
_WIDE = {**_DECODER, "head_dim": 8}
_ENCODER = {**_LAYERS, "vocab_size": 64, "max_position_embeddings": 32, "pad_token_id": 0}
_SIGHT = {**_LAYERS, "image_size": 8, "patch_size": 4}
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_BOTH_SIDES = {
    f"{side}_{what}": number
    for side in ("encoder", "decoder")
    for what, number in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))
}
_GAMMA_BETA = ((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))
_TOWER = ((r"^vision_tower\.", "vision_tower.vision_model."),)


def _decoder(model: str, kind: str, **more: Any) -> Architecture:
    return Architecture(model, kind, {**_DECODER, **more}, words)


def _experts_apart(model: str, kind: str, beside: Beside = nothing, **more: Any) -> Architecture:
    return Architecture(model, kind, {**_DECODER, **more}, words, beside=beside, converts=True)


ARCHITECTURES = {
    # language models
    "llama": Architecture(
        "LlamaForCausalLM", "llama", _DECODER, words,
        beside=for_each(r"model\.layers\.\d+\.self_attn\.", frequencies),
    ),
    "llama, tied": Architecture(
        "LlamaForCausalLM", "llama", {**_DECODER, "tie_word_embeddings": True}, words,
        beside=copies("model.embed_tokens.weight", ["lm_head.weight"]),
    ),
    "mistral": _decoder("MistralForCausalLM", "mistral"),
    "qwen2": _decoder("Qwen2ForCausalLM", "qwen2", tie_word_embeddings=True),
    "qwen3": _decoder("Qwen3ForCausalLM", "qwen3", head_dim=8),
    "gemma2": _decoder("Gemma2ForCausalLM", "gemma2", head_dim=8),
    "gemma3": _decoder("Gemma3ForCausalLM", "gemma3_text", head_dim=8),
    "phi3": _decoder("Phi3ForCausalLM", "phi3"),
    "olmo2": _decoder("Olmo2ForCausalLM", "olmo2"),
    "cohere": _decoder("CohereForCausalLM", "cohere"),
    "gpt2": Architecture(
        "GPT2LMHeadModel", "gpt2", {"vocab_size": 64, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2},
        words, published=((r"^transformer\.", ""),), beside=for_each(r"h\.\d+\.attn\.", lower_mask),
    ),
    "gpt-neox": Architecture(
        "GPTNeoXForCausalLM", "gpt_neox", _DECODER, words,
        beside=for_each(r"gpt_neox\.layers\.\d+\.attention\.", mask_and_frequencies),
    ),
    # mixtures of experts
    "mixtral": _experts_apart("MixtralForCausalLM", "mixtral", num_local_experts=3),
    "qwen2-moe": _experts_apart(
        "Qwen2MoeForCausalLM", "qwen2_moe", **_EXPERTS, shared_expert_intermediate_size=12
    ),
    "qwen3-moe": _experts_apart("Qwen3MoeForCausalLM", "qwen3_moe", **_EXPERTS, head_dim=8),
    "deepseek-v3": _experts_apart(
        "DeepseekV3ForCausalLM", "deepseek_v3", beside=prediction_layer, num_key_value_heads=2,
        moe_intermediate_size=12, n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2,
        first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    ),
    "gpt-oss": _decoder("GptOssForCausalLM", "gpt_oss", head_dim=8, num_local_experts=3, num_experts_per_tok=2),
    # text and pictures
    "gemma3, whole": Architecture(
        "Gemma3ForConditionalGeneration", "gemma3",
        {
            "text_config": {**_WIDE, "model_type": "gemma3_text"},
            "vision_config": {**_SIGHT, "model_type": "siglip_vision_model", "vision_use_head": False},
            "mm_tokens_per_image": 4, "image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62,
        },
        picture_in_words, published=_TOWER,
    ),
    "llava": Architecture(
        "LlavaForConditionalGeneration", "llava",
        {
            "text_config": {**_DECODER, "model_type": "llama"},
            "vision_config": {**_SIGHT, "model_type": "clip_vision_model", "projection_dim": 8},
            "image_token_index": 60,
        },
        picture_in_words, published=_TOWER,
    ),
    "qwen2-vl": Architecture(
        "Qwen2VLForConditionalGeneration", "qwen2_vl",
        {
            "text_config": {
                **_DECODER,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
            },
            "vision_config": {
                "depth": 2, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4,
            },
            "image_token_id": 60,
        },
        grid_in_words,
    ),
    "idefics3": Architecture(
        "Idefics3ForConditionalGeneration", "idefics3",
        {
            "text_config": {**_DECODER, "model_type": "llama"}, "vision_config": _SIGHT, "scale_factor": 2,
            "image_token_id": 60,
        },
        pictures_in_words,
    ),
    "clip": Architecture(
        "CLIPModel", "clip",
        {
            "text_config": {**_ENCODER, **_SPECIAL, "projection_dim": 8},
            "vision_config": {**_SIGHT, "projection_dim": 8},
            "projection_dim": 8,
        },
        words_and_pixels,
        beside=several(
            for_each(r"text_model\.embeddings\.", position_ids(32)),
            for_each(r"vision_model\.embeddings\.", position_ids(5)),
        ),
    ),
    "siglip": Architecture(
        "SiglipModel", "siglip",
        {"text_config": {**_ENCODER, **_SPECIAL, "projection_size": 16}, "vision_config": _SIGHT}, words_and_pixels,
    ),
    # encoders and decoders
    "t5": Architecture(
        "T5ForConditionalGeneration", "t5",
        {
            "vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        words_to_words,
        beside=several(
            copies("shared.weight", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]),
            for_each(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.", relative_bias),
        ),
    ),
    "bart": Architecture(
        "BartForConditionalGeneration", "bart",
        {**_BOTH_SIDES, "vocab_size": 64, "d_model": 16, "max_position_embeddings": 32}, words_to_words,
        beside=copies(
            "model.shared.weight",
            ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"],
        ),
    ),
    "whisper": Architecture(
        "WhisperForConditionalGeneration", "whisper",
        {
            **_BOTH_SIDES, **_SPECIAL, "vocab_size": 64, "d_model": 16, "num_mel_bins": 4, "max_source_positions": 8,
            "max_target_positions": 16, "decoder_start_token_id": 1,
        },
        sound_to_words,
    ),
    # encoders
    "bert": Architecture(
        "BertModel", "bert", _ENCODER, words, beside=for_each(r"embeddings\.", position_ids(32)),
    ),
    "bert, masked": Architecture("BertForMaskedLM", "bert", _ENCODER, words, published=_GAMMA_BETA),
    "roberta": Architecture(
        "RobertaForMaskedLM", "roberta", _ENCODER, words,
        beside=several(
            for_each(r"roberta\.embeddings\.", position_ids(32)),
            copies("roberta.embeddings.word_embeddings.weight", ["lm_head.decoder.weight"]),
            copies("lm_head.bias", ["lm_head.decoder.bias"]),
        ),
    ),
    "xlm-roberta": Architecture("XLMRobertaModel", "xlm-roberta", _ENCODER, words),
    "distilbert": Architecture(
        "DistilBertForMaskedLM", "distilbert",
        {"vocab_size": 64, "dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 32},
        words,
    ),
    "modernbert": Architecture(
        "ModernBertForMaskedLM", "modernbert", {**_ENCODER, **_SPECIAL, "cls_token_id": 1, "sep_token_id": 2}, words,
        beside=copies("model.embeddings.tok_embeddings.weight", ["decoder.weight"]),
    ),
    # pictures
    "vit": Architecture("ViTForImageClassification", "vit", {**_SIGHT, "num_labels": 3}, pixels()),
    "dinov2": Architecture("Dinov2Model", "dinov2", {**_SIGHT, "mlp_ratio": 2}, pixels()),
    "convnext": Architecture(
        "ConvNextForImageClassification", "convnext",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 16, "num_labels": 3}, pixels(16),
    ),
    "swin": Architecture(
        "SwinForImageClassification", "swin",
        {
            "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 16, "patch_size": 4,
            "mlp_ratio": 2, "num_labels": 3,
        },
        pixels(16), beside=for_each(r"swin\.encoder\.layers\.\d+\.blocks\.\d+\.attention\.self\.", window_index),
    ),
    "beit": Architecture(
        "BeitForImageClassification", "beit", {**_SIGHT, "use_relative_position_bias": True, "num_labels": 3}, pixels(),
        beside=for_each(r"beit\.encoder\.layer\.\d+\.attention\.attention\.relative_position_bias\.", window_index),
    ),
    "resnet": Architecture(
        "ResNetForImageClassification", "resnet",
        {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic", "num_labels": 3},
        pixels(32),
    ),
    # sound
    "wav2vec2": Architecture(
        "Wav2Vec2ForCTC", "wav2vec2",
        {
            **_LAYERS, "vocab_size": 64, "pad_token_id": 0, "conv_dim": [8, 8], "conv_kernel": [4, 4],
            "conv_stride": [2, 2], "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
            "num_feat_extract_layers": 2,
        },
        wave,
        published=((r"parametrizations\.weight\.original0", "weight_g"),
                   (r"parametrizations\.weight\.original1", "weight_v")),
    ),
}  # fmt: skip
