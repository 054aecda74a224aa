"""The parameters of a notebook: names, types and values are checked before any kernel starts.

The notebooks of the stages share one cell (`recipe`, `size`, `generator`, `changes`, `run_folder`), and its values are
checked against the recipe that they mean. Other notebooks may have other parameters; of those only name and type are
known. Nothing here imports papermill or torch, so that a refusal takes well under a second.
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

_TYPES: dict[str, type] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "dict": dict,
    "list": list,
    "None": type(None),
}
# papermill adds these when it is asked to (--inject-paths).
_OF_PAPERMILL = frozenset({"PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH"})


@dataclass(frozen=True)
class Parameter:
    """One line of the cell, such as `pairs: int | None = 24`."""

    name: str
    annotation: str
    default: Any

    def accepts(self, value: Any) -> bool:
        """Whether a value has the annotated type; an int is a float, but a bool is no int."""
        for part in self.annotation.split("|"):
            wanted = _TYPES[part.strip()]
            if type(value) is wanted or (wanted is float and type(value) is int):
                return True
        return False

    def parse(self, text: str) -> Any:
        """A value from the command line: text for a text parameter, else read as YAML."""
        import yaml

        from optimsyn.recipe.yaml_text import parse_yaml

        if "str" in {part.strip() for part in self.annotation.split("|")}:
            return text
        try:
            return parse_yaml(text)
        except yaml.YAMLError:
            # It will not have the type, which is told with the name of the notebook.
            return text


def read_parameters(notebook: Any, name: str) -> dict[str, Parameter]:
    """The parameters of a notebook.

    Args:
        notebook: The notebook (nbformat node or the same as a mapping).
        name: Its name, for messages.

    Raises:
        ParameterError: There is not exactly one tagged cell, or a line of it is not `name: type = literal`.
    """
    cells = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"{name}: {len(cells)} cells are tagged `parameters`; there must be exactly one")
    found: dict[str, Parameter] = {}
    try:
        body = ast.parse("".join(cells[0]["source"])).body
    except SyntaxError as error:
        raise ParameterError(f"{name}: parameters cell: line {error.lineno} is not Python ({error.msg})") from None
    for statement in body:
        line = ast.unparse(statement)
        if not (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and statement.value is not None
        ):
            raise ParameterError(f"{name}: parameters cell: `{line}` must read `name: type = literal`")
        annotation = ast.unparse(statement.annotation)
        unknown = [part.strip() for part in annotation.split("|") if part.strip() not in _TYPES]
        if unknown:
            raise ParameterError(
                f"{name}: parameters cell: `{line}`: use the types {', '.join(_TYPES)}, not {unknown[0]}"
            )
        try:
            default = ast.literal_eval(statement.value)
        except ValueError:
            raise ParameterError(f"{name}: parameters cell: `{line}`: the default must be a literal") from None
        parameter = Parameter(statement.target.id, annotation, default)
        if not parameter.accepts(default):
            raise ParameterError(f"{name}: parameters cell: `{line}`: the default is not of that type")
        found[parameter.name] = parameter
    return found


def load_notebook(path: Path) -> dict[str, Any]:
    """A notebook file as plain JSON, for a look at its parameters.

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
    """Values from the command line, read by the types of the notebook's parameters and checked.

    Args:
        notebook: The notebook.
        pairs: Name and text of single parameters; they win over those of files.
        files: YAML files that map names to values.
        name: Name of the notebook, for messages.

    Raises:
        ParameterError: A file is no mapping, or a parameter does not fit.
    """
    import yaml

    from optimsyn.recipe.yaml_text import parse_yaml

    known = read_parameters(notebook, name)
    values: dict[str, Any] = {}
    for file in files:
        try:
            text = decode(file.read_bytes(), str(file))
            found = parse_yaml(text)
        except FileNotFoundError:
            raise ParameterError(f"{file}: there is no such file of parameters") from None
        except DataError as error:
            raise ParameterError(str(error)) from None
        except yaml.YAMLError:
            raise ParameterError(f"{file}: not valid YAML; write a line `name: value` for each parameter") from None
        if not isinstance(found, dict | None):
            raise ParameterError(f"{file}: parameters are a mapping of names to values")
        values |= {str(key): value for key, value in (found or {}).items()}
    for key, text in pairs:
        values[key] = known[key].parse(text) if key in known else text
    check_parameters(notebook, values, name)
    return values


def check_parameters(notebook: Any, values: Mapping[str, Any], name: str) -> None:
    """Refuses values that the notebook does not know or that do not fit the recipe.

    Args:
        notebook: The notebook (nbformat node or the same as a mapping).
        values: What its parameters are to be; those left out keep their default.
        name: Its name, for messages.

    Raises:
        ParameterError: Names the notebook, the parameter, what is wrong with it and what was meant.
    """
    known = read_parameters(notebook, name)
    _refuse_secret(values, name)
    for key, value in values.items():
        if key in _OF_PAPERMILL:
            continue
        if key not in known:
            hint = did_you_mean(key, known, f"it has {', '.join(known) or 'none'}")
            raise ParameterError(f"{name}: no parameter {key!r}; {hint}")
        if not known[key].accepts(value):
            raise ParameterError(f"{name}: parameter {key} is {known[key].annotation}, not {value!r}")
    if "run_folder" in known or "recipe" in known:
        meant = {key: parameter.default for key, parameter in known.items()} | dict(values)
        try:
            _check_meaning(meant)
        except OptimsynError as error:
            raise ParameterError(f"{name}: parameter {error}") from error
        # Once more: only now is it known which variables hold the keys of the recipe.
        _refuse_secret(values, name)


