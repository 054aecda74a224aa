"""Digests of a target's weights and settings, by which its caches are named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from optimsyn.base.errors import ModelError

# Fields of a model's configuration that do not change its results, or that are read from the weights themselves.
_SILENT = frozenset(
    {"architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "bos_token_id", "eos_token_id"}
    | {"pad_token_id", "output_attentions", "output_hidden_states", "return_dict"}
)


def adapters_of(model: Any) -> frozenset[str]:
    """Names of the peft adapters inside a model."""
    return frozenset(getattr(model, "peft_config", None) or ())


def model_digest(
    model: Any,
    causal: Any,
    parameters: Mapping[str, torch.nn.Parameter],
    frozen: Iterable[str],
    adapters: frozenset[str],
    max_length: int,
) -> str:
    """Sixteen hex digits of the frozen model, the shape and the scale of the adapter and `max_length`.

    It reads a few hundred values of each frozen weight, which is quick and tells models and revisions apart. The
    model's configuration and the adapter's scale (alpha / r) count too: they change what the same weights compute.
    """
    digest = hashlib.sha256(f"{max_length}".encode())
    everything = dict(model.named_parameters())
    for name in [*parameters, *frozen]:
        parameter = everything[name]
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        if name not in parameters:
            flat = parameter.detach().flatten()
            some = flat[:: max(1, len(flat) // 512)].float().cpu()
            digest.update(some.numpy().tobytes())
    facts = [_settings(causal.config.to_diff_dict()), _scales(model, adapters)]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def adapter_digest(model: Any, parameters: Iterable[torch.nn.Parameter]) -> str:
    """Digest of a warm-up's start: the values of the trained parameters and the dropout of its layers."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    dropped = [[name, layer.p] for name, layer in model.named_modules() if isinstance(layer, torch.nn.Dropout)]
    digest.update(json.dumps(dropped).encode())
    return digest.hexdigest()[:16]


def _settings(config: Any) -> Any:
    """A configuration, or a part of it, without silent or private fields (names, attention kernels)."""
    if not isinstance(config, dict):
        return config
    kept = {str(key): value for key, value in config.items() if key not in _SILENT}
    return {key: _settings(value) for key, value in kept.items() if not key.startswith("_")}


def _scales(model: Any, adapters: frozenset[str]) -> list[list[Any]]:
    """The factor of each adapter in each layer; it reflects rank-stabilised and per-layer alphas too."""
    scales: list[list[Any]] = []
    for name, layer in model.named_modules():
        scaling = getattr(layer, "scaling", None)
        if isinstance(scaling, dict):
            scales.extend([name, key, float(scaling[key])] for key in sorted(adapters & scaling.keys()))
    return scales


def refuse_idle_adapters(model: Any, adapters: frozenset[str]) -> None:
    """Refuses an adapter that the forward pass leaves out: it has no gradient, and training it changes nothing."""
    if not adapters:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        if layer.disable_adapters:
            state, cure = "switched off", "model.enable_adapter_layers()"
        elif layer.merged:
            state, cure = "merged into the layer", "model.unmerge_adapter()"
        elif not adapters & set(layer.active_adapters):
            state, cure = f"not the active one ({', '.join(layer.active_adapters)})", "model.set_adapter(...)"
        else:
            continue
        raise ModelError(f"{name}: the target's adapter is {state}, so it has no influence; call {cure} first")
