"""Checks names, types and values of a notebook's parameters before any kernel starts.

The stage notebooks share one cell (`recipe`, `size`, `generator`, `changes`, `run_folder`), whose values are checked
against the chosen recipe. Of other parameters only name and type are checked. Nothing here imports papermill or torch,
so that a refusal takes well under a second.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimsyn.base.errors import DataError, OptimsynError, ParameterError, RecipeError
from optimsyn.base.secrets.redaction import KEY_CURE, find_secret, redact
from optimsyn.base.suggestions import did_you_mean
from optimsyn.base.text_files import decode
from optimsyn.recipe.model_names import nearest_provider, no_provider
from optimsyn.recipe.recipe import Recipe

_TYPES: dict[str, type] = {kind.__name__: kind for kind in (str, int, float, bool, dict, list)} | {"None": type(None)}
# papermill adds these with --inject-paths.
_OF_PAPERMILL = frozenset({"PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH"})


@dataclass(frozen=True)
class Parameter:
    """One line of the cell, such as `pairs: int | None = 24`."""

    name: str
    annotation: str
    default: Any

    @property
    def kinds(self) -> list[str]:
        """The names of its types."""
        return [part.strip() for part in self.annotation.split("|")]

    def accepts(self, value: Any) -> bool:
        """Whether a value has the annotated type; an int is a float, but a bool is no int."""
        expected = [_TYPES[part] for part in self.kinds]
        return type(value) in expected or (float in expected and type(value) is int)

    def parse(self, text: str) -> Any:
        """Parses a value from the command line: text for a text parameter, else YAML."""
        import yaml

        from optimsyn.recipe.yaml_text import parse_yaml

        if "str" in self.kinds:
            return text
        try:
            return parse_yaml(text)
        except yaml.YAMLError:
            # The check of its type fails later, with the name of the notebook.
            return text


def read_parameters(notebook: Any, name: str) -> dict[str, Parameter]:
    """The parameters of a notebook (nbformat node or the same as a mapping), called by this name in messages.

    Raises:
        ParameterError: There is not exactly one tagged cell, or a line of it is not `name: type = literal`.
    """
    cells = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"{name}: {len(cells)} cells are tagged `parameters`; there must be exactly one")
    parameters: dict[str, Parameter] = {}
    place = f"{name}: parameters cell:"
    try:
        body = ast.parse("".join(cells[0]["source"])).body
    except SyntaxError as error:
        raise ParameterError(f"{place} line {error.lineno} is not Python ({error.msg})") from None
    for line in body:
        place = f"{name}: parameters cell: `{ast.unparse(line)}`"
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None):
            raise ParameterError(f"{place} must read `name: type = literal`")
        try:
            parameter = Parameter(line.target.id, ast.unparse(line.annotation), ast.literal_eval(line.value))
        except ValueError:
            raise ParameterError(f"{place}: the default must be a literal") from None
        unknown = [kind for kind in parameter.kinds if kind not in _TYPES]
        if unknown:
            raise ParameterError(f"{place}: use the types {', '.join(_TYPES)}, not {unknown[0]}")
        if not parameter.accepts(parameter.default):
            raise ParameterError(f"{place}: the default is not of that type")
        parameters[parameter.name] = parameter
    return parameters


def load_notebook(path: Path) -> dict[str, Any]:
    """A notebook file as plain JSON, to read its parameters.

    Raises:
        ParameterError: The file is missing or is no notebook.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParameterError(f"{path}: there is no such notebook") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ParameterError(f"{path}: not a notebook (.ipynb)") from None
    if not isinstance(notebook, dict) or "cells" not in notebook:
        raise ParameterError(f"{path}: not a notebook (.ipynb)")
    return notebook


