"""The registries through which a user brings parts of their own."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pytest

import optimsyn
from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import REGISTRIES, Registry, methods, shadowed
from optimsyn.machine.preflight import validate
from tests.extend_helpers import Installed, Written
from tests.runs_helpers import tiny_recipe


def words(pair: object, context: object) -> None:
    """A part at the top of a module."""


@pytest.fixture
def shapes() -> Registry[object]:
    made: Registry[object] = Registry("shape", "shapes.kind")
    made.provide({"round": object(), "square": object()}, lambda part: "it is a number" if part == 1 else None)
    return made


def test_a_part_is_named_by_its_name_its_place_or_an_entry_point(
    shapes: Registry[object], written: Written, installed: Installed
) -> None:
    written("shape_package", "class Oval:\n    inner = 3\n")
    installed("shape_package", "optimsyn.shapes", oval="shape_package:Oval")

    assert shapes.get("round") is shapes.built_in["round"]
    assert shapes.register(words) is words
    assert shapes.get("words") is words
    oval = shapes.get("shape_package:Oval")
    assert oval is sys.modules["shape_package"].Oval
    assert shapes.get("oval") is oval
    assert shapes.get("shape_package:Oval.inner") == 3
    assert shapes.names() == ["round", "square", "words", "oval"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("sqare", "shapes.kind: there is no shape 'sqare'; did you mean `square`?"),
        ("nowhere:thing", "shapes.kind: 'nowhere:thing' cannot be imported (ModuleNotFoundError"),
        ("json:nothing", "has no nothing"),
        ("__main__:nothing", "run the cell that defines it first"),
        (":x", "is not of the form package.module:name"),
    ],
)
def test_a_name_that_leads_nowhere_says_where_it_stands(shapes: Registry[object], reference: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        shapes.get(reference)
    assert message in str(caught.value)


def test_what_cannot_be_such_a_part_is_refused(shapes: Registry[object]) -> None:
    shapes.register(1, "one")
    with pytest.raises(RecipeError, match="shapes.kind: 'one' is no shape: it is a number"):
        shapes.get("one")
    with pytest.raises(RecipeError, match="no name that a recipe could write"):
        shapes.register(3)
    assert methods(["run"], "see the page")(words) == "it has no method run; see the page"
    assert methods(["upper"], "see the page")("text") is None


def test_a_built_in_name_is_nobody_elses(shapes: Registry[object]) -> None:
    with pytest.raises(RecipeError, match="built-in shape 'round'"):
        shapes.register(words, "round")
    late: Registry[object] = Registry("shape", "shapes.kind")
    late.register(words, "round")
    with pytest.raises(RecipeError, match="built-in shape 'round'"):
        late.provide({"round": object()}, lambda part: None)


class Shape:
    """An object of it is a part too."""


named_object = Shape()
made_here = functools.partial(words, None)


def test_a_part_given_as_it_is_has_a_name_to_find_it_again(shapes: Registry[object]) -> None:
    for part, name in ((words, "words"), (Shape, "Shape"), (named_object, "named_object"), (made_here, "made_here")):
        assert shapes.reference(part) == f"{__name__}:{name}"
    nameless = Shape()
    for part in (lambda: None, nameless, functools.partial(words, None)):
        with pytest.raises(
            RecipeError, match=r"shapes.kind: .* no name .* optimsyn.register\('shape', ..., name='mine'"
        ):
            shapes.reference(part)
    shapes.register(nameless, "mine")
    assert shapes.reference(nameless) == "mine"


@pytest.mark.parametrize(
    ("reference", "meant"),
    [
        ("ward/checks.py:f", "ward.checks:f"),
        ("./ward/checks.py:f", "ward.checks:f"),
        ("ward.checks.py:f", "ward.checks:f"),
        ("ward/checks:f", "ward.checks:f"),
        ("ward.checks:f()", "ward.checks:f"),
        ("ward.checks: f", "ward.checks:f"),
        ("ward.checks::f", "ward.checks:f"),
        ("ward.checks.Sign", "ward.checks:Sign"),
        ("/home/me/ward/checks.py:f", "checks:f"),
        ("C:\\ward\\checks.py:f", "checks:f"),
    ],
)
def test_another_way_to_write_a_reference_is_answered_with_the_right_one(
    shapes: Registry[object], written: Written, reference: str, meant: str
) -> None:
    written("checks", "")
    with pytest.raises(RecipeError, match=re.escape(f"did you mean `{meant}`?")):
        shapes.get(reference)


def test_an_entry_point_that_nothing_can_name_is_a_note(installed: Installed) -> None:
    installed("late_package", "optimsyn.estimators", adam="late:Adam")
    installed("late_stages", "optimsyn.stages", prepare="late:run")
    notes = shadowed()
    assert any("optimsyn.estimators: the entry point adam = late:Adam" in note for note in notes)
    assert validate(tiny_recipe(), deep=False, offline=True).warnings[: len(notes)] == notes
    with pytest.raises(RecipeError, match="stages: 'prepare' is a built-in stage"):
        REGISTRIES["stage"].get("prepare")


def test_two_packages_with_one_name_are_told_apart(shapes: Registry[object], installed: Installed) -> None:
    installed("first_package", "optimsyn.shapes", oval="first:Oval")
    installed("second_package", "optimsyn.shapes", oval="second:Oval")
    with pytest.raises(RecipeError, match=r"'oval' is an entry point of several packages \(first:Oval, second:Oval\)"):
        shapes.get("oval")


def test_register_knows_the_kinds() -> None:
    with pytest.raises(RecipeError, match="no kind of part 'chek'; did you mean `check`"):
        optimsyn.register("chek", words)
    try:
        assert optimsyn.register("check", name="spare")(words) is words
        assert REGISTRIES["check"].get("spare") is words
    finally:
        REGISTRIES["check"].forget("spare")


def test_built_in_names_are_reserved_whatever_has_been_imported() -> None:
    import optimsyn.data.forms
    import optimsyn.influence.estimators
    import optimsyn.influence.factory
    import optimsyn.optimize.methods
    import optimsyn.programs.checker
    from optimsyn.runs.manifest import STAGES

    apart = {"estimator": {"simulated"}, "stage": set(STAGES)}
    for kind, each in REGISTRIES.items():
        assert each.reserved == set(each.built_in) | apart.get(kind, set()), kind
        for name in each.reserved:
            with pytest.raises(RecipeError, match=f"built-in {each.label} '{name}'"):
                optimsyn.register(kind, words, name=name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import sys\nsys.exit(3)\n",
            r"it ends the program with sys.exit\(3\); fix .*broken_part.py, line 2",
        ),
        ("x = 1\ny = 1 / 0\n", r"\(ZeroDivisionError: division by zero\); fix the module in .*broken_part.py, line 2"),
        (
            "import not_there_at_all\n",
            r"'not_there_at_all'\); fix .*broken_part.py, line 1",
        ),
        ("def parts(): ...\n", r"module broken_part has no part \(.*broken_part.py\); did you mean `parts`"),
    ],
)
def test_what_fails_inside_a_module_names_its_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_part.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_part", raising=False)
    with pytest.raises(RecipeError, match=message):
        REGISTRIES["generator"].get("broken_part:part")
    sys.modules.pop("broken_part", None)


async def later(pair: object, context: object) -> None:
    """A check that would have to be awaited."""


def alone(pair: object) -> None:
    """A check that is not told the context."""


@pytest.mark.parametrize(
    ("part", "message"), [(later, "it is async"), (alone, "be called with a pair and its context")]
)
def test_a_check_that_cannot_be_called_is_refused(part: object, message: str) -> None:
    import optimsyn.programs.checker

    try:
        optimsyn.register("check", part, name="spare")
        with pytest.raises(RecipeError, match=message):
            REGISTRIES["check"].get("spare")
    finally:
        REGISTRIES["check"].forget("spare")
