"""A stage of one's own between two others: named by a recipe, from a package outside of optimsyn, in a real run."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_helpers import ROOT, blocks
from report_helpers import check_page, make_recipe, write_run
from rich.console import Console
from runs_helpers import tiny_recipe, write_notebook

from optimsyn import register
from optimsyn.base.errors import RecipeError, StageError
from optimsyn.base.extensions import STAGES
from optimsyn.batch.plan import Job, RunOptions, known_stages, plan
from optimsyn.batch.progress import Watch
from optimsyn.batch.state import RunState
from optimsyn.execution import runner, stage_notebooks
from optimsyn.execution.in_process import run_through
from optimsyn.execution.reopen import prepare
from optimsyn.llm.reply import Usage
from optimsyn.machine.forecast.lengths import measure
from optimsyn.machine.forecast.requests import Known, forecast
from optimsyn.machine.preflight import validate
from optimsyn.recipe.recipe import Recipe
from optimsyn.report.comparison import write_comparison
from optimsyn.report.facts import RunFacts
from optimsyn.report.page.report import write_report
from optimsyn.runs import Run, TableResult
from optimsyn.runs.forecast import Range
from optimsyn.runs.outcomes import stage_outcome
from optimsyn.stages.own import run_stage
from tests.extend_helpers import Installed
from tests.stages_helpers import answer

EXAMPLE = blocks("python", ROOT / "docs" / "extend" / "stage.md")[0].code
OWN = {"name": "house_rules", "after": "synthesize", "run": "our_stages:unwanted_words"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of the page, in a folder on the path."""
    folder = tmp_path / "outside"
    folder.mkdir()
    file = folder / "our_stages.py"
    file.write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")
    sys.modules.pop("our_stages", None)
    yield file
    sys.modules.pop("our_stages", None)


def loaded_again() -> None:
    """As in another process: the module is read from its file."""
    sys.modules.pop("our_stages", None)
    importlib.invalidate_caches()


def made(root: Path, *, words: list[str], stages: int = 5, **changes: Any) -> Run:
    """A run whose first stages have finished; its questions are `How much of vitamin <variant> <number> is safe ?`."""
    recipe = make_recipe(stages=[{**OWN, "options": {"words": words}}], **changes)
    run = write_run(root, stages=stages, recipe=recipe)
    document = {"id": "d0", "title": "Vitamins", "text": "Too little is bad.", "license": "CC0-1.0"}
    run.path("prepare", "documents.jsonl").write_text(json.dumps(document) + "\n")
    return run


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.splitlines()) <= 30


def test_pairs_are_left_out_on_the_way_to_fine_tuning(package: Path, tmp_path: Path) -> None:
    run = made(tmp_path, words=["3"])
    assert run.stages.index("house_rules") == run.stages.index("synthesize") + 1
    before = {variant: run.pairs(variant) for variant in run.recipe.variants}
    with pytest.raises(StageError, match="stage fine_tune needs house_rules to finish first"), run.stage("fine_tune"):
        pass
    result: Any = run_stage(run, "house_rules")
    after = {variant: run.pairs(variant) for variant in run.recipe.variants}
    counts = {len(pairs) for pairs in after.values()}
    assert len(counts) == 1 and counts.pop() < 4, "as many of each, and fewer than before"
    for variant, pairs in after.items():
        assert not any(" 3 is safe" in pair.question for pair in pairs)
        assert [pair.id for pair in before[variant] if pair in pairs] == [pair.id for pair in pairs], "the order stays"
    chosen = run.recipe.dataset_variant
    assert result.left_out[chosen] == len(before[chosen]) - len(after[chosen])
    assert [row["id"] for row in run.dataset.rows] == [pair.id for pair in after[chosen]]
    assert all(row["influence"] is not None and row["valid"] for row in run.dataset.rows)
    assert f"| left out by house_rules | {result.left_out[chosen]} |" in run.dataset.card
    # Finished is finished: the module is not called again, and the result shows itself.
    package.write_text(EXAMPLE)
    assert run_stage(run, "house_rules").rows == tuple(map(tuple, result.rows))
    facts = RunFacts.read(run)
    assert facts.dataset_pairs == len(after[chosen])
    page = write_report(run).read_text(encoding="utf-8")
    assert "House rules" in page and f"left out: {', '.join(f'{k} {v}' for k, v in result.left_out.items())}" in page
    check_page(page)


