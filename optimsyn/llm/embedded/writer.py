"""The writer: the LoRA adapter with which the embedded model writes rubrics and pairs.

It comes with optimsyn as a peft adapter, for transformers, and is converted once per user to a GGUF file for llama.cpp.
Gemma's terms of use apply to both. As the target the embedded model has no adapter.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from optimsyn.base.errors import ModelError
from optimsyn.llm.embedded.cache_folder import cache_folder, locked

_FOLDER = Path(__file__).parents[2] / "data" / "bundled" / "writer" / "adapter"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ARCHITECTURE = "gemma3"
# Increased when the converted file changes for the same adapter.
_LAYOUT = 1


def adapter_dir() -> Path:
    """The folder of the peft adapter, for `PeftModel.from_pretrained`.

    Raises:
        ModelError: The installed package lacks it.
    """
    for name in (_CONFIG, _WEIGHTS):
        if not (_FOLDER / name).is_file():
            raise ModelError(
                f"{_FOLDER / name}: the embedded model's adapter is missing; run `pip install --force-reinstall "
                "--no-deps optimsyn`, or train it in a checkout with `python tools/train_writer.py`"
            )
    return _FOLDER


def adapter_fingerprint() -> str:
    """SHA-256 of the adapter's settings and weights, in hex.

    Raises:
        ModelError: As for `adapter_dir`.
    """
    return _fingerprint(adapter_dir())


def adapter_gguf() -> Path:
    """The adapter as a GGUF file for llama.cpp, in the cache folder; converted once per user.

    Raises:
        ModelError: As for `adapter_dir`; or it is no adapter that llama.cpp can read, or the cache folder cannot be
            written.
    """
    source = adapter_dir()
    with cache_folder("the embedded model's adapter") as folder:
        target = folder / f"writer-{_fingerprint(source)[:12]}-{_LAYOUT}.gguf"
        with locked(target):
            # The file is renamed into place when complete.
            if not target.is_file():
                part = target.with_suffix(f".part-{os.getpid()}")
                try:
                    convert(source, part)
                    part.replace(target)
                finally:
                    part.unlink(missing_ok=True)
    return target


def convert(source: Path, target: Path) -> None:
    """Writes a peft LoRA of the embedded model as a llama.cpp adapter.

    Args:
        source: Folder of the peft adapter.
        target: The GGUF file.

    Raises:
        ModelError: The adapter holds more than plain LoRA matrices of the model's linear layers.
    """
    import gguf
    from safetensors.torch import load_file

    config = json.loads((source / _CONFIG).read_text(encoding="utf-8"))
    _refuse_special(source, config)
    tensors = load_file(source / _WEIGHTS)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, n_blocks=_blocks(tensors))
    writer = gguf.GGUFWriter(target, _ARCHITECTURE)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(config["lora_alpha"]))
    for name, value in sorted(tensors.items()):
        module, _, matrix = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        renamed = names.get_name(module)
        if renamed is None or matrix not in ("A", "B"):
            raise ModelError(f"{source / _WEIGHTS}: {name} is no LoRA matrix of a linear layer of the embedded model")
        # float32: numpy has no bfloat16, and float16 would round small weights to zero.
        writer.add_tensor(f"{renamed}.weight.lora_{matrix.lower()}", value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _refuse_special(source: Path, config: dict[str, Any]) -> None:
    special = [
        name
        for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out")
        if config.get(name)
    ]
    if special or config.get("bias", "none") != "none":
        raise ModelError(
            f"{source / _CONFIG}: llama.cpp has plain LoRA only, and this adapter has {', '.join(special) or 'a bias'}"
        )


def _blocks(tensors: dict[str, Any]) -> int:
    numbers = [int(part) for name in tensors for part in name.split(".") if part.isdecimal()]
    return max(numbers, default=0) + 1


@cache
def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (_CONFIG, _WEIGHTS):
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()
