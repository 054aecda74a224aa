"""The adapter of a recipe on a model: where it goes, and why it cannot.

Text passes only a part of a multimodal model. What is trained elsewhere never gets a gradient, so an adapter goes to
layers of the text model only.
"""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from optimsyn.base.errors import ModelError
from optimsyn.base.suggestions import nearest
from optimsyn.recipe.sections.models import Lora
from optimsyn.target.upcast import NARROW

ALL_LINEAR = "all-linear"


def outside_text(model: Any) -> list[str]:
    """Names of the parts of a multimodal model that text does not pass (vision and audio towers, projectors)."""
    config = getattr(model, "config", None)
    if config is None or config.get_text_config() is config:
        return []
    text = (model.get_decoder(), model.get_output_embeddings())
    kept = [name for name, module in model.named_modules() if name and any(module is part for part in text)]
    if not kept:
        return []

    def beside(module: torch.nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if any(part.startswith(f"{path}.") for part in kept):
                yield from beside(child, f"{path}.")
            elif path not in kept:
                yield path

    return list(beside(model, ""))


def lora_config(lora: Lora, model: Any) -> Any:
    """A `peft.LoraConfig` of the recipe's LoRA that leaves out the parts of this model that text does not pass."""
    from peft import LoraConfig, TaskType

    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_as_peft(lora.target_modules),
        exclude_modules=_excluded(lora, model),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type=TaskType.CAUSAL_LM,
    )


def add_lora(model: Any, lora: Lora, *, field: str, meta: bool = False) -> Any:
    """The model with a new adapter; seed torch beforehand.

    Args:
        model: Changed in place.
        lora: The recipe's.
        field: The recipe's field, for messages.
        meta: Give the adapter no memory.

    Raises:
        ModelError: No layer of the model takes it; says what is there instead.
    """
    from peft import get_peft_model

    refuse_misplaced(model, lora, field=field)
    with explained(field, model), warnings.catch_warnings():
        # peft uses a deprecated name of transformers; only peft can fix that.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(model, lora_config(lora, model), low_cpu_mem_usage=meta)


@contextmanager
def explained(field: str, model: Any) -> Iterator[None]:
    """Turns peft's errors about a model into a `ModelError` that names the recipe's field."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        if not any("peft" in Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ModelError(
            f"{field}: peft cannot put the adapter on this {type(model).__name__} ({reason}); name other layers in "
            f"{field}.target_modules, or leave some out with {field}.exclude_modules"
        ) from error


@contextmanager
def in_own_dtype(model: Any) -> Iterator[None]:
    """Keeps an adapter on quantised weights in float32, where TRL's trainers turn it to bfloat16 in the meantime.

    AdamW's small steps would be rounded away there.
    """
    before = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in NARROW and is_quantised(model):
            parameter.data = before[name] if name in before else parameter.data.float()


def is_quantised(model: Any) -> bool:
    """Whether a model's frozen weights are in 4 or 8 bits."""
    return bool(getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False))


def refuse_misplaced(model: Any, lora: Lora, *, field: str) -> None:
    """Refuses an adapter that has no place in a model, or one where peft or text do not come.

    Raises:
        ModelError: So.
    """
    config = lora_config(lora, model)
    outside = tuple(f"{part}." for part in outside_text(model))
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    modules = {name: module for name, module in model.named_modules() if name}
    inside = [name for name in modules if not name.startswith(outside)] if outside else list(modules)
    layers = [name for name in inside if is_layer(modules[name]) and modules[name] is not head]
    has = f"it has {', '.join(_last_parts(layers)) or 'no linear layer'}"
    if isinstance(lora.target_modules, tuple):
        # A name that fits nowhere is a mistake even where others fit.
        absent = [wanted for wanted in lora.target_modules if not any(_ends_with(name, wanted) for name in inside)]
        if absent:
            raise ModelError(f"{field}.target_modules: {_missing(absent, model, list(modules), layers)}; {has}")
    matched = [name for name in inside if matches(config, name) and (name in layers or not _is_all(lora))]
    if not matched:
        hint = ""
        if isinstance(lora.target_modules, str):
            hint = "a string is a regular expression for a layer's whole name (a list holds last parts of names); "
        raise ModelError(
            f"{field}.target_modules: no layer of this {type(model).__name__} is left for the adapter; {hint}{has}"
        )
    for name in matched:
        module = modules[name]
        if not is_layer(module):
            within = next((f"; its inner layer is {inner}" for inner in layers if inner.startswith(f"{name}.")), "")
            raise ModelError(
                f"{field}.target_modules: {name} is a {type(module).__name__}, and an adapter goes to linear layers"
                f"{within}; name other layers, or leave it out with {field}.exclude_modules"
            )


def is_layer(module: torch.nn.Module) -> bool:
    """Whether a LoRA can be put on a module and scored: a linear layer, a quantised one, or GPT-2's."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def matches(config: Any, name: str) -> bool:
    """Whether peft puts an adapter of this configuration on the module of this name."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if _is_all(config):
        every = type(config)(target_modules=r".*", exclude_modules=config.exclude_modules)
        return bool(check_target_module_exists(every, name))
    return bool(check_target_module_exists(config, name))


def _is_all(lora: Any) -> bool:
    return isinstance(lora.target_modules, str) and lora.target_modules.lower() == ALL_LINEAR


def _as_peft(names: str | tuple[str, ...]) -> str | list[str]:
    return names if isinstance(names, str) else list(names)


def _excluded(lora: Lora, model: Any) -> str | list[str] | None:
    """What peft leaves out: the recipe's modules, and the parts beside the text model."""
    outside = outside_text(model)
    if not outside:
        return _as_peft(lora.exclude_modules) or None
    own = [lora.exclude_modules] if isinstance(lora.exclude_modules, str) else []
    own += [rf"(?:.*\.)?{re.escape(name)}" for name in lora.exclude_modules] if not own else []
    parts = "|".join(map(re.escape, outside))
    return "|".join([*(f"(?:{pattern})" for pattern in own if pattern), rf"(?:{parts})(?:\..*)?"])


def _ends_with(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _last_parts(names: list[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _missing(absent: list[str], model: Any, names: list[str], layers: list[str]) -> str:
    """Why no layer for text has these names."""
    kind = type(model).__name__
    beside = [wanted for wanted in absent if any(_ends_with(name, wanted) for name in names)]
    if beside:
        return f"only images and sound pass {', '.join(beside)} of this {kind}, and text does not"
    for wanted in absent:
        whole = next((name for name, _ in model.named_parameters() if _ends_with(name, wanted)), None)
        if whole is not None:
            return (
                f"{whole} of this {kind} is a tensor of weights and no layer (as for the experts of a mixture), so no "
                "adapter fits it"
            )
    near = nearest(absent[0], _last_parts(layers))
    hint = f" (did you mean {near}?)" if near is not None else ""
    return f"this {kind} has no layer called {', '.join(absent)}{hint}"
