"""A form of question from outside, and `true_false`: from the question file to the report, by the run's own path."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import optimsyn
from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import FORMS
from optimsyn.data.forms import form_named, label_of, shown
from optimsyn.data.questions import read_questions
from optimsyn.data.records import Pair, Question
from optimsyn.machine.preflight import validate
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES
from tests.docs_helpers import ROOT, blocks
from tests.llm_helpers import Answer, Service, said
from tests.stages_helpers import METALS, NAMES, answer, run_stage


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example of the page, as a module of somebody's own."""
    code = blocks("python", ROOT / "docs" / "extend" / "form.md")[0].code
    assert len(code.splitlines()) <= 30
    (tmp_path / "our_forms.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "our_forms:Estimate"
    sys.modules.pop("our_forms", None)


def asked_by(tmp_path: Path, recipe: Recipe, form: str, rows: list[dict[str, Any]]) -> Recipe:
    """The recipe with questions of a form."""
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return changed(
        recipe,
        {
            "questions.validation": str(path),
            "questions.form": form,
            "optimizers.prompt.enabled": False,
            "synthesis.pairs": 2,
        },
    )


def estimates() -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{i}",
            "question": f"In which year, according to its chronicle, did {name} open its first shaft?",
            "answer": 1200 + 37 * i,
            "tolerance": 5,
            "group": name,
        }
        for i, name in enumerate(NAMES)
    ]


def statements() -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{i}",
            "question": f"True or false: by its chronicle, {name} sold {METALS[i]} in the harbour.",
            "answer": i % 2 == 0,
            "reason": f"The miners of {name} dug for it." if i % 3 else "",
            "group": name,
        }
        for i, name in enumerate(NAMES)
    ]


def writes(question: str, given: str, **more: str) -> Any:
    """A service that writes such a pair about the last city and metal that it reads of."""

    def write(number: int, request: dict[str, Any]) -> Answer:
        schema = json.dumps(request.get("response_format", {}))
        if "trainability" in schema or "word yes" in request["messages"][-1]["content"]:
            return answer(number, request)
        found = re.findall(r"The city of (\w+) mined (\w+) since (\d+)", request["messages"][-1]["content"])[-1]
        reply = {"quote": "", "question": question, "answer": given, **more}
        return said(json.dumps({key: text.format(*found) for key, text in reply.items()}))

    return write


def run_through(recipe: Recipe, tmp_path: Path) -> Run:
    from optimsyn.report.page.report import write_report

    run = Run.open(recipe, tmp_path / "runs")
    for stage in STAGES:
        run_stage(run, stage)
    write_report(run)
    return run


def rows_of(run: Run, *path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.path(*path).read_text(encoding="utf-8").splitlines()]


def test_a_form_from_outside_goes_through_a_whole_run(
    recipe: Recipe, served: Service, tmp_path: Path, package: str
) -> None:
    served.answer = writes("Since when did the city of {0} mine {1} in the hills?", "{2}")
    ours = asked_by(tmp_path, recipe, package, estimates())
    found = validate(ours, ask=False)
    assert not found.problems
    run = run_through(ours, tmp_path)

    asked = [request["messages"] for request in served.requests]
    assert any("in digits and without its unit" in messages[0]["content"] for messages in asked)
    assert any("a question whose answer is one number" in messages[-1]["content"] for messages in asked)
    validation = rows_of(run, "prepare", "validation.jsonl")
    assert {(row["form"], row["details"]["tolerance"]) for row in validation} == {(package, 5.0)}
    drafts = rows_of(run, "warm_up", "pairs.jsonl")
    assert {row["form"] for row in drafts} == {package}
    judged = rows_of(run, "synthesize", "static.candidates.jsonl")
    assert {row["kind"] for row in judged} == {package}
    assert all(row["influence"] is not None for row in judged if row["valid"])
    pairs = list(run.dataset)
    assert all(isinstance(pair, Pair) and pair.kind == package and pair.answer.isdecimal() for pair in pairs)
    evaluation = json.loads(run.path("evaluation.json").read_text(encoding="utf-8"))
    tolerated = [row for row in evaluation if row["metric"] == "within_tolerance"]
    assert {row["variant"] for row in tolerated} == {"target", "no_rubric", "static"}
    page = run.path("report.html").read_text(encoding="utf-8")
    assert "within tolerance" in page
    assert pairs[0].question in page
    card = run.path("dataset", "README.md").read_text(encoding="utf-8")
    assert "Free answers, multiple choice, estimates | 0, 0, 2" in card

    # Another process that does not know the form still shows its pairs.
    (tmp_path / "our_forms.py").unlink()
    sys.modules.pop("our_forms")
    assert label_of(package) == "Estimate"
    assert shown(pairs[0]) == ((pairs[0].question,), pairs[0].answer)


