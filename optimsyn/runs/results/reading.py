"""Reads the results of a run's stages, each as its own model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimsyn.runs.results.built_in import (
    EvaluateResult,
    FineTuneResult,
    OptimizePromptResult,
    PrepareResult,
    SynthesizeResult,
    TrainPolicyResult,
    WarmUpResult,
)
from optimsyn.runs.results.stage_result import RESULT_FILE, StageResult, TableResult, json_of

MODELS: dict[str, type[StageResult]] = {
    "prepare": PrepareResult,
    "warm_up": WarmUpResult,
    "optimize_prompt": OptimizePromptResult,
    "train_policy": TrainPolicyResult,
    "synthesize": SynthesizeResult,
    "fine_tune": FineTuneResult,
    "evaluate": EvaluateResult,
}
"""The model of each built-in stage; custom stages are read as `TableResult`."""


def read_result(raw: Mapping[str, Any], path: Path) -> StageResult | None:
    """Parses the content of a `result.json`; None if it is from an optimiser whose stage has not ended."""
    stage = raw.get("stage")
    return None if stage is None else MODELS.get(stage, TableResult).read(raw, path)


def result_of(folder: Path, stage: str) -> StageResult | None:
    """The result of a stage in a run folder; None if there is none."""
    path = folder / stage / RESULT_FILE
    return read_result(json_of(path, stage), path) if path.is_file() else None
