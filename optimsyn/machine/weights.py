"""What the weights of a model on this machine are, by the headers of their files; no weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from optimsyn.base.errors import ModelError


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of the tensors in a folder's safetensors files; empty where the weights are pickled.

    Raises:
        ModelError: A file is damaged, such as by a download that was cut off.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as weights:
                shapes |= {name: list(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: is damaged or cut off ({error}); get the model again") from error
    return shapes


def parameters_in(folder: Path, shapes: Mapping[str, list[int]]) -> int:
    """Number of parameters of a model.

    Args:
        folder: Where its files are.
        shapes: What `tensor_shapes` gave of them.
    """
    if shapes:
        return sum(math.prod(shape) for shape in shapes.values())
    # Of pickled weights only the size is known; two bytes a parameter is usual.
    return sum(file.stat().st_size for file in folder.glob("*.bin")) // 2
