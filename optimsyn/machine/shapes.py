"""Whether a model on this machine can be loaded, trained and scored as the recipe asks, from its configuration alone.

The model is built without memory (PyTorch's device `meta`), so this takes seconds for any size, and what cannot work is
refused before anything is bought.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.machine.availability import field_of
from optimsyn.recipe.recipe import Lora, ModelSpec, Recipe, TargetSpec

if TYPE_CHECKING:
    import torch

# Tokens that are sent through the model.
_TOKENS = 8


def is_looked_at(recipe: Recipe, role: str, spec: ModelSpec, *, network: bool) -> bool:
    """Whether the configuration of a role's model is worth a look, and within reach."""
    if spec.provider == "embedded":
        # The usual adapter fits it, and so does the policy's, which has its own.
        return isinstance(spec, TargetSpec) and (spec.lora != Lora() or bool(spec.full_weights))
    if spec.provider != "local":
        return False
    return is_here(spec) or network


def is_here(spec: ModelSpec) -> bool:
    """Whether the files of a local model are on this machine."""
    from optimsyn.machine.hub_lookup import cached_folder
    from optimsyn.recipe.model_names import hub_id

    name = hub_id(spec.name)
    return (
        spec.provider == "embedded"
        or Path(name).expanduser().is_dir()
        or cached_folder("model", name, spec.revision) is not None
    )


def shape_problems(recipe: Recipe, role: str, spec: ModelSpec) -> list[str]:
    """What would stop this role of a local model, each problem with field and cure.

    Its configuration must be on this machine or the hub reachable.
    """
    where = field_of(role)
    problems = _not_installed(where, spec)
    policy = recipe.optimizers.policy if role == "rubric" and recipe.optimizers.policy.enabled else None
    trained = isinstance(spec, TargetSpec) or policy is not None
    from optimsyn.llm.local.loading import auto_class, read_config, storage_problem

    with _quiet():
        try:
            config = read_config(spec)
            auto = auto_class(config)
        except (ModelError, ValueError) as error:
            return [*problems, f"{where}: {error}"]
        stored = storage_problem(config)
        if trained and stored is not None:
            problems.append(f"{where}: {stored}")
        if not trained:
            return problems
        try:
            model = _without_memory(auto, config)
        except (ValueError, RuntimeError, ImportError, KeyError, AttributeError) as error:
            return [*problems, f"{where}: transformers cannot build a {config.model_type} ({_first_line(error)})"]
        try:
            if isinstance(spec, TargetSpec) and spec.full_weights:
                from optimsyn.target.target import train_full_weights

                train_full_weights(model, spec.full_weights)
                _refuse_unlike_layers(model, f"{where}.full_weights")
                _refuse_idle(model, f"{where}.full_weights", scored=True)
            else:
                from optimsyn.target.adapter import add_lora

                target = isinstance(spec, TargetSpec)
                field = f"{where}.lora" if target else "optimizers.policy.lora"
                lora = spec.lora if isinstance(spec, TargetSpec) else policy.lora  # type: ignore[union-attr]
                model = add_lora(model, lora, field=field, meta=True)
                if target:
                    _refuse_unlike_layers(model, field)
                _refuse_idle(model, field, scored=target)
            if isinstance(spec, TargetSpec):
                _refuse_method(model, recipe.influence.method)
        except ModelError as error:
            problems.append(str(error))
    return problems


def _not_installed(where: str, spec: ModelSpec) -> list[str]:
    if spec.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
        return [
            f"{where}.quantization: {spec.quantization} needs the package bitsandbytes; install it with "
            '`pip install "optimsyn[quantized]"`, or remove quantization'
        ]
    return []


def _without_memory(auto: Any, config: Any) -> Any:
    import torch

    # What is stored quantised is widened before it is trained, and the plain layers have the same names.
    config.quantization_config = None
    del config.quantization_config
    with torch.device("meta"):
        return auto.from_config(config, attn_implementation="eager", dtype=torch.bfloat16).eval()


def _refuse_unlike_layers(model: Any, field: str) -> None:
    """Refuses trained parameters for which per-sample gradients are not exact."""
    import torch
    from peft.tuners.lora.layer import ParamWrapper

    for path, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            raise ModelError(
                f"{field}: {_layer(path)} holds the weights of many layers in one tensor (the experts of a mixture), "
                "and influence is exact for linear layers only; leave it out with exclude_modules"
            )
        for kind, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            if not isinstance(module, torch.nn.Linear) or type(module).forward is not torch.nn.Linear.forward:
                raise ModelError(
                    f"{field}: {path}.{kind} belongs to a {type(module).__name__}, and influence is exact for linear "
                    "layers only; leave that module out"
                )


def _refuse_idle(model: Any, field: str, *, scored: bool) -> None:
    """Sends a text through the model, forward and backward: what gets no gradient would never be trained.

    Some operations cannot run without memory (choices that depend on values); then nothing is said.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    mixed: list[str] = []

    def note(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...]) -> None:
            if arguments and arguments[0].dim() < 3:
                mixed.append(name)

        return hook

    layers = {name.rpartition(".")[0] for name in trained}
    hooks = [m.register_forward_pre_hook(note(name)) for name, m in model.named_modules() if name in layers]
    try:
        gradients = _gradients(model, trained, masked=True) or _gradients(model, trained, masked=False)
    finally:
        for hook in hooks:
            hook.remove()
    if gradients is None:
        return
    idle = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if idle:
        raise ModelError(
            f"{field}: text does not pass {_layer(idle[0])} ({len(idle)} of {len(trained)} trained weights get no "
            "gradient), so it would never be trained; leave it out"
        )
    if mixed and scored:
        raise ModelError(
            f"{field}: {_layer(mixed[0])} sees the tokens of all pairs joined, so that their gradients cannot be told "
            "apart (as in a mixture of experts); leave it out"
        )


def _refuse_method(model: Any, method: str) -> None:
    """Refuses the ways of computing influence that a mixture of experts does not allow."""
    if method not in ("twin", "forward"):
        return
    from optimsyn.influence.derivative.smoothness import Choosing

    choice = Choosing()
    with choice:
        forward = _forward(model, masked=True) is not None or _forward(model, masked=False) is not None
    if choice.found is not None or (not forward and _has_experts(model)):
        raise ModelError(
            f"influence.method: {method} needs a smooth model, and this {type(model).__name__} chooses among experts; "
            "set it to exact or auto"
        )


def _has_experts(model: Any) -> bool:
    return any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())


def _gradients(model: Any, trained: dict[str, Any], *, masked: bool) -> tuple[torch.Tensor | None, ...] | None:
    """The gradient of each trained weight, without values; None where an operation needs values."""
    import torch

    logits = _forward(model, masked=masked)
    if logits is None or not logits.requires_grad:
        return None
    try:
        return torch.autograd.grad(logits.float().sum(), list(trained.values()), allow_unused=True)
    except (RuntimeError, NotImplementedError):
        return None


def _forward(model: Any, *, masked: bool) -> torch.Tensor | None:
    """Logits without values; None where an operation needs values."""
    import torch

    ids = torch.zeros(2, _TOKENS, dtype=torch.long, device="meta")
    # Without a mask some models look at the positions' values, with one others at the mask's.
    mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
    try:
        with torch.enable_grad():
            logits: torch.Tensor = model(input_ids=ids, use_cache=False, **mask).logits
            return logits
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError):
        return None


def _layer(name: str) -> str:
    """The name of the layer in the model, from that of one of its adapter's weights."""
    return name.split(".lora_")[0].removeprefix("base_model.model.").removesuffix(".weight")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of transformers to those who would run the model."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
