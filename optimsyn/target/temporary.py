"""Temporary changes of a model: evaluation mode, and other forwards of its layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (dropout off); restores the earlier mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def with_forwards(forwards: Iterable[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Gives layers other forwards, and puts back those they had."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for layer, forward in forwards:
            before.append((layer, layer.__dict__.get("forward")))
            layer.forward = forward
        yield
    finally:
        for layer, forward in before:
            del layer.forward
            if forward is not None:
                layer.forward = forward
