"""Tools for agents, the MCP server that offers them, and the analyst whose work is a notebook.

from optimsyn.agents import Workbench, analyse
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimsyn.agents.analyst.analyse import analyse
    from optimsyn.agents.workbench import Workbench

__all__ = ["Workbench", "analyse"]


def __getattr__(name: str) -> Any:
    """Loads a name when it is first used."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{'workbench' if name == 'Workbench' else 'analyst.analyse'}")
    value = getattr(module, name)
    globals()[name] = value
    return value