def test_the_report_shows_heading_and_numbers() -> None:
    result = TableResult(stage="count", heading="Passages", numbers={"long_ones": 14})
    assert stage_outcome(result) == "Passages; long ones: 14"
    assert stage_outcome(result.model_copy(update={"heading": ""})) == "long ones: 14"


def test_changed_pairs_lose_what_was_measured(tmp_path: Path) -> None:
    def shouted(run: Run, stage: Any) -> TableResult:
        variant = run.recipe.dataset_variant
        pairs = run.pairs(variant)
        loud = [pair.model_copy(update={"question": pair.question.upper()}) for pair in pairs[:1]]
        stage.hand_on(variant, [*loud, *pairs[1:2]])
        return TableResult(numbers={"changed": 1}, notes=("Loud.",))

    register("stage", shouted, name="shouted")
    try:
        run = write_run(
            tmp_path, stages=5, recipe=make_recipe(stages=[{"name": "loud", "after": "synthesize", "run": "shouted"}])
        )
        run.path("prepare", "documents.jsonl").write_text("")
        result = run_stage(run, "loud")
        assert result.rows == (("changed", 1),)
        assert result.notes[0] == "Loud." and "different numbers of pairs" in result.notes[1]
        changed, same = run.judged(run.recipe.dataset_variant)
        assert changed.influence is None and same.influence is not None
        first, second = run.dataset.rows
        assert (first["influence"], first["reward"], first["valid"]) == (None, None, None), "nobody judged this text"
        assert second["reward"] == same.reward and second["valid"] is True
        with pytest.raises(StageError, match="known to this process alone"):
            stage_notebooks.stage_notebook(run, "loud")
    finally:
        STAGES.forget("shouted")


def test_an_edited_stage_is_told_apart_and_what_follows_too(package: Path, tmp_path: Path) -> None:
    run = made(tmp_path, words=["3"])
    run_stage(run, "house_rules")
    assert set(run.manifest.stage("house_rules").notes["source"]) == {"our_stages"}
    package.write_text(EXAMPLE.replace("pairs[:count]", "pairs[:1]"))
    loaded_again()
    for stage in ("house_rules", "fine_tune"):
        with pytest.raises(StageError, match=r"stage house_rules was edited since it finished \(our_stages\)"):
            run_stage(run, stage)
    with pytest.raises(StageError, match="was edited since it finished"):
        runner.run_stages(run, Console(file=io.StringIO()), until="house_rules")
    package.write_text(EXAMPLE)
    loaded_again()
    assert run_stage(run, "house_rules").stage == "house_rules"
    other = made(tmp_path, words=["4"])
    assert other.folder != run.folder, "options are part of the recipe's fingerprint"


def test_what_a_failed_attempt_handed_on_does_not_count(package: Path, tmp_path: Path) -> None:
    run = made(tmp_path, words=["3"])
    variants = run.recipe.variants
    before = run.pairs(variants[0])
    package.write_text(EXAMPLE.replace("    return", "    raise ValueError('no luck')\n    return"))
    loaded_again()
    with pytest.raises(ValueError, match="no luck"):
        run_stage(run, "house_rules")
    assert run.manifest.stage("house_rules").status == "failed"
    assert run.pairs(variants[0]) == before
    only_last = EXAMPLE.replace("        stage.hand_on", f"        if variant == {variants[-1]!r}: stage.hand_on")
    package.write_text(only_last)
    loaded_again()
    run_stage(run, "house_rules")
    assert run.pairs(variants[0]) == before
    assert len(run.pairs(variants[-1])) < 4