def pair_of(text: str) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`.

    Raises:
        ParameterError: There is no value.
    """
    name, sign, value = text.partition("=")
    if not sign:
        raise ParameterError(f"parameter {redact(name)}: has no value; write -p NAME VALUE")
    return name, value


def given_parameters(
    notebook: Any, pairs: Iterable[tuple[str, str]], files: Iterable[Path], name: str
) -> dict[str, Any]:
    """Values from the command line, parsed by the types of the notebook's parameters and checked.

    Those of single parameters override those of YAML files; messages call the notebook by this name.

    Raises:
        ParameterError: A file is no mapping, or a parameter is wrong.
    """
    import yaml

    from optimsyn.recipe.yaml_text import parse_yaml

    parameters = read_parameters(notebook, name)
    values: dict[str, Any] = {}
    for file in files:
        try:
            content = parse_yaml(decode(file.read_bytes(), str(file)))
        except FileNotFoundError:
            raise ParameterError(f"{file}: there is no such file of parameters") from None
        except DataError as error:
            raise ParameterError(str(error)) from None
        except yaml.YAMLError:
            raise ParameterError(f"{file}: not valid YAML; write a line `name: value` for each parameter") from None
        if not isinstance(content, dict | None):
            raise ParameterError(f"{file}: parameters are a mapping of names to values")
        values |= {str(key): value for key, value in (content or {}).items()}
    for key, text in pairs:
        values[key] = parameters[key].parse(text) if key in parameters else text
    check_parameters(notebook, values, name)
    return values


def check_parameters(notebook: Any, values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Refuses unknown parameters, and values that do not fit the recipe; the other parameters keep their defaults.

    Returns:
        The environment variables that hold the keys of the recipe that they choose.

    Raises:
        ParameterError: Names the notebook, the parameter, the problem and a suggestion.
    """
    parameters = read_parameters(notebook, name)
    _refuse_secret(values, name)
    for key, value in values.items():
        if key in _OF_PAPERMILL:
            continue
        if key not in parameters:
            hint = did_you_mean(key, parameters, f"it has {', '.join(parameters) or 'none'}")
            raise ParameterError(f"{name}: no parameter {key!r}; {hint}")
        if not parameters[key].accepts(value):
            raise ParameterError(f"{name}: parameter {key} is {parameters[key].annotation}, not {value!r}")
    try:
        recipe = _recipe_of({key: parameter.default for key, parameter in parameters.items()} | dict(values))
    except OptimsynError as error:
        raise ParameterError(f"{name}: parameter {error}") from error
    # Again, because only the loaded recipe says which variables hold its keys.
    _refuse_secret(values, name)
    return () if recipe is None else recipe.key_variables


def _refuse_secret(values: Mapping[str, Any], name: str) -> None:
    secret = find_secret(dict(values))
    if secret is not None:
        raise ParameterError(f"{name}: parameter {secret}, and parameters are written into the notebook; {KEY_CURE}")


def _recipe_of(values: Mapping[str, Any]) -> Recipe | None:
    """The recipe that the cell of the stage notebooks chooses, checked; None where a notebook has no such cell.

    No service is contacted: only missing providers and keys are refused.
    """
    if values.get("run_folder"):
        path = Path(values["run_folder"]).expanduser()
        if not (path / "manifest.json").is_file():
            raise RecipeError(
                f"run_folder: {path} is not a run folder (no manifest.json in it); leave it empty to make one"
            )
        with _about("run_folder"):
            return Recipe.load(path / "recipe.yaml", of_run=True)
    if not isinstance(values.get("recipe"), str):
        return None
    from optimsyn.machine.availability import availability

    chosen = chosen_recipe(
        values["recipe"],
        size=values.get("size") or "full",
        generator=values.get("generator") or "",
        changes=values.get("changes") or {},
    )
    models = chosen.models
    problems: list[str] = []
    for role, spec in models.writers.items():
        if spec.provider in ("litellm", "own"):
            problems += availability(role, spec, network=False).problems
    if problems:
        raise RecipeError(f"{'generator' if values.get('generator') else 'recipe'}: {'; '.join(problems)}")
    return chosen


def chosen_recipe(
    recipe: str, *, size: str = "full", generator: str = "", changes: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe that the parameters of a stage notebook, or the options of a command (`SetOptions`), choose.

    Raises:
        RecipeError: Begins with the name of the wrong parameter.
    """
    from optimsyn.recipe.changes import SetOptions, changed, word_for
    from optimsyn.recipe.sizes import resized

    changes = {} if changes is None else changes
    secret = find_secret({"recipe": recipe, "size": size, "generator": generator, word_for(changes): dict(changes)})
    if secret is not None:
        raise RecipeError(f"{secret.replace('--set.', '--set ', 1)}, and would be written into the run; {KEY_CURE}")
    with _about("recipe"):
        chosen = Recipe.load(recipe)
    with _about("--size" if isinstance(changes, SetOptions) else "size"):
        chosen = resized(chosen, size)
    if generator:
        with _about("generator"):
            if any(character.isspace() for character in generator):
                raise RecipeError(
                    f"{generator!r} is not a model name: write provider/model (openai/gpt-6-luna), a hub id or a folder"
                )
            if (near := nearest_provider(generator)) is not None:
                raise RecipeError(no_provider(generator, f"{near}/{generator.partition('/')[2]}"))
            chosen = changed(chosen, {"models.generator": generator}, "generator")
    return changed(chosen, changes)


@contextmanager
def _about(parameter: str) -> Iterator[None]:
    """Prefixes errors with the name of the parameter or option."""
    try:
        yield
    except RecipeError as error:
        plain = parameter.removeprefix("--")
        message = str(error)
        message = message.removeprefix(plain) if message.startswith(f"{plain}:") else f": {message}"
        raise RecipeError(f"{parameter}{message}") from error
