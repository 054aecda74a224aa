"""The parts of optimsyn that a user can replace or add: one registry for each kind of part.

A part is named in a recipe in one of three ways:

- by its name: a built-in one, one registered in this process (`optimsyn.register`), or an entry point of an installed
  package in the group `optimsyn.<kind>s`;
- as `package.module:name`, which is imported;
- as `__main__:name`, a function or class of the running notebook or script.

Each package of optimsyn provides its parts to the registry of their kind; no other code knows them by name.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import PureWindowsPath
from typing import Any, Generic, TypeVar, cast, overload

from optimsyn.base.errors import RecipeError
from optimsyn.base.suggestions import did_you_mean, nearest

P = TypeVar("P")


class Registry(Generic[P]):
    """The parts of one kind, by name.

    Args:
        kind: The kind's name, as in `register(kind, part)`.
        field: The recipe field that names a part, for messages.

    Attributes:
        kind: As passed.
        label: The kind in a sentence: `prompt optimiser`.
        field: As passed.
        reserved: Names of the built-in parts, which nobody else may use, whatever has been imported.
        group: The group of entry points that is searched.
    """

    def __init__(self, kind: str, field: str, reserved: Iterable[str] = ()) -> None:
        self.kind, self.field = kind, field
        self.label = kind.replace("_optimizer", " optimiser")
        self.reserved = frozenset(reserved)
        self.group = f"optimsyn.{kind}s"
        self._own: dict[str, P] = {}
        self._registered: dict[str, P] = {}
        self._problem: Callable[[object], str | None] = lambda part: None

    @property
    def built_in(self) -> Mapping[str, P]:
        """The built-in parts, in order."""
        return dict(self._own)

    def provide(self, parts: Mapping[str, P], problem: Callable[[object], str | None]) -> None:
        """Adds the built-in parts, which nothing may replace.

        Args:
            parts: By name.
            problem: Returns why an object cannot be such a part, or None when it can; checked on every look-up.

        Raises:
            RecipeError: A user's part was registered under one of these names.
        """
        taken = next((name for name in parts if name in self._registered), None)
        if taken is not None:
            raise RecipeError(self._is_built_in(taken))
        self._own.update(parts)
        self._problem = problem

    def register(self, part: P, name: str | None = None) -> P:
        """Registers a part in this process; the same name again (a cell that is run twice) replaces it.

        Args:
            part: A function, class or object.
            name: Its name in a recipe; by default its `__name__`.

        Returns:
            The part, so that this works as a decorator.

        Raises:
            RecipeError: It has no name, or the name of a built-in part.
        """
        known_as = name or getattr(part, "__name__", None) or getattr(part, "name", None)
        if not isinstance(known_as, str) or not known_as.isidentifier():
            raise RecipeError(
                f"the {self.label} {part!r} has no name that a recipe could write; register it with name="
            )
        if known_as in self._own or known_as in self.reserved:
            raise RecipeError(self._is_built_in(known_as))
        self._registered[known_as] = part
        return part

    def forget(self, name: str) -> None:
        """Removes a registered part, if there is one."""
        self._registered.pop(name, None)

    def only_here(self, reference: str) -> bool:
        """Whether a reference works in this process only: registered here, or defined in a notebook or script."""
        return reference in self._registered or reference.startswith("__main__:")

    def names(self) -> list[str]:
        """All plain names that a recipe may use: of built-in and registered parts and of entry points."""
        entries = (entry.name for entry in entry_points(group=self.group))
        return list(dict.fromkeys([*self._own, *self._registered, *entries]))

    def get(self, reference: str, field: str | None = None) -> P:
        """The part that a recipe names.

        Args:
            reference: A name or `package.module:name`.
            field: The recipe field that holds it, if not the usual one.

        Raises:
            RecipeError: The name is unknown, it cannot be imported, or it is no such part.
        """
        where = field or self.field
        if reference in self._own:
            return self._own[reference]
        if reference in self._registered:
            return self._checked(reference, self._registered[reference], where)
        if ":" in reference:
            return self._checked(reference, imported(reference, where), where)
        if reference in self.reserved:
            raise RecipeError(f"{where}: {reference!r} is a built-in {self.label}; give yours another name")
        entries = {entry.value: entry for entry in entry_points(group=self.group, name=reference)}
        if len(entries) > 1:
            raise RecipeError(
                f"{where}: {reference!r} is an entry point of several packages ({', '.join(sorted(entries))}); write "
                "the one that you mean in its place"
            )
        if not entries:
            raise RecipeError(f"{where}: {self.unknown(reference, self.names())}")
        [entry] = entries.values()
        return self._checked(reference, _loaded(entry, where), where)

    def reference(self, part: object) -> str:
        """The name in a recipe of a part that Python code passed instead of its name.

        Args:
            part: A function, class or object.

        Raises:
            RecipeError: It has none: a lambda, a function inside a function, an object without a name.
        """
        name = importable_name(part) or next((name for name, own in self._registered.items() if own is part), None)
        if name is None:
            raise RecipeError(
                f"{self.field}: {part!r} has no name to import it by; give it one at the top level of a "
                "module or of a notebook cell (`def`, `class` or `mine = ...`), or register it, "
                f"optimsyn.register({self.kind!r}, ..., name='mine'), and write 'mine'"
            )
        return name

    def unknown(self, reference: str, known: Iterable[str]) -> str:
        """The message for a plain name that names nothing.

        Args:
            reference: The name.
            known: All names.
        """
        names = list(known)
        meant = _as_meant(reference)
        hint = f"did you mean `{meant}`?" if meant is not None else None
        hint = hint or did_you_mean(reference, names, f"known: {', '.join(names) or 'none'}.", cutoff=0.5)
        return (
            f"there is no {self.label} {reference!r}; {hint} One of your own is written as package.module:name, or "
            f"registered in the notebook that runs: optimsyn.register({self.kind!r}, ...)"
        )

    def _is_built_in(self, name: str) -> str:
        return f"there is a built-in {self.label} {name!r}; register yours under another name"

    def _checked(self, name: str, part: object, where: str) -> P:
        problem = self._problem(part)
        if problem is not None:
            raise RecipeError(f"{where}: {name!r} is no {self.label}: {problem}")
        return cast("P", part)


def imported(reference: str, field: str) -> object:
    """The object that `package.module:name` names; `name` may have dots.

    Raises:
        RecipeError: It is not of that form or cannot be imported.
    """
    module_name, _, name = reference.partition(":")
    malformed = "is not of the form package.module:name"
    meant = _as_meant(reference)
    if meant is not None:
        malformed += f"; did you mean `{meant}`?"
    if not module_name or not name:
        raise RecipeError(f"{field}: {reference!r} {malformed}")
    try:
        part: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = _import_failure(error, module_name) if meant is None else malformed
        raise RecipeError(f"{field}: {reference!r} {reason}") from error
    for step in name.split("."):
        if not hasattr(part, step):
            reason = f": {_missing(module_name, name)}" if meant is None else f" {malformed}"
            raise RecipeError(f"{field}: {reference!r}{reason}")
        part = getattr(part, step)
    return part


def importable_name(part: object) -> str | None:
    """The name `package.module:name` of a function, a class or an object at the top level of a module; None without."""
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and "<" not in name:
        named: object = sys.modules.get(module)
        for step in name.split("."):
            named = getattr(named, step, None)
        if named is part:
            return f"{module}:{name}"
    if not is_part(part):
        return None
    # An object, or a function made by another one, has the name that it is assigned to; a notebook's as a last resort.
    own = getattr(part, "__module__", None) or type(part).__module__
    for module in sorted(sys.modules, key=lambda each: (each != own, each == "__main__")):
        for name, value in list(getattr(sys.modules[module], "__dict__", {}).items()):
            if value is part and not name.startswith("_"):  # a notebook keeps its latest output under such names
                return f"{module}:{name}"
    return None


def is_part(value: object) -> bool:
    """Whether Python code has passed a part itself (a function, a class, an object), and no plain value."""
    return callable(value) or not (isinstance(value, str) or type(value).__module__ in ("builtins", "datetime"))


def shadowed() -> list[str]:
    """Entry points of installed packages that nothing can name, since a built-in part has their name."""
    installed = entry_points()
    return [
        f"{registry.group}: the entry point {entry.name} = {entry.value} of an installed package is not used, because "
        f"there is a built-in {registry.label} {entry.name!r}; the package has to give it another name"
        for registry in REGISTRIES.values()
        for entry in installed.select(group=registry.group)
        if entry.name in registry.reserved
    ]


def _as_meant(reference: str) -> str | None:
    """`package.module:name` where a reference has the path of a file, or a dot for the colon; else None."""
    place, colon, name = (text.strip() for text in reference.strip().removesuffix("()").partition(":"))
    if re.fullmatch(r"[A-Za-z]", place) and name[:1] in ("/", "\\"):  # a drive
        place, colon, name = (text.strip() for text in name.partition(":"))
    path = PureWindowsPath(place)
    if path.suffix == ".py" or len(path.parts) > 1:
        # Of a folder that is not the working directory nobody knows where the package begins.
        steps = [path.stem] if path.root or ".." in path.parts else [*path.parts[:-1], path.name.removesuffix(".py")]
        name = name or "name"
    elif colon:
        steps = place.split(".")
    else:
        *steps, name = place.split(".")
    meant = f"{'.'.join(steps)}:{name.lstrip(': ')}"
    formed = steps and all(step.isidentifier() for step in meant.replace(":", ".").split("."))
    return meant if formed and meant != reference else None


def _missing(module_name: str, name: str) -> str:
    if module_name == "__main__":
        return (
            f"{name} is defined in a notebook or script, and this process has none of that name; run the cell that "
            "defines it first, or put it into a module file (.py) beside the recipe, where every process finds it, "
            "and write package.module:name"
        )
    module = sys.modules[module_name]
    near = nearest(name, dir(module))
    hint = f"; did you mean `{near}`?" if near is not None else ""
    return f"module {module_name} has no {name} ({getattr(module, '__file__', None) or 'it has no file'}){hint}"


def _import_failure(error: BaseException, module_name: str) -> str:
    """Why a module cannot be imported: it is not there, or something in it fails."""
    what = f"cannot be imported ({type(error).__name__}: {error})"
    if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
        return f"cannot be imported ({type(error).__name__}: {error}); is its folder on PYTHONPATH?"
    if isinstance(error, SystemExit):
        what = f"cannot be imported: it ends the program with sys.exit({error.code})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f" in {frames[-1].filename}, line {frames[-1].lineno}" if len(frames) > 1 else ""
    return f"{what}; fix the module{where}"


def call_problem(part: object, *given: str) -> str | None:
    """Why a part cannot be called with so many positional arguments, without await; None where it can or nobody knows.

    Args:
        part: A function, a class or an object that is called like a function.
        given: What it is called with, for the message.
    """
    if is_async(part):
        return "it is async, but it is called without await; write it with a plain `def`"
    return _binding_problem(part, *given)


def _binding_problem(part: object, *given: str) -> str | None:
    try:
        inspect.signature(part).bind(*given)  # type: ignore[arg-type]
    except TypeError as error:
        return f"it cannot be called with {' and '.join(given)} ({error})"
    except ValueError:  # written in C, without a signature
        return None
    return None


def is_async(part: object) -> bool:
    """Whether a function, or an object that is called like one, has to be awaited."""
    called = part if inspect.isroutine(part) else getattr(type(part), "__call__", None)  # noqa: B004 - the method itself
    return inspect.iscoroutinefunction(called)


def _loaded(entry: EntryPoint, where: str) -> object:
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        raise RecipeError(
            f"{where}: {entry.name!r}, the entry point {entry.value}, cannot be imported "
            f"({type(error).__name__}: {error})"
        ) from error


def methods(names: Iterable[str], what: str, *given: str) -> Callable[[object], str | None]:
    """A check for `Registry.provide`: the part, or the objects of a class, have these methods.

    Args:
        names: The methods.
        what: What such a part is, for the message.
        given: What each of them is called with, for the message; nothing: that is not looked at.
    """

    def problem(part: object) -> str | None:
        for name in names:
            method = getattr(part, name, None)
            if not callable(method):
                return f"it has no method {name}; {what}"
            self_too = ["self"] if isinstance(part, type) else []
            wrong = _binding_problem(method, *self_too, *given) if given else None
            if wrong is not None:
                return f"its method {name}: {wrong}; {what}"
        return None

    return problem


_CHECKS = "answer_fits_question answered_by_itself choices_well_formed code_task_grounded code_well_formed "
_CHECKS += "copied_passage demo_copy dialogue_grounded dialogue_well_formed figure_derived figure_well_formed format "
_CHECKS += "grounded items_grounded items_well_formed length long_answer_grounded long_answer_well_formed "
_CHECKS += "mentions_document near_duplicate_question reason_grounded reason_well_formed reasoning_grounded "
_CHECKS += "reasoning_well_formed stands_alone statement_well_formed unsafe whole_answer whole_question"
_FORMS = "free multiple_choice true_false figure long_answer list code reasoning dialogue"
_ESTIMATORS = "adam adam_momentum_free adam_linear sgd less simulated"
_STAGES = "prepare warm_up optimize_prompt train_policy synthesize fine_tune evaluate"
CHECKS: Registry[Any] = Registry("check", "checks.plugins", _CHECKS.split())
ESTIMATORS: Registry[Any] = Registry(
    "estimator", "influence.estimator", "adam adam_momentum_free adam_linear sgd less simulated".split()
)
SCORERS: Registry[Any] = Registry("scorer", "influence.scorer", ["influence"])
PROMPT_OPTIMIZERS: Registry[Any] = Registry(
    "prompt_optimizer", "optimizers.prompt.method", ["gepa", "halving", "miprov2"]
)
POLICY_OPTIMIZERS: Registry[Any] = Registry("policy_optimizer", "optimizers.policy.method", ["grpo", "expert", "dpo"])
GENERATORS: Registry[Any] = Registry("generator", "models.generator.plugin")
FORMS: Registry[Any] = Registry("form", "questions.form", _FORMS.split())
STAGES: Registry[Any] = Registry("stage", "stages", _STAGES.split())
READERS: Registry[Any] = Registry("reader", "documents.readers")

REGISTRIES: dict[str, Registry[Any]] = {
    each.kind: each
    for each in (
        CHECKS,
        ESTIMATORS,
        SCORERS,
        PROMPT_OPTIMIZERS,
        POLICY_OPTIMIZERS,
        GENERATORS,
        FORMS,
        STAGES,
        READERS,
    )
}
"""The registry of each kind of part."""


@overload
def register(kind: str, part: P, *, name: str | None = None) -> P: ...
@overload
def register(kind: str, *, name: str | None = None) -> Callable[[P], P]: ...
def register(kind: str, part: Any = None, *, name: str | None = None) -> Any:
    """Registers your own part in this process, so that a recipe can name it.

    Args:
        kind: One of `REGISTRIES`: check, estimator, scorer, prompt_optimizer, policy_optimizer, generator, form, stage,
            reader.
        part: The function, class or object; without it, this is a decorator.
        name: Its name in a recipe; by default its `__name__`.

    Raises:
        RecipeError: The kind or the name is wrong.

    Example:
        >>> @register("check")                                          # doctest: +SKIP
        ... def no_dates(pair, context):
        ...     return "it asks for a date" if "when" in pair.question.lower() else None
    """
    if part is None:
        return lambda later: register(kind, later, name=name)
    if kind not in REGISTRIES:
        raise RecipeError(f"there is no kind of part {kind!r}; {did_you_mean(kind, REGISTRIES, ', '.join(REGISTRIES))}")
    return REGISTRIES[kind].register(part, name)
