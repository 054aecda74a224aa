"""Python takes what the command line takes; what is wrong is an error of optimsyn; the dataset goes elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_helpers import HOSTILE, Page, judgement, make_recipe, write_run

import optimsyn
from optimsyn import DataError, Dataset, Document, OptimsynError, Pair, Passage, Question, Recipe, Run, changed
from optimsyn.base.errors import RecipeError, StageError
from optimsyn.data.questions import load_questions
from optimsyn.execution.parameters import chosen_recipe
from optimsyn.recipe.changes import SetOptions
from optimsyn.recipe.recipe import Documents, ModelSpec, Questions, Source
from optimsyn.runs.datasets.export import export_dataset

SETS = ["synthesis.pairs=7", "models.generator=openai/gpt-6-luna"]


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_a_recipe_loads_as_the_command_line_loads_it(size: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = chosen_recipe("quickstart", size=size, changes=SetOptions(SETS))
    values = {"synthesis.pairs": 7, "models.generator": "openai/gpt-6-luna"}
    assert Recipe.load("quickstart", size=size, changes=SETS) == wanted
    assert Recipe.load("quickstart", size=size, changes=values) == wanted
    assert changed(Recipe.load("quickstart").resized(size), values) == wanted
    (tmp_path / "mine.yaml").write_text(Recipe.load("quickstart").to_yaml(), encoding="utf-8")
    for name in ("mine.yaml", Path("mine.yaml"), tmp_path / "mine.yaml"):
        assert Recipe.load(name, size=size).changed(SETS) == wanted
    # A folder of that name does not hide the recipe that comes along.
    (tmp_path / "quickstart").mkdir()
    assert Recipe.load("quickstart", size=size, changes=SETS) == wanted


def test_a_run_opens_by_folder_name_recipe_or_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs", stages=1)
    for name in (run.folder, f"runs/{run.name}", run.name, "vitamins", run.recipe):
        opened = Run.open(name)
        assert opened.folder == run.folder
        assert isinstance(opened, Run)
    elsewhere = write_run(tmp_path / "else", recipe=make_recipe(name="minerals"), stages=0)
    assert Run.open("minerals", root="else").folder == elsewhere.folder
    assert Recipe.load(run.folder) == run.recipe
    made = Run.open("quickstart", size="tiny", changes={"seed": 4})
    assert made.name.startswith("quickstart_tiny-") and made.recipe.seed == 4
    assert Run.open("quickstart_tiny").folder == made.folder
    with pytest.raises(RecipeError, match="is a run, whose recipe stays as it is"):
        Run.open(run.folder, changes={"seed": 4})
    with pytest.raises(StageError, match=r"there is no such run folder; did you mean runs/vitamins"):
        Run.open("vitamin")
    with pytest.raises(RecipeError, match=r"nowhere.yaml: there is no such recipe file"):
        Run.open("nowhere.yaml")


def _set(place: Any, name: str, value: Any) -> None:
    setattr(place, name, value)


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: Recipe(name="a b", guiding_text="x"), r"Recipe:\n  name: .*\n  documents: required field is missing"),
    (lambda: ModelSpec(name="openai/x", temprature=1), r"ModelSpec: temprature: .*did you mean `temperature`"),
    (lambda: Source(path="x", hub="y"), r"Source: give exactly one of `path` and `hub`"),
    (lambda: Documents(source="x", min_words="few"), r"Documents: min_words: .*integer"),
    (lambda: Recipe.load("quickstart", changes={"synthesis.pair": 3}), r"did you mean `synthesis.pairs`"),
    (lambda: Recipe.load("quickstart", changes=["seed=-1"]), r"--set seed=-1:\n  seed: .*greater than or equal to 0"),
    (lambda: Recipe.load("quikstart"), r"did you mean `quickstart`"),
    (lambda: changed(Recipe.load("quickstart"), {"seed": "one"}), r"seed: .*integer"),
    (lambda: _set(Recipe.load("quickstart"), "seed", 3), r"Recipe.seed: cannot be set.*changed\(recipe"),
    (lambda: _set(Recipe.load("quickstart").synthesis, "pairs", 3), r"Synthesis.pairs: cannot be set"),
    (lambda: Recipe.load("quickstart", size="huge"), r"no size 'huge'"),
    (lambda: Question(id="q7", question="Which?"), r"Question 'q7': answer: required field is missing"),
    (lambda: Question(id="q", question="?", answer="a", choices=("a",), answer_index=4), r"answer_index 4"),
    (lambda: Pair(id="p", question="?", answer="a"), r"Pair 'p': passage_id: required field is missing"),
    (lambda: Pair(id="p", question="?", answer="a", passage_id="x", qoute="q"), r"qoute: .*did you mean `quote`"),
    (lambda: Document(id="d", text=3), r"Document 'd': text: must be text"),
    (lambda: _set(Document(id="d", text="t"), "text", "u"), r"Document.text: cannot be set.*model_copy"),
    (lambda: Dataset("nowhere"), r"there is no dataset yet"),
    (lambda: load_questions(Questions(validation="none.jsonl"), [], 0), r"none.jsonl"),
]


@pytest.mark.parametrize(("act", "words"), WRONG)
def test_what_is_wrong_is_an_error_of_optimsyn(act: Callable[[], Any], words: str) -> None:
    with pytest.raises(OptimsynError, match=words):
        act()


def test_messages_hold_no_keys() -> None:
    key = "sk-proj-4f9a8b7c6d5e4f3a2b1c"
    with pytest.raises(RecipeError) as told:
        Recipe(name=key, guiding_text="Ask for one fact.", documents="a", questions={"validation": "b"}, seed=key)
    assert key not in str(told.value)
    pair = Pair(id="p", question=f"What is {key}?", answer=key, passage_id="x")
    assert key not in repr(pair) + pair._repr_html_()


def test_the_dataset_as_pandas_and_as_a_hub_dataset(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    run = write_run(tmp_path / "runs", stages=5)
    rows = [judgement("policy", i, 0.01 * i) for i in range(5)]
    export_dataset(run.folder / "dataset", rows, recipe=run.recipe, variant="policy", losses={"kept": 5})
    dataset = Dataset(run.folder)
    assert dataset.folder == run.folder / "dataset"
    raw = pq.read_table(dataset.folder / "train.parquet")
    frame = dataset.to_pandas()
    assert list(frame.columns) == raw.column_names == dataset.columns
    assert frame["influence"].tolist() == [0.01 * i for i in range(5)]
    assert frame["answer_index"].isna().all() and str(frame["answer_index"].dtype) == "Int64"
    assert frame["rubric"][0]["question_type"] == "a dose"
    assert frame["messages"][2][1] == {"role": "assistant", "content": "2 mg"}
    hub = dataset.to_hf()
    assert hub.column_names == raw.column_names and hub.num_rows == 5
    assert hub.to_list() == raw.to_pylist()
    assert set(dataset.columns) <= {word.strip("`, ") for word in dataset.card.split()} | set(dataset.columns)
    damaged = dataset.folder / "train.parquet"
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(DataError, match=r"train.parquet: not readable .*run synthesize again"):
        len(Dataset(run.folder))


def test_a_row_that_is_no_pair_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["p1"], "question": ["Which?"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet: row 'p1': Pair 'p1':\n  answer: required field is missing"):
        Dataset(tmp_path)[0]


def words_of(shown: Any) -> str:
    page = Page(shown._repr_html_())
    assert page.problems == []
    assert "script" not in page.tags and "img" not in page.tags
    return page.words


def test_records_show_themselves() -> None:
    pair = judgement("policy", 3, 0.1, text=HOSTILE).pair
    assert pair is not None
    line = repr(pair)
    assert line.startswith("Pair('policy-3', 'How much of vitamin policy 3 is safe ") and line.endswith(", policy)")
    assert len(line) < 200 and "\n" not in line and str(pair) == line
    shown = words_of(pair)
    assert "Pair 'policy-3'" in shown and "question type: a dose" in shown and "Too much does harm." in shown
    assert "<script>" in shown, "escaped, not lost"
    choice = Question(id="q", question="Which?", answer="b", choices=("a", "b"), answer_index=1, subtask="doses")
    assert repr(choice) == "Question('q', 'Which?' → 'b')"
    assert "multiple choice" in words_of(choice) and "→ b" in words_of(choice)
    document = Document(id="d", title="Mills", text="word " * 10_000)
    assert repr(document) == "Document('d', 'Mills', 50,000 characters)"
    assert len(words_of(document)) < 1000
    passage = Passage(id="p", document_id="d", text="Mills grind.", char_start=5, char_end=17)
    assert repr(passage) == "Passage('p', 'Mills grind.', characters 5 to 17 of 'd')"
    assert "d, characters 5 to 17" in words_of(passage)


def test_all_public_names_exist_and_have_a_docstring() -> None:
    for name in optimsyn.__all__:
        part = getattr(optimsyn, name)
        assert name == "__version__" or part.__doc__
    assert {"Dataset", "Recipe", "Run", "Scores", "changed"} <= set(optimsyn.__all__)
    assert (Path(optimsyn.__file__).parent / "py.typed").is_file()
