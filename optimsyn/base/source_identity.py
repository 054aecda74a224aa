"""The source of a part that a user brought: what depends on the part is another thing when its source changes.

For a part from a module these are the sources of the module and of what it imports from beside it. For one from a
notebook cell or a script these are the sources of the function or class and of what it uses of the same notebook.
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

_MAIN = "__main__"
# Parts that this process has loaded, with their source as it was then: the file may be edited afterwards, but what runs
# is what was loaded.
_LOADED: dict[str, tuple[object, dict[str, str]]] = {}


def source_identity(reference: str, part: object, field: str) -> dict[str, str]:
    """All the source that a part is made of.

    Args:
        reference: What the recipe calls it: a name, `package.module:name` or `__main__:name`.
        part: What that led to.
        field: The recipe's field that names it, for messages.

    Returns:
        Source by module: of where the part stands, where it was imported from, and what they use from beside them.
        For a part of a notebook or script the names that it uses there, each with its source or value.

    Raises:
        RecipeError: The part has neither source nor a file, so that nobody could tell when it is edited.
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
        # Cells are run again at any time, so these are read each time.
        sources = _notebook_source(inner, whose)
        return sources | _module_sources([name for name in _beside_notebook(sources) if name != _MAIN], whose)
    sources = _module_sources([name for name in wanted if name != _MAIN], whose)
    _LOADED[reference] = (part, sources)
    return sources


def module_source(name: str, whose: str) -> str:
    """The source of a module or, where it comes without, the bytes of its file in hex.

    Args:
        name: The module.
        whose: What it is a part of, for the message.

    Raises:
        RecipeError: It has neither.
    """
    return _found_source(name, whose)[1]


def _module_sources(names: list[str], whose: str) -> dict[str, str]:
    """Source by module, of these and of what they use from beside them."""
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
            f"{whose}: the module {name} has neither source nor a file, so nobody could tell when it is edited, and "
            "old results would be taken for new ones; put it into a module file (.py)"
        )
    return spec, Path(spec.origin).read_bytes().hex()


def _used_beside(spec: ModuleSpec, source: str) -> list[str]:
    """Modules that a module imports and that come with it: from its package, or the folder that it was found in."""
    own = spec.name.partition(".")[0]
    return [
        name for name in _imports(source, spec.parent) if _comes_with(own, name.partition(".")[0]) and _is_module(name)
    ]


def _imports(source: str, package: str | None) -> list[str]:
    """All that might be modules in the imports of a source."""
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
    """Whether two top-level modules lie in one folder, and not merely because everything is installed there."""
    if other in sys.stdlib_module_names or other == "optimsyn":
        return False
    return own == other or _is_ours(_folder_of(own), _folder_of(other))


def _is_ours(place: Path | None, other: Path | None) -> bool:
    return place is not None and place == other and place.name not in ("site-packages", "dist-packages")


def _folder_of(name: str) -> Path | None:
    """The folder that a top-level module or package was found in."""
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
    """A function, class or object of the notebook or script that runs, and what it uses there, by name."""
    start = part if isinstance(part, type | FunctionType) else type(part)
    sources: dict[str, str] = {}
    wanted: list[tuple[str, object]] = [(start.__qualname__, start)]
    if start is not part:
        wanted.append(("its state", getattr(part, "__dict__", {})))
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


def _value(value: object) -> str:
    """A value as text that is equal in every process, or the name of its type where it is no plain value."""
    try:
        return json.dumps(value, sort_keys=True, default=lambda other: sorted(map(repr, other)))
    except (TypeError, ValueError):
        return f"{type(value).__module__}:{type(value).__qualname__}"


def _names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            yield node.id


def _text_of(part: type | FunctionType, whose: str) -> str:
    """The source of one function or class. Python itself does not find that of a class in a notebook."""
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
            f"{whose}: the source of {part.__qualname__} is not known ({error}), so nobody could tell when it is "
            "edited, and old results would be taken for new ones; put it into a module file (.py)"
        ) from error


def _beside_notebook(sources: dict[str, str]) -> list[str]:
    """Modules that lie in the folder in which the notebook runs, among those that its names come from."""
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