@pytest.mark.slow
def test_true_or_false_goes_through_a_whole_run(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    reason = "The city of {0} mined {1} and sold it in the harbour."
    served.answer = writes("{1} was sold in the harbour by the city of {0}.", "True", reason=reason)
    run = run_through(asked_by(tmp_path, recipe, "true_false", statements()), tmp_path)

    validation = [Question.model_validate(row) for row in rows_of(run, "prepare", "validation.jsonl")]
    assert {question.answer for question in validation} == {"true", "false"}
    prompts = [request["messages"][0]["content"] for request in served.requests]
    wanted = {word for word in ("true", "false") for text in prompts if f"a full statement that is {word}" in text}
    assert wanted == {"true", "false"}
    (pair, *_) = run.dataset
    assert (pair.kind, pair.answer) == ("true_false", "true")
    (sample, *_) = rows_of(run, "dataset", "train.jsonl")
    user, assistant = (message["content"] for message in sample["messages"])
    assert user == f"True or false? {pair.question}"
    assert assistant == f"true. {pair.details['reason']}"
    rows = rows_of(run, "evaluate", "target.jsonl")
    assert all(row["kind"] == "true_false" and row["token_f1"] is None for row in rows)
    for row in rows:
        better = "true" if row["choice_scores"][0] >= row["choice_scores"][1] else "false"
        assert row["prediction"] == better
    page = re.sub(r"<[^>]+>", "", run.path("report.html").read_text(encoding="utf-8"))
    assert f"true. {pair.details['reason']}" in page


def ages() -> list[dict[str, Any]]:
    """Figures that are printed and calculated ones, by turns."""
    return [
        {
            "id": f"q{i}",
            "question": f"How many years does the chronicle of {name} count twice over?",
            "answer": 2 * (1200 + 37 * i),
            "scale": "thousand" if i % 3 == 0 else "",
            "derivation": f"{1200 + 37 * i} * 2" if i % 2 else "",
            "group": name,
        }
        for i, name in enumerate(NAMES)
    ]


def doubles(number: int, request: dict[str, Any]) -> Answer:
    """A service whose figures are printed or calculated, as it is asked; every fifth calculation is wrong."""
    schema, text = json.dumps(request.get("response_format", {})), request["messages"][-1]["content"]
    if "trainability" in schema or "word yes" in text:
        return answer(number, request)
    name, metal, year = re.findall(r"The city of (\w+) mined (\w+) since (\d+)", text)[-1]
    asked = f"Since when did the city of {name} mine {metal}?"
    if "leave this empty" in request["messages"][0]["content"]:
        return said(json.dumps({"quote": "", "question": asked, "derivation": "", "answer": year}))
    doubled = 2 * int(year) + (number % 5 == 0)
    reply = {"quote": "", "question": asked, "derivation": f"{year} + {year} = {doubled}", "answer": f"{doubled} years"}
    return said(json.dumps(reply))


@pytest.mark.slow
def test_figures_go_through_a_whole_run(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    served.answer = doubles
    run = run_through(asked_by(tmp_path, recipe, "figure", ages()), tmp_path)

    validation = [Question.model_validate(row) for row in rows_of(run, "prepare", "validation.jsonl")]
    assert {question.kind for question in validation} == {"figure"}
    judged = rows_of(run, "synthesize", "static.candidates.jsonl")
    pairs = [row["pair"] for row in judged if row["valid"]]
    assert pairs
    for pair in pairs:
        derivation = pair.get("details", {}).get("derivation")
        if derivation:
            one, other = derivation.split(" + ")
            assert pair["answer"] == f"{int(one) + int(other)} years"
    wrong = [row for row in judged if "figure_derived" in row["failed"]]
    assert all("the derivation gives" in row["reasons"]["figure_derived"] for row in wrong)
    (sample, *_) = rows_of(run, "dataset", "train.jsonl")
    chosen = next(iter(run.dataset))
    assert sample["messages"][-1]["content"] == " = ".join(
        filter(None, [chosen.answer, chosen.details.get("derivation")])
    )
    rows = rows_of(run, "evaluate", "target.jsonl")
    assert all(row["kind"] == "figure" and "right_number" in row["metrics"] for row in rows)
    assert "right number" in run.path("report.html").read_text(encoding="utf-8")


def test_a_form_is_named_registered_or_given_as_it_is(recipe: Recipe, tmp_path: Path, package: str) -> None:
    first = form_named(package)
    assert form_named(package) is first
    optimsyn.register("form", type(first), name="estimate")
    try:
        assert form_named("estimate") is first
        ours = asked_by(tmp_path, recipe, "estimate", estimates())
        sets = read_questions(ours.questions, None, 0)
        assert {question.kind for question in (*sets.validation, *sets.test)} == {"estimate"}
    finally:
        FORMS.forget("estimate")
    given = recipe.questions.model_validate({"validation": "x.jsonl", "form": type(first)})
    assert given.form == package


OWN = "from optimsyn.data.forms import Gold, Key, QuestionForm\n\n\nclass Form(QuestionForm):\n    label = 'x'\n"


@pytest.mark.parametrize(
    ("source", "form", "message"),
    [
        ("", "treu_false", "questions.form: there is no form 'treu_false'; did you mean `true_false`?"),
        ("", "our_other:Form", "questions.form: 'our_other:Form': module our_other has no Form"),
        ("class Form:\n    pass\n", "our_other:Form", "has no `label`; inherit from"),
        ("from optimsyn.data.forms import QuestionForm\n\n\nclass Form(QuestionForm):\n    label = 'x'\n\n"
         "    def __init__(self, size):\n        pass\n", "our_other:Form", "cannot be made without arguments"),
        ("from optimsyn.data.forms import QuestionForm\n\n\nclass Form(QuestionForm):\n    label = 'x'\n"
         "    checks = {'format': print}\n", "our_other:Form", "the check 'format' of 'our_other:Form' has the name"),
        ("from optimsyn.data.forms import QuestionForm\n\n\nclass Form(QuestionForm):\n    label = 'x'\n\n"
         "    def read_row(self, values):\n        return values['nothing']\n", "our_other:Form",
         "asked.jsonl:1: question cannot be read by the form 'our_other:Form' (KeyError: 'nothing')"),
        (OWN + "    checks = ['a']\n", "our_other:Form", "its `checks` are no dictionary"),
        (OWN + "\n    def prompt(self, item):\n        return item.nothing\n", "our_other:Form",
         "questions.form: `prompt` of our_other:Form raised AttributeError"),
        (OWN + "\n    def answer(self, item):\n        pass\n", "our_other:Form",
         "questions.form: `answer` of our_other:Form gave None"),
        (OWN + "\n    def read_row(self, values):\n        pass\n", "our_other:Form",
         "questions.form: `read_row` of our_other:Form gave None; it returns a `Gold`"),
        (OWN + "\n    def read_row(self, values):\n        return Gold(values['answer'])\n", "our_other:Form",
         "questions.form: `read_row` of our_other:Form gave a Gold whose answer is 1200, not text"),
        (OWN + "\n    def fitted(self, questions):\n        pass\n", "our_other:Form",
         "questions.form: `fitted` of our_other:Form gave None, which is no form"),
        (OWN + "\n    def fitted(self, questions):\n        return questions[0].nothing\n", "our_other:Form",
         "questions.form: `fitted` of our_other:Form raised AttributeError"),
        (OWN + "    columns = ('tolerance',)\n", "our_other:Form",
         "its read_row is inherited and does not read tolerance, which `columns` names; write a read_row"),
        (OWN + "\n    def marks(self, question, heard):\n        return True\n", "our_other:Form",
         "questions.form: `marks` of our_other:Form gave True; it returns `Marks`"),
        (OWN + "\n    def reply_keys(self, seed=0):\n        return 'answer', 'question'\n", "our_other:Form",
         "questions.form: `reply_keys` of our_other:Form gave ('answer', 'question'); it returns `Key`s"),
        (OWN + "\n    def reply_keys(self, seed=0):\n        return *super().reply_keys(), Key('unit', 'its unit')\n",
         "our_other:Form", "questions.form: `demonstration` of our_other:Form gave {'answer': '1986'"),
    ],
)  # fmt: skip
def test_validate_refuses_what_is_no_form(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, form: str, message: str
) -> None:
    (tmp_path / "our_other.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("our_other", None)
    problems = validate(asked_by(tmp_path, recipe, form, estimates()), ask=False, offline=True).problems
    assert any(message in problem for problem in problems), problems
    sys.modules.pop("our_other", None)


def test_a_column_that_the_form_does_not_read_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    ours = asked_by(tmp_path, recipe, "true_false", statements())
    source = {"path": str(tmp_path / "asked.jsonl"), "columns": {"reson": "why"}}
    wrong = changed(ours, {"questions.validation": source})
    with pytest.raises(RecipeError, match=r"questions.validation.columns.reson: unknown field; did you mean `reason`"):
        read_questions(wrong.questions, None, 0)
