"""Run folders, their manifest, the dataset, and the results of stages."""

from __future__ import annotations

from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES, Manifest
from optimsyn.runs.results.stage_result import StageResult, TableResult
from optimsyn.runs.stage_handle import StageHandle

__all__ = ["STAGES", "Manifest", "Run", "StageHandle", "StageResult", "TableResult"]
