"""Run folders, their manifest, and the engine that executes stage notebooks."""

from __future__ import annotations

from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES, Manifest
from optimsyn.runs.stage_handle import StageHandle

__all__ = ["STAGES", "Manifest", "Run", "StageHandle"]
