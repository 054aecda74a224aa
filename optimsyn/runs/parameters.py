"""The tagged parameters cell of a notebook: its names and types are checked before any kernel starts."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optimsyn.errors import StageError

_TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool, "None": type(None)}


@dataclass(frozen=True)
class Parameter:
    """One line of the cell, such as `pairs: int | None = 24`."""

    name: str
    annotation: str
    default: str | int | float | bool | None

    def accepts(self, value: Any) -> bool:
        """Whether a value has the annotated type; an int is a float, but a bool is no int."""
        for part in self.annotation.split("|"):
            wanted = _TYPES[part.strip()]
            if type(value) is wanted or (wanted is float and type(value) is int):
                return True
        return False


def read_parameters(notebook: Any, name: str) -> dict[str, Parameter]:
    """The parameters of a notebook.

    Args:
        notebook: The notebook (nbformat node or the same as a mapping).
        name: Its name, for messages.

    Raises:
        StageError: There is not exactly one tagged cell, or a line of it is not `name: type = literal`.
    """
    cells = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise StageError(f"{name}: {len(cells)} cells are tagged `parameters`; there must be exactly one")
    found: dict[str, Parameter] = {}
    for statement in ast.parse("".join(cells[0]["source"])).body:
        line = ast.unparse(statement)
        if not (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value is not None
        ):
            raise StageError(f"{name}: parameters cell: `{line}` must read `name: type = literal`")
        annotation = ast.unparse(statement.annotation)
        unknown = [part.strip() for part in annotation.split("|") if part.strip() not in _TYPES]
        if unknown:
            raise StageError(f"{name}: parameters cell: `{line}`: use the types {', '.join(_TYPES)}, not {unknown[0]}")
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise StageError(f"{name}: parameters cell: `{line}`: the default must be a literal") from None
        parameter = Parameter(statement.target.id, annotation, default)
        if not parameter.accepts(default):
            raise StageError(f"{name}: parameters cell: `{line}`: the default is not of that type")
        found[parameter.name] = parameter
    return found


def check_parameters(notebook: Any, values: Mapping[str, Any], name: str) -> None:
    """Refuses a value whose name or type the notebook does not know.

    Raises:
        StageError: Names the notebook, the parameter and what was meant.
    """
    known = read_parameters(notebook, name)
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(known) or 'none'}"
            raise StageError(f"{name}: no parameter {key!r}; {hint}")
        if not known[key].accepts(value):
            raise StageError(f"{name}: parameter {key} is {known[key].annotation}, not {value!r}")