def _refuse_secret(values: Mapping[str, Any], name: str) -> None:
    secret = find_secret(dict(values))
    if secret is not None:
        raise ParameterError(f"{name}: parameter {secret}, and parameters are written into the notebook; {KEY_CURE}")


def key_variables(notebook: Any, values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The environment variables that hold the keys of the recipe which checked parameters mean.

    Args:
        notebook: The notebook.
        values: Its parameters, from `check_parameters`.
        name: Its name, for messages.
    """
    meant = {key: parameter.default for key, parameter in read_parameters(notebook, name).items()} | dict(values)
    recipe = _recipe_meant(meant)
    return () if recipe is None else recipe.key_variables


def _recipe_meant(meant: Mapping[str, Any]) -> Recipe | None:
    """The recipe that the values of the common cell mean; None where a notebook has no such cell."""
    if meant.get("run_folder"):
        return Recipe.load(Path(meant["run_folder"]).expanduser() / "recipe.yaml", of_run=True)
    if not isinstance(meant.get("recipe"), str):
        return None
    return chosen_recipe(
        meant["recipe"],
        size=meant.get("size") or "full",
        generator=meant.get("generator") or "",
        changes=meant.get("changes") or {},
    )


def _check_meaning(meant: Mapping[str, Any]) -> None:
    """Checks the values of the cell that the stage notebooks share, as far as a notebook has it."""
    folder = meant.get("run_folder") or ""
    if folder:
        path = Path(folder).expanduser()
        if not (path / "manifest.json").is_file():
            raise RecipeError(
                f"run_folder: {path} is not a run folder (no manifest.json in it); leave it empty to make one"
            )
        return
    chosen = _recipe_meant(meant)
    problems = [] if chosen is None else _service_problems(chosen)
    if problems:
        raise RecipeError(f"{'generator' if meant.get('generator') else 'recipe'}: {'; '.join(problems)}")


def chosen_recipe(
    recipe: str, *, size: str = "full", generator: str = "", changes: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe that the parameters of a stage notebook, or the options of a command, mean.

    Args:
        recipe: A recipe file, or the name of a recipe that comes with optimsyn.
        size: `full` or `tiny`.
        generator: Another model that writes the pairs; empty keeps the recipe's.
        changes: Further recipe fields; `SetOptions` are spoken of as options of a command.

    Raises:
        RecipeError: Begins with the parameter that does not fit.
    """
    from optimsyn.recipe.changes import SetOptions, changed, word_for
    from optimsyn.recipe.sizes import resized
    from optimsyn.runs.resources import find_recipe

    given: Mapping[str, Any] = {} if changes is None else changes
    secret = find_secret({"recipe": recipe, "size": size, "generator": generator, word_for(given): dict(given)})
    if secret is not None:
        raise RecipeError(f"{secret.replace('--set.', '--set ', 1)}, and would be written into the run; {KEY_CURE}")
    with _about("recipe"):
        chosen = Recipe.load(find_recipe(recipe))
    with _about("--size" if isinstance(given, SetOptions) else "size"):
        chosen = resized(chosen, size)
    if generator:
        with _about("generator"):
            _check_name(generator)
            chosen = changed(chosen, {"models.generator": generator}, "generator")
    return changed(chosen, given)


@contextmanager
def _about(parameter: str) -> Iterator[None]:
    """Puts the name of the parameter, or the option, before what is wrong with it."""
    try:
        yield
    except RecipeError as error:
        plain = parameter.removeprefix("--")
        said = str(error)
        said = said.removeprefix(plain) if said.startswith(f"{plain}:") else f": {said}"
        raise RecipeError(f"{parameter}{said}") from error


def _check_name(generator: str) -> None:
    """Refuses a model name that cannot be one, or whose provider is misspelled."""
    if any(character.isspace() for character in generator):
        raise RecipeError(
            f"{generator!r} is not a model name: write provider/model (openai/gpt-6-luna), a hub id or a folder"
        )
    near = nearest_provider(generator)
    if near is not None:
        raise RecipeError(no_provider(generator, f"{near}/{generator.partition('/')[2]}"))


def _service_problems(recipe: Recipe) -> list[str]:
    """What is missing for the services that a recipe names: providers and keys, as this machine alone can tell."""
    from optimsyn.machine.availability import availability

    models = recipe.models
    roles = {"generator": models.generator, "rubric": models.rubric, "reflection": models.reflection}
    problems: list[str] = []
    for role, spec in roles.items():
        if spec is not None and spec.provider in ("litellm", "own"):
            problems += availability(role, spec, network=False).problems
    return problems
