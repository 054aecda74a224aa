"""Base of the pydantic models that users build: what is wrong with one is an error of optimsyn, not one of pydantic."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ValidationError
from pydantic._internal._model_construction import ModelMetaclass

from optimsyn.base.errors import OptimsynError
from optimsyn.base.secrets.redaction import redact
from optimsyn.recipe.problems import explain, faults


class _CheckedType(ModelMetaclass):
    def __call__(self, *args: Any, **fields: Any) -> Any:
        # Only a call of the class comes here. Pydantic makes the parts of a model without it and collects their errors.
        try:
            return super().__call__(*args, **fields)
        except ValidationError as error:
            raise refusal(self, error, fields) from None


class Checked(BaseModel, metaclass=_CheckedType):
    """A frozen model; a wrong value of a call, or an assignment, raises `refused_as`."""

    refused_as: ClassVar[type[OptimsynError]] = OptimsynError
    changed_by: ClassVar[str] = ""
    """How another one is made, for the message about an assignment."""

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            if error.errors()[0]["type"] != "frozen_instance":
                raise self.refused_as(f"{type(self).__name__}: {explain(error.errors()[0], type(self))}") from None
            problem = f"{type(self).__name__}.{name}: cannot be set, because it never changes; {self.changed_by}"
            raise self.refused_as(problem) from None


def refusal(model: Any, error: ValidationError, fields: dict[str, Any]) -> OptimsynError:
    """The error for wrong fields: a line for each, after the name of the model and its id, if it has one."""
    name = model.__name__ + (f" {fields['id']!r}" if isinstance(fields.get("id"), str) else "")
    lines = [explain(item, model).removeprefix("recipe: ") for item in faults(error)]
    between = " " if len(lines) == 1 else "\n  "
    refused_as: type[OptimsynError] = model.refused_as
    return refused_as(redact(f"{name}:{between}" + "\n  ".join(lines)))