def test_a_run_with_its_own_stage_stands_beside_one_without(package: Path, tmp_path: Path) -> None:
    plain, own = write_run(tmp_path, stages=7), made(tmp_path, words=["3"])
    page = write_comparison([plain, own], tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "house rules" in check_page(page).words
    assert "not started" not in page
    job = Job("vitamins", RunState(recipe="vitamins", folder=str(own.folder)), own, until="fine_tune")
    assert job.stages[-2:] == ("house_rules", "fine_tune")
    seen = Watch().look(job)
    assert seen is not None
    assert (seen.stage, seen.number, seen.of) == ("house_rules", 6, 8)
    stage, notebook = prepare(own, "house_rules")
    assert (stage, notebook.name) == ("house_rules", "06_house_rules.ipynb")
    assert "run_stage(run, 'house_rules')" in notebook.read_text(encoding="utf-8")
    assert prepare(own, "evaluate")[1].name == "08_evaluate.ipynb"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"name": "synthesize", "after": "prepare"}], "'synthesize' is the name of a built-in stage"),
        ([{"name": "mine", "after": "sinthesize"}], "did you mean `synthesize`"),
        ([{"name": "a", "after": "b"}, {"name": "b", "after": "a"}], "a, b follow each other, but no built-in stage"),
        ([{"name": "mine", "after": "prepare"}] * 2, "'mine' is the name of two stages"),
        ([{"name": "dataset", "after": "prepare"}], "has a folder 'dataset' already"),
        ([{"name": "Mine!", "after": "prepare"}], "stages.0.name"),
        ([{"name": "mine", "afer": "prepare"}], "stages.0.afer: unknown field; did you mean `after`"),
        ([{"name": "mine", "after": "prepare", "run": lambda run, stage: None}], "no name to import it by"),
    ],
)
def test_a_recipe_with_a_wrong_stage_is_refused(stages: list[Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(stages=stages)
    assert said in str(caught.value)


def test_stages_after_one_run_in_the_order_of_the_recipe() -> None:
    own = [{"name": name, "after": after} for name, after in (("c", "b"), ("a", "prepare"), ("b", "prepare"))]
    recipe = make_recipe(stages=own)
    assert recipe.stage_names[:5] == ("prepare", "a", "b", "c", "warm_up")
    assert recipe.stage_names[-1] == "evaluate"
    assert make_recipe(stages=[]).fingerprint == make_recipe().fingerprint
    assert make_recipe(stages=own).fingerprint != make_recipe().fingerprint


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(
            stages=[
                {"name": "a", "after": "nowhere", "run": 3},
                {"name": "dataset", "after": "prepare"},
                {"name": "b", "after": "sinthesize"},
            ],
            seed=-1,
            influence={"estimator": "adam_liner"},
        )
    for wrong in (
        "seed: ", "influence.estimator: there is no estimator 'adam_liner'", "stages.0.run: must be text",
        "'dataset' already", "a is to run after 'nowhere'", "did you mean `synthesize`",
    ):  # fmt: skip
        assert wrong in str(caught.value)


def test_an_entry_point_is_a_stage(package: Path, tmp_path: Path, installed: Installed) -> None:
    installed("our_package", "optimsyn.stages", unwanted="our_stages:unwanted_words")
    stages = [{**OWN, "run": "unwanted", "options": {"words": ["3"]}}]
    run = write_run(tmp_path, stages=5, recipe=make_recipe(stages=stages))
    document = {"id": "d0", "title": "Vitamins", "text": "Too little is bad.", "license": "CC0-1.0"}
    run.path("prepare", "documents.jsonl").write_text(json.dumps(document) + "\n")
    before = len(run.pairs("static"))
    run_stage(run, "house_rules")
    assert len(run.pairs("static")) < before
    assert set(run.manifest.stage("house_rules").notes["source"]) == {"our_stages"}


def test_the_forecast_says_which_stages_it_leaves_out_and_counts_what_they_sent() -> None:
    recipe = make_recipe(stages=[OWN, {"name": "unwanted", "after": "evaluate"}])
    lengths = measure(recipe, [], None)
    before = forecast(recipe, lengths)
    assert "What your own stages send is not predicted: house_rules, unwanted." in before.notes
    known = Known(done={"house_rules": Usage(replies=3, input_tokens=30)})
    later = forecast(recipe, lengths, known=known)
    assert "What your own stages send is not predicted: unwanted." in later.notes
    assert later.of("house_rules").requests == Range.exactly(3)
    assert later.total.requests.low == before.total.requests.low + 3
    assert not [note for note in forecast(make_recipe(), lengths).notes if "own stages" in note]


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("our_stages:unwanted_word", "module our_stages has no unwanted_word"),
        ("our_stage:unwanted_words", "cannot be imported"),
        ("our_stages:Unwanted", "a stage is a function that is called with the run and its handle"),
        ("optimsyn.base.seeds:sysconf", "has no sysconf"),
        ("textwrap:dedent", "it cannot be called with the run and its handle"),
        ("unwanted_words", "there is no stage 'unwanted_words'"),
    ],
)
def test_validate_refuses_a_reference_that_leads_to_no_stage(package: Path, reference: str, said: str) -> None:
    served = {"name": "openai/tiny", "api_base": "http://127.0.0.1:9"}
    recipe = tiny_recipe(
        models={"generator": served, "rubric": served},
        optimizers={"policy": {"enabled": False}},
        stages=[{**OWN, "run": reference}],
    )
    problems = [text for text in validate(recipe, deep=False, here=False, offline=True).problems if "stages" in text]
    assert len(problems) == 1
    assert problems[0].startswith("stages.0.run: ") and said in problems[0]


