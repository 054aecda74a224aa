"""The entry point for papermill: `papermill --engine optimsyn in.ipynb out.ipynb`.

papermill loads every installed engine at import, so this module imports nothing until the engine is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimsyn.execution.engine import TruthfulEngine


class Engine:
    """Delegates to `optimsyn.execution.engine.TruthfulEngine`."""

    @staticmethod
    def nb_kernel_name(nb: Any, name: str | None = None) -> str:
        """As in the engine."""
        return _engine().nb_kernel_name(nb, name)

    @staticmethod
    def nb_language(nb: Any, language: str | None = None) -> str:
        """As in the engine."""
        return _engine().nb_language(nb, language)

    @staticmethod
    def execute_notebook(nb: Any, kernel_name: str, **options: Any) -> Any:
        """As in the engine."""
        return _engine().execute_notebook(nb, kernel_name, **options)


def _engine() -> type[TruthfulEngine]:
    from optimsyn.execution.engine import TruthfulEngine

    return TruthfulEngine
