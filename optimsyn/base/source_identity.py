"""The source code of a user's part: results that depend on the part are redone when its source changes.

For a part from a module: the sources of the module and of the modules beside it that it imports. For one from a
notebook or script: the sources of the function or class and of what it uses from the same notebook.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import json
import linecache
import sys
import textwrap
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType, ModuleType

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import importable_name

_MAIN = "__main__"
# Loaded parts with their source at that time: the file may be edited later, but the loaded code runs.
_LOADED: dict[str, tuple[object, dict[str, str]]] = {}


def source_identity(reference: str, part: object, field: str) -> dict[str, str]:
    """All the source code of a part.

    Args:
        reference: Its name in the recipe: a name, `package.module:name` or `__main__:name`.
        part: The object of that name.
        field: The recipe field that names it, for messages.

    Returns:
        Source by module: of the module that defines the part, the one it was imported from, and those beside them that
        they use; for an object that no module names also its state. For a part of a notebook or script: the names that
        it uses there, each with its source or value.

    Raises:
        RecipeError: The part has neither source nor a file, so an edit could not be noticed.
    """
    cached = _LOADED.get(reference)
    if cached is not None and cached[0] is part:
        return cached[1]
    inner = inspect.unwrap(part.func if isinstance(part, functools.partial) else part)  # type: ignore[arg-type]
    module = getattr(inner, "__module__", None) or type(inner).__module__
    sources: dict[str, str] = {}
    wanted = [module]
    if ":" in reference:
        wanted.insert(0, reference.partition(":")[0])
    whose = f"{field}: {reference!r}"
    if module == _MAIN:
        # Cells can be rerun at any time, so do not cache.
        sources = _notebook_source(inner, whose)
        return sources | _module_sources([name for name in _beside_notebook(sources) if name != _MAIN], whose)
    sources = _module_sources([name for name in wanted if name != _MAIN], whose)
    if not isinstance(part, type | FunctionType) and (importable_name(part) or _MAIN).startswith(_MAIN):
        sources["its state"] = _value(_state(part))
    _LOADED[reference] = (part, sources)
    return sources


def module_source(name: str, whose: str) -> str:
    """The source of a module or, for a compiled one, the bytes of its file in hex.

    Args:
        name: The module.
        whose: What needs it, for the message.

    Raises:
        RecipeError: It has neither.
    """
    return _found_source(name, whose)[1]


def _module_sources(names: list[str], whose: str) -> dict[str, str]:
    """Source by module, of these and of the modules beside them that they use."""
    sources: dict[str, str] = {}
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name not in sources and name.partition(".")[0] not in sys.stdlib_module_names:
            spec, sources[name] = _found_source(name, whose)
            wanted += _used_beside(spec, sources[name])
    return sources


def _found_source(name: str, whose: str) -> tuple[ModuleSpec, str]:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # made at run time
        spec = None
    if spec is not None and (source := getattr(spec.loader, "get_source", lambda _: None)(name)) is not None:
        return spec, source
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RecipeError(
            f"{whose}: the module {name} has neither source nor a file, so an edit could not be noticed, and old "
            "results would be taken for new ones; put it into a module file (.py)"
        )
    return spec, Path(spec.origin).read_bytes().hex()


def _used_beside(spec: ModuleSpec, source: str) -> list[str]:
    """The imports of a module that come with it: from its package, or from its folder."""
    own = spec.name.partition(".")[0]
    return [
        name for name in _imports(source, spec.parent) if _comes_with(own, name.partition(".")[0]) and _is_module(name)
    ]


def _imports(source: str, package: str | None) -> list[str]:
    """All names in the imports of a source that might be modules."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a file without source
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _comes_with(own: str, other: str) -> bool:
    """Whether two top-level modules are in one folder other than site-packages."""
    if other in sys.stdlib_module_names or other == "optimsyn":
        return False
    return own == other or _is_ours(_folder_of(own), _folder_of(other))


def _is_ours(place: Path | None, other: Path | None) -> bool:
    return place is not None and place == other and place.name not in ("site-packages", "dist-packages")


def _folder_of(name: str) -> Path | None:
    """The folder of a top-level module or package."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.has_location:
        return None
    file = Path(spec.origin)
    return file.parent.parent if spec.submodule_search_locations is not None else file.parent


def _is_module(name: str) -> bool:
    """Whether this is a module, rather than a function or a value in one."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _notebook_source(part: object, whose: str) -> dict[str, str]:
    """A function, class or object of the running notebook or script, and what it uses there, by name."""
    start = part if isinstance(part, type | FunctionType) else type(part)
    sources: dict[str, str] = {}
    wanted: list[tuple[str, object]] = [(start.__qualname__, start)]
    if start is not part:
        wanted.append(("its state", _state(part)))
    here = vars(sys.modules[_MAIN])
    while wanted:
        name, value = wanted.pop()
        key = f"{_MAIN}:{name}"
        if key in sources:
            continue
        if not isinstance(value, type | FunctionType):
            sources[key] = value.__name__ if isinstance(value, ModuleType) else _value(value)
        elif value.__module__ != _MAIN:
            sources[key] = f"{value.__module__}:{value.__qualname__}"
        else:
            sources[key] = _text_of(value, whose)
            wanted += [(used, here[used]) for used in _names(sources[key]) if used in here]
    return sources


def _state(part: object) -> object:
    """What makes one object of a class different from another: it is not in any source."""
    if isinstance(part, functools.partial):
        return [part.args, part.keywords]
    return getattr(part, "__dict__", {})


def _value(value: object) -> str:
    """A plain value as text, equal in every process; else the name of its type."""
    try:
        return json.dumps(value, sort_keys=True, default=lambda other: sorted(map(repr, other)))
    except (TypeError, ValueError):
        return f"{type(value).__module__}:{type(value).__qualname__}"


def _names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id


def _text_of(part: type | FunctionType, whose: str) -> str:
    """The source of one function or class; `inspect` does not find a notebook's classes."""
    try:
        if isinstance(part, FunctionType):
            return textwrap.dedent(inspect.getsource(part))
        for method in vars(part).values():
            if isinstance(method, FunctionType):
                lines = "".join(linecache.getlines(method.__code__.co_filename))
                for node in ast.walk(ast.parse(lines)):
                    if isinstance(node, ast.ClassDef) and node.name == part.__name__:
                        return textwrap.dedent(ast.get_source_segment(lines, node, padded=True) or "")
        return textwrap.dedent(inspect.getsource(part))
    except (OSError, TypeError, SyntaxError) as error:
        raise RecipeError(
            f"{whose}: the source of {part.__qualname__} is not known ({error}), so an edit could not be noticed, and "
            "old results would be taken for new ones; put it into a module file (.py)"
        ) from error


def _beside_notebook(sources: dict[str, str]) -> list[str]:
    """Those modules behind the notebook's names that are in its working directory."""
    places = [place for text in sources.values() if (place := text.partition(":")[0]).replace(".", "_").isidentifier()]
    imports = [name for text in sources.values() for name in _imports(text, None)]
    here = Path.cwd()
    return [
        name
        for name in dict.fromkeys([*places, *imports])
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names
        and top not in ("", _MAIN, "optimsyn")
        and _is_module(top)
        and _is_ours(here, _folder_of(top))
        and _is_module(name)
    ]
