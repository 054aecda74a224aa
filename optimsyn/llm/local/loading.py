"""Loads a causal language model of transformers for the target, the trainable policy and local inference."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.base.secrets.redaction import redact
from optimsyn.llm.local.turns import turn
from optimsyn.recipe.model_names import hub_id
from optimsyn.recipe.recipe import ModelSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = ("float32", "bfloat16", "float16")
# Formats in which checkpoints are stored without a way back for gradients, and the settings that widen them.
_WIDENED = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}
# Files of the drivers for NVIDIA's and AMD's GPUs, the last one in Windows' Linux.
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
_ONE_LOADING = threading.Lock()
LARGE_BATCH = 512
"""Prompts in a batch on a GPU, where they fit its memory; while they are answered, as many others are prepared."""


def load_causal_lm(
    spec: ModelSpec, *, adapter: Path | None = None, trained: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads model and tokenizer in evaluation mode, with right padding and a padding token.

    Args:
        spec: `embedded`, a hub id (`org/name`, `hub:org/name`) or a local folder, with revision, dtype and device.
        adapter: Folder of a peft adapter to put on top of the model.
        trained: An adapter will be trained on it, so weights that lie in a format without gradients are widened.

    Raises:
        ModelError: The model is missing, gated, unreachable, too large, or not a causal language model; the message
            says which and what to do.
    """
    # It logs a line for each product of a model in 8 bits.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    device = resolve_device(spec.device)
    # A loading changes torch's default dtype and initialisers for all threads: others must neither load nor compute.
    with turn(device), _ONE_LOADING:
        return _load(spec, device, adapter, trained=trained)


def _load(
    spec: ModelSpec, device: torch.device, adapter: Path | None, *, trained: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = load_tokenizer(spec)
    dtype = resolve_dtype(spec.dtype, device)
    source, revision = _source(spec)
    with _explained(spec.name), _no_progress_bars():
        config = read_config(spec)
        options: dict[str, Any] = {"revision": revision, "dtype": dtype}
        quantization = _quantization(spec, config, dtype, trained=trained or adapter is not None)
        if quantization is not None:
            options["quantization_config"] = quantization
        if spec.device_map is not None:
            options["device_map"] = spec.device_map
        elif spec.quantization is not None:
            # Quantised layers are made on their device and cannot be moved.
            options["device_map"] = {"": device}
        model = auto_class(config).from_pretrained(source, **options)
        if "device_map" not in options:
            model = model.to(device)
    _refuse_offloaded(spec, model)
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if adapter is not None:
        model = _with_adapter(model, adapter)
    return model.eval(), tokenizer


def read_config(spec: ModelSpec) -> Any:
    """The model's configuration, from its folder, the cache or the hub (a file of a few kilobytes).

    Raises:
        ModelError: There is none, or transformers does not know the model.
    """
    from transformers import AutoConfig

    source, revision = _source(spec)
    with _explained(spec.name):
        return AutoConfig.from_pretrained(source, revision=revision)


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a model for text: causal, or one for images and text whose text is used.

    Raises:
        ValueError: It does not continue texts.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping and not getattr(config, "is_encoder_decoder", False):
            return auto
    raise ValueError(f"a model of the type {config.model_type} does not continue texts token by token")


def storage_problem(config: Any) -> str | None:
    """Why an adapter cannot be trained on the weights as they are stored; None where it can."""
    method = _stored_as(config)
    if method in (None, "bitsandbytes", *_WIDENED):
        return None
    return (
        f"its weights are stored quantised ({method}), and no gradient goes through them; name the checkpoint that is "
        "not quantised, and set `quantization` to 4bit or 8bit if memory is short"
    )


def _stored_as(config: Any) -> str | None:
    """The method with which a checkpoint's weights are quantised."""
    stored = getattr(config, "quantization_config", None)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return str(getattr(method, "value", method))


def _quantization(spec: ModelSpec, config: Any, dtype: torch.dtype, *, trained: bool) -> Any:
    """How transformers quantises the weights, or widens them; None: as they are."""
    from transformers import BitsAndBytesConfig

    if spec.quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    stored = _stored_as(config)
    if not trained or stored not in _WIDENED:
        return None
    import transformers

    return getattr(transformers, _WIDENED[stored])(dequantize=True)


def _refuse_offloaded(spec: ModelSpec, model: Any) -> None:
    """Layers that wait on the disk or in main memory beside a GPU are too slow, and TRL refuses to train them."""
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if "disk" in places or ("cpu" in places and len(places) > 1):
        raise ModelError(
            f"{spec.name}: device_map: auto left layers of it outside the GPUs' memory ({', '.join(sorted(places))}); "
            "set quantization to 4bit, name a smaller model, or use more GPUs"
        )


def load_tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    """Loads only the tokenizer, with right padding and a padding token (the end-of-sequence token if it has none).

    Raises:
        ModelError: As for `load_causal_lm`.
    """
    source, revision = _source(spec)
    with _explained(spec.name):
        tokenizer: Any = _embedded_tokenizer(Path(source)) if spec.name == "embedded" else _tokenizer(source, revision)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"{spec.name}: its tokenizer has neither a padding nor an end token; choose another model")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer(source: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source, revision=revision)


