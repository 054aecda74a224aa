"""Shapes and sizes of a local model's weights, from the headers of their files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from optimsyn.base.errors import ModelError


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Names and shapes of the tensors in a folder's safetensors files; empty where the weights are pickled.

    Raises:
        ModelError: A file is damaged, for example by an incomplete download.
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
    """Number of parameters of a model."""
    if shapes:
        return sum(math.prod(shape) for shape in shapes.values())
    # For pickled weights only the size is known; two bytes a parameter is usual.
    return sum(file.stat().st_size for file in folder.glob("*.bin")) // 2
