"""Tiny random models of the shapes of checkpoints that people fine-tune, saved as folders with a tokenizer."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from training_helpers import make_tokenizer

_TEXT: dict[str, Any] = {
    "vocab_size": 360,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "image_size": 28,
    "patch_size": 14,
}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_LINEAR_THEN_FULL = ["linear_attention", "full_attention"]


def _gemma3() -> Any:
    from transformers import Gemma3Config

    text = {**_TEXT, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    return Gemma3Config(text_config=text, vision_config=_VISION, mm_tokens_per_image=4, **_image_ids())


def _gemma4() -> Any:
    from transformers import Gemma4Config

    text = {
        **_TEXT, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 8,
        "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 360, "num_kv_shared_layers": 0,
    }  # fmt: skip
    vision = {**_VISION, "global_head_dim": 8, "use_clipped_linears": True, "position_embedding_size": 16}
    return Gemma4Config(text_config=text, vision_config=vision, audio_config=None, **_image_ids())


def _image_ids() -> dict[str, int]:
    return {"boi_token_index": 350, "eoi_token_index": 351, "image_token_index": 352}


def _mistral3() -> Any:
    from transformers import Mistral3Config

    vision = {**_VISION, "model_type": "pixtral", "num_channels": 3, "rope_parameters": {"rope_theta": 10000.0}}
    return Mistral3Config(
        text_config={**_TEXT, "model_type": "mistral"},
        vision_config=vision,
        image_token_index=352,
        spatial_merge_size=1,
    )


def _qwen3() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**_TEXT)


def _qwen3_wide() -> Any:
    """Wide enough for the blocks of 64 in which 4 bits are packed."""
    from transformers import Qwen3Config

    return Qwen3Config(**{**_TEXT, "hidden_size": 128, "intermediate_size": 128, "head_dim": 32})


def _qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(**_TEXT, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)


_DELTA: dict[str, Any] = {
    "layer_types": _LINEAR_THEN_FULL,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}


def _qwen3_5() -> Any:
    from transformers import Qwen3_5TextConfig

    return Qwen3_5TextConfig(**_TEXT, **_DELTA)


def _olmo_hybrid() -> Any:
    from transformers import OlmoHybridConfig

    return OlmoHybridConfig(**{k: v for k, v in _TEXT.items() if k != "head_dim"}, **_DELTA)


def _smollm3() -> Any:
    from transformers import SmolLM3Config

    return SmolLM3Config(**_TEXT)


def _phi3() -> Any:
    from transformers import Phi3Config

    return Phi3Config(**_TEXT)


def _gpt_oss() -> Any:
    from transformers import GptOssConfig

    return GptOssConfig(
        **_TEXT, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip


def _falcon_h1() -> Any:
    from transformers import FalconH1Config

    return FalconH1Config(
        **_TEXT, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_chunk_size=16
    )


def _granite4() -> Any:
    from transformers import GraniteMoeHybridConfig

    return GraniteMoeHybridConfig(
        **_TEXT, layer_types=["mamba", "attention"], num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=24, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8,
        mamba_expand=2, mamba_chunk_size=16, logits_scaling=2.0, position_embedding_type="rope",
    )  # fmt: skip


def _gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=360, n_embd=32, n_layer=2, n_head=4, n_positions=2048, resid_pdrop=0.3, embd_pdrop=0.3,
        attn_pdrop=0.3, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


def _opt() -> Any:
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=360, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=2048, dropout=0.2, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip


SHAPES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "gemma3-multimodal": (_gemma3, _ATTENTION),
    "gemma4-multimodal": (_gemma4, _ATTENTION),
    "mistral3-multimodal": (_mistral3, _ATTENTION),
    "qwen3": (_qwen3, _ATTENTION),
    "qwen3-wide": (_qwen3_wide, _ATTENTION),
    "qwen3-moe": (_qwen3_moe, _ATTENTION),
    "qwen3.5-text": (_qwen3_5, (*_ATTENTION, "in_proj_qkv", "out_proj")),
    "smollm3": (_smollm3, _ATTENTION),
    "phi3": (_phi3, ("qkv_proj", "o_proj")),
    "gpt-oss": (_gpt_oss, _ATTENTION),
    "falcon-h1": (_falcon_h1, _ATTENTION),
    "granite4": (_granite4, _ATTENTION),
    "olmo-hybrid": (_olmo_hybrid, _ATTENTION),
    "gpt2": (_gpt2, ("c_attn", "c_proj")),
    "opt": (_opt, ("q_proj", "k_proj", "v_proj", "out_proj")),
}
"""Configuration and modules of a LoRA, by name."""


def save_shape(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Saves the shape's model, with random weights, and a tokenizer with a chat template."""
    from optimsyn.llm.local.loading import auto_class

    with torch.random.fork_rng(), contextlib.redirect_stderr(io.StringIO()):
        torch.manual_seed(seed)
        config = SHAPES[name][0]()
        model: Any = auto_class(config).from_config(config).float()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:  # weights of 0.02 make everything nearly linear
                    parameter.mul_(4)
        model.save_pretrained(folder)
    make_tokenizer(chat=True).save_pretrained(folder)
    return folder