def _embedded_tokenizer(folder: Path) -> Any:
    """The same tokenizer in a third of the time, because AutoTokenizer reads Gemma's 33 MB twice."""
    from transformers import PreTrainedTokenizerFast

    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {name: config[name] for name in ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")}
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first CUDA GPU, else the CPU.

    Raises:
        ModelError: The device is not on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r}: unknown; use auto, cpu, cuda, cuda:1 or mps") from error
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        count = torch.cuda.device_count()
        raise ModelError(f"device {name!r}: not on this machine ({count} CUDA GPUs); use auto or cpu")
    return device


def on_gpu(spec: ModelSpec) -> bool:
    """Whether a model's weights go to a CUDA GPU; PyTorch is imported only where there is a driver."""
    if spec.device != "auto":
        return spec.device.startswith("cuda")
    if not any(Path(driver).exists() for driver in DRIVERS) and shutil.which("nvidia-smi") is None:
        return False
    return resolve_device("auto").type == "cuda"


def at_once(spec: ModelSpec) -> int:
    """The most requests to a model at once: the recipe's `concurrency`, on a GPU more unless the recipe changes it."""
    changed = spec.concurrency != ModelSpec.model_fields["concurrency"].default
    if changed or spec.provider not in ("embedded", "local") or not on_gpu(spec):
        return spec.concurrency
    return 2 * LARGE_BATCH


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; `auto` is bfloat16 on a CUDA GPU that computes with it, else float32.

    Raises:
        ModelError: There is no such dtype.
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if name not in _DTYPES:
        raise ModelError(f"dtype {name!r}: unknown; use auto, {', '.join(_DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _source(spec: ModelSpec) -> tuple[str, str | None]:
    """Name or folder for transformers, and the revision."""
    if spec.name == "embedded":
        from optimsyn.llm.embedded.server import weights_dir

        return str(weights_dir()), None
    name = hub_id(spec.name)
    if name.startswith(("~", ".", "/")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ModelError(f"{name}: there is no such folder; a hub id is written org/name")
        return str(folder), None
    return name, spec.revision


def _with_adapter(model: Any, adapter: Path) -> Any:
    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter}: holds no peft adapter (adapter_config.json is missing)")
    from peft import PeftModel

    with _explained(str(adapter)):
        return PeftModel.from_pretrained(model, str(adapter))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keeps transformers' progress bars out of notebooks, and restores the setting."""
    from transformers.utils import logging as hugging_face

    enabled = hugging_face.is_progress_bar_enabled()
    hugging_face.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            hugging_face.enable_progress_bar()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns errors of transformers and the hub client into a `ModelError` that says what to do."""
    problem = ""
    try:
        yield
    except (OSError, ValueError, RuntimeError, MemoryError, KeyError, ImportError) as error:
        problem = f"{name}: {_reason(error)}"
    # Raised outside the handler, so that the original, which may hold a token, is not printed as its context.
    if problem:
        raise ModelError(redact(problem))


def _reason(error: BaseException) -> str:
    import torch
    from huggingface_hub import errors as hub

    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    text = str(error).strip().split("\n")[0][:300] or type(error).__name__

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(item, kinds) for item in chain)

    texts = " ".join(str(item) for item in chain).lower()
    if caused_by(hub.GatedRepoError) or "gated repo" in texts:
        return "the hub asks for its terms to be accepted: do so on the model's page, then run `hf auth login`"
    if caused_by(hub.RepositoryNotFoundError):
        return "the hub has no such model, or it is private: check the name, or run `hf auth login`"
    if caused_by(hub.RevisionNotFoundError):
        return "the hub has the model but not this revision"
    if caused_by(torch.cuda.OutOfMemoryError, MemoryError) or "allocate memory" in texts:
        return "too little memory for this model: choose a smaller one, dtype bfloat16, or another device"
    if caused_by(hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, ConnectionError) or "offline" in texts:
        return (
            "is not on this machine and the hub cannot be reached: connect once, or give the path of a local folder "
            f"({text})"
        )
    if "trust_remote_code" in texts:
        return "needs code from its repository to be run, which optimsyn does not do; choose another model"
    return f"cannot be loaded as a causal language model ({type(error).__name__}: {text})"
