"""The entry point for papermill: `papermill --engine optimsyn in.ipynb out.ipynb`.

papermill loads every installed engine at import, so this module imports nothing until the engine is used.
"""

from __future__ import annotations

from typing import Any


class _Lazy:
    """Stands for `optimsyn.execution.engine.TruthfulEngine`."""

    def __getattr__(self, name: str) -> Any:
        from optimsyn.execution.engine import TruthfulEngine

        return getattr(TruthfulEngine, name)


Engine = _Lazy()