def test_the_handle_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    tried: list[str] = []

    def careless(run: Run, stage: Any) -> str:
        variant = run.recipe.variants[0]
        pair = run.pairs(variant)[0]
        for name, pairs in (("statik", [pair]), (variant, []), (variant, [pair, pair])):
            with pytest.raises(StageError) as caught:
                stage.hand_on(name, pairs)
            tried.append(str(caught.value))
        return "done"

    register("stage", careless)
    try:
        run = write_run(tmp_path, stages=5, recipe=make_recipe(stages=[{"name": "careless", "after": "synthesize"}]))
        with pytest.raises(StageError, match="returned str; it returns a StageResult"):
            run_stage(run, "careless")
    finally:
        STAGES.forget("careless")
    assert "did you mean `static`" in tried[0] and "no pair of the variant" in tried[1] and "share an id" in tried[2]
    with run.stage("careless") as stage, pytest.raises(StageError, match="no variant"):
        stage.hand_on("x", [])


@pytest.mark.slow
def test_the_run_path_trains_on_what_was_handed_on(package: Path, recipe: Recipe, served: Any, tmp_path: Path) -> None:
    served.answer = answer
    raw = recipe.model_dump(mode="json")
    raw["stages"] = [{**OWN, "options": {"words": ["dig"]}}]
    raw["optimizers"]["prompt"]["enabled"] = False
    run = Run.open(Recipe.parse(raw), tmp_path / "runs")
    table = run_through(run, "fine_tune")
    assert [row[0] for row in table.rows] == list(run.stages[:-1])
    tuned: Any = run_stage(run, "fine_tune")
    for variant in run.recipe.variants:
        pairs = run.pairs(variant)
        assert 0 < len(pairs) < 4 and not any("dig" in pair.question for pair in pairs)
    assert [row[1] for row in tuned.rows] == [len(run.pairs(variant)) for variant in run.recipe.variants]


@pytest.mark.slow
def test_optimsyn_run_executes_it_as_a_notebook(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package.write_text(
        "def note(run, stage):\n    '''Writes a file.'''\n    run.path('seen.txt').write_text(stage.name)\n"
    )
    folder = tmp_path / "notebooks"
    monkeypatch.setattr(stage_notebooks, "notebook_path", lambda stage: folder / f"{stage}.ipynb")
    body = "from optimsyn.runs import Run\nwith Run.load(run_folder).stage('prepare'):\n    pass"
    write_notebook(folder / "prepare.ipynb", body)
    served = {"name": "openai/tiny", "api_base": "http://127.0.0.1:9"}
    recipe = tiny_recipe(
        models={"generator": served, "rubric": served},
        optimizers={"policy": {"enabled": False}},
        stages=[{"name": "note", "after": "prepare", "run": "our_stages:note"}],
    )
    run, text = Run.open(recipe, tmp_path / "runs"), io.StringIO()
    runner.run_stages(run, Console(file=text, width=120), until="note")
    assert run.path("seen.txt").read_text() == "note"
    assert "2/8 note" in text.getvalue()
    assert (run.folder / "notebooks" / "02_note.ipynb").is_file()
    runner.run_stages(run, Console(file=text, width=120), until="note")
    assert text.getvalue().count("finished earlier") == 2


def test_a_batch_knows_the_stages_of_its_recipes(tmp_path: Path) -> None:
    served = {"name": "openai/tiny", "api_base": "http://127.0.0.1:9"}
    models = {"models": {"generator": served, "rubric": served}, "optimizers": {"policy": {"enabled": False}}}
    own = tiny_recipe(stages=[{"name": "note", "after": "prepare", "run": "json:dump"}], **models)
    for name, recipe in (("own", own), ("plain", tiny_recipe(**models))):
        (tmp_path / f"{name}.yaml").write_text(recipe.to_yaml())
    recipes = [str(tmp_path / "own.yaml"), str(tmp_path / "plain.yaml")]
    assert known_stages(recipes, "full", None)[-1] == "note"
    with pytest.raises(StageError, match="did you mean `note`"):
        plan(recipes, tmp_path / "runs", RunOptions(until="notes"), here=False)
    with pytest.raises(StageError, match="there is no stage 'note'"):
        plan(recipes[1:], tmp_path / "runs", RunOptions(until="note"), here=False)
