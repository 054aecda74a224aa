"""A reader of somebody's own: a package outside of optimsyn reads what optimsyn does not know."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from data_helpers import load_documents
from pydantic import ValidationError

import optimsyn
from optimsyn import Document
from optimsyn.base.errors import DataError, RecipeError, StageError
from optimsyn.base.extensions import READERS
from optimsyn.base.files import iter_json
from optimsyn.data.documents import read_documents
from optimsyn.machine.preflight import validate
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Documents, Recipe
from optimsyn.runs.folder import Run
from optimsyn.stages import prepare
from tests.data_helpers import recipe_of, text_of
from tests.stages_helpers import run_stage

# The whole extension that the page shows.
PAGE = Path(__file__).parents[1] / "docs" / "extend" / "reader.md"
TEI = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
EDITION = """<TEI xmlns="http://www.tei-c.org/ns/1.0">
<teiHeader><titleStmt><title>The mill</title></titleStmt></teiHeader>
<text><body><div><head>One</head><p>{0}</p></div><div><head>Two</head><p>{1}</p></div></body></text></TEI>"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes a module of the package, as an editor would between two processes."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    folder = tmp_path / "site" / "scholarly"

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "scholarly"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def write(source: str = TEI, module: str = "tei") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
        (folder / f"{module}.py").write_text(source, "utf-8")
        forget()

    write()
    yield write
    forget()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "mill.tei").write_text(EDITION.format(text_of(60), text_of(70)), "utf-8")
    (folder / "note.md").write_text(f"# A note\n\n{text_of(80)}", "utf-8")
    return folder


def documents_of(texts: Path, readers: dict[str, Any], **more: Any) -> Documents:
    return Documents.model_validate({"source": str(texts), "readers": readers, **more})


def test_the_page_shows_a_whole_reader_in_thirty_lines() -> None:
    assert "def read(path: Path)" in TEI and len(TEI.splitlines()) <= 30


def test_a_package_outside_of_optimsyn_reads_a_run(
    recipe: Recipe, texts: Path, tmp_path: Path, package: Callable[..., None]
) -> None:
    mine = changed(
        recipe,
        {"documents.source": str(texts), "documents.readers": {".tei": "scholarly.tei:read"}, "documents.min_words": 5},
    )
    assert Recipe.parse(mine.model_dump(mode="json")).documents.readers == {".tei": "scholarly.tei:read"}
    assert mine.fingerprint != changed(mine, {"documents.readers": {}}).fingerprint
    assert validate(mine, offline=True).problems == []
    run = Run.open(mine, tmp_path / "runs")
    run_stage(run, "prepare")
    rows = {row["id"]: row for row in iter_json(run.path("prepare", "documents.jsonl"))}
    assert list(rows) == ["mill-1", "mill-2", "note.md"]
    assert rows["mill-2"] == {
        "id": "mill-2",
        "title": "The mill, Two",
        "text": text_of(70),
        "source": "mill.tei",
        "license": "",
        "group": "mill",
    }
    assert list(run.manifest.stage("prepare").notes["readers"]) == ["documents.readers['.tei']"]


@pytest.mark.slow
def test_an_edited_reader_makes_prepare_anew_while_nothing_was_built_on_it(
    recipe: Recipe, texts: Path, tmp_path: Path, package: Callable[..., None]
) -> None:
    readers = {".tei": "scholarly.tei:read"}
    mine = changed(recipe, {"documents.source": str(texts), "documents.readers": readers, "documents.min_words": 5})
    run = Run.open(mine, tmp_path / "runs")
    run_stage(run, "prepare")
    run_stage(run, "prepare")
    assert run.manifest.stage("prepare").attempts == 1
    package(TEI.replace("{title}, ", "From {title}, "))
    run_stage(run, "prepare")
    assert run.manifest.stage("prepare").attempts == 2
    titles = [row["title"] for row in iter_json(run.path("prepare", "documents.jsonl"))]
    assert titles[0] == "From The mill, One"
    with run.stage("warm_up"):
        pass
    package(TEI)
    with pytest.raises(StageError, match=r"readers\['.tei'\] changed since stage prepare .*warm_up used .*another --r"):
        prepare.run(run)


@pytest.mark.parametrize(
    ("reference", "source", "message"),
    [
        ("scholarly.tei:rad", TEI, "documents.readers['.tei']: 'scholarly.tei:rad': module scholarly.tei has no rad"),
        ("scholarly.tie:read", TEI, "'scholarly.tie:read' cannot be imported (ModuleNotFoundError"),
        ("tie", TEI, "documents.readers['.tei']: there is no reader 'tie'; known: "),
        ("scholarly.tei:NAMES", TEI, "'scholarly.tei:NAMES' is no reader: it cannot be called"),
        ("scholarly.tei:Document", TEI, "is no reader: it is a class; name a function"),
        ("scholarly.tei:read", "def read(): ...", "is no reader: it cannot be called with a file's path (too many"),
        (
            "scholarly.tei:read",
            "async def read(path): ...",
            "is no reader: it is async, but it is called without await",
        ),
    ],
)
def test_validate_refuses_what_is_no_reader(
    tmp_path: Path, texts: Path, package: Callable[..., None], reference: str, source: str, message: str
) -> None:
    package(source)
    recipe = recipe_of(tmp_path, documents={"source": str(texts), "readers": {".tei": reference}})
    for deep in (True, False):
        found = validate(recipe, offline=True, deep=deep)
        assert len([problem for problem in found.problems if message in problem]) == 1, found.problems


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [("", ""), (".", ""), ("a/b", "'.b'"), ("*.tei", "'.tei'"), ("leaflet", "'.leaflet'")],
)
def test_a_pattern_is_an_ending_or_a_name(texts: Path, pattern: str, meant: str) -> None:
    message = "neither an ending of a file's name, like '.tei', nor a whole name, like 'index.db'"
    with pytest.raises(ValueError, match=message + (f"; did you mean {meant}" if meant else " ")):
        documents_of(texts, {pattern: "a:b"})
    with pytest.raises(ValueError, match="'.tei' is there twice"):
        documents_of(texts, {".tei": "a:b", ".TEI": "a:b"})


FAILING = {
    "raises": (
        "raise ValueError('no <body>')",
        "the reader scholarly.bad:read fails on it (ValueError: no <body>); mend",
    ),
    "number": (
        "return 7",
        "the reader scholarly.bad:read gives a number; a reader returns text, a Document or several",
    ),
    "texts": ("return ['one', 'two']", "the reader scholarly.bad:read gives text in place 1; a reader returns text"),
    "empty": ("return ''", "no text in it; fill it or remove it"),
    "none": ("return []", "its reader gives no document; mend one of them or remove the file"),
    "blank": ("return Document(id='x', text=' ')", "document 1 (x): has no text; its reader has to give it one"),
    "nameless": ("return Document(id=' ', text='a')", "has no id; its reader has to give it one or leave it out"),
    "large": (
        "return 'a' * 2_000_000",
        "gives 2 million characters of text, more than documents.limits.inflated_mb = 1",
    ),
    "slow": ("import time; time.sleep(60)", "takes longer to convert than documents.limits.seconds = 3"),
    "crash": ("import os; os._exit(3)", "ended the program that converts it (exit status 3)"),
    "memory": ("return [b'x' * 10**10]", "takes more than documents.limits.memory_mb = 256 to convert"),
    "leaves": ("import sys; sys.exit('no luck')", "the reader scholarly.bad:read fails on it (SystemExit: no luck)"),
    "key": ("import os; return os.environ['SOME_KEY']", "(KeyError: 'SOME_KEY')"),
}


@pytest.mark.slow
def test_a_reader_that_fails_is_one_files_fault(
    tmp_path: Path, package: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sesame")
    readers = [f"def {name}(path):\n    {body}\n" for name, (body, _) in FAILING.items()]
    package(
        "\n\n".join(
            ["from optimsyn import Document", *readers, "def read(path):\n    return globals()[path.stem](path)\n"]
        ),
        "bad",
    )
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in FAILING:
        (folder / f"{name}.tei").write_text(name, "utf-8")
    (folder / "zebra.md").write_text("The last one is read.", "utf-8")
    limits = {"seconds": 3, "inflated_mb": 1, "memory_mb": 256}
    config = documents_of(folder, {".tei": "scholarly.bad:read"}, limits=limits, on_error="skip")
    found = read_documents(config)
    assert [document.id for document in found.documents] == ["zebra.md"]
    said = {Path(loss.id.partition(":")[0]).stem: loss.detail for loss in found.skipped}
    assert said.keys() == FAILING.keys()
    for name, (_, message) in FAILING.items():
        assert said[name].startswith(f"{folder / name}.tei") and message in said[name], said[name]
    (folder / "zebra.md").unlink()
    for name in FAILING.keys() - {"raises"}:
        (folder / f"{name}.tei").unlink()
    with pytest.raises(DataError, match=r"raises.tei: the reader scholarly.bad:read fails on it \(ValueError"):
        load_documents(documents_of(folder, {".tei": "scholarly.bad:read"}, limits=limits), 0)


def test_a_reader_is_named_by_ending_longer_ending_or_name_and_may_stand_for_a_built_in_one(
    tmp_path: Path, package: Callable[..., None]
) -> None:
    package("def read(path):\n    return 'by name or ending: ' + path.read_text()\n", "plain")
    package("def read(path):\n    return 'longer: ' + path.read_text()\n", "longer")
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("a.XML", "b.tei.xml", "index.db", "c.json", "d.md", "e.zzz"):
        (folder / name).write_text(f"# Of {name}\n\n{name}", "utf-8")
    plain = "scholarly.plain:read"
    readers = {".xml": plain, ".tei.xml": "scholarly.longer:read", "index.db": plain, ".json": plain, ".md": plain}
    found = read_documents(documents_of(folder, readers))
    assert {document.id: document.text.partition(":")[0] for document in found.documents} == {
        **dict.fromkeys(("a.XML", "index.db", "c.json", "d.md"), "by name or ending"),
        "b.tei.xml": "longer",
    }
    assert [loss.id for loss in found.passed] == ["e.zzz"]
    alone = load_documents(documents_of(folder / "c.json", {".json": plain}), 0)
    assert [document.id for document in alone] == ["c.json"]


def test_a_source_from_outside_is_read_with_the_environment_and_not_by_validate(
    tmp_path: Path, package: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRARY_KEY", "sesame")
    package(
        "import os\nfrom optimsyn import Document\n\n\nclass Library:\n    isolated = False\n\n"
        "    def __call__(self, path):\n        key = os.environ['LIBRARY_KEY']\n"
        "        for shelf in path.read_text().split():\n"
        "            yield Document(id=shelf, text=f'Fetched with {len(key)} letters from {shelf}.')\n\n\n"
        "fetch = Library()\n",
        "library",
    )
    (tmp_path / "mine.shelves").write_text("attic cellar", "utf-8")
    documents = {"source": str(tmp_path / "mine.shelves"), "readers": {".shelves": "scholarly.library:fetch"}}
    found = load_documents(Documents.model_validate(documents), 0)
    assert [(document.id, document.group, document.source) for document in found] == [
        ("attic", "attic", "mine.shelves"),
        ("cellar", "cellar", "mine.shelves"),
    ]
    monkeypatch.delenv("LIBRARY_KEY")
    looked = validate(recipe_of(tmp_path, documents=documents), offline=True)
    assert not [problem for problem in looked.problems if "LIBRARY_KEY" in problem]
    assert any("or a reader of your own), which is done when the run starts" in warning for warning in looked.warnings)
    with pytest.raises(DataError, match=r"mine.shelves: the reader scholarly.library:fetch fails on it \(KeyError"):
        load_documents(Documents.model_validate(documents), 0)


def read_here(path: Path) -> Document:
    """A reader at the top of a module, as a recipe takes it itself."""
    return Document(id="here", text=f"Process {os.getpid()}.")


def test_a_function_an_entry_point_and_a_registered_reader(
    texts: Path, tmp_path: Path, package: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = documents_of(texts, {".tei": read_here})
    assert named.readers == {".tei": f"{__name__}:read_here"}
    assert json.loads(named.model_dump_json())["readers"] == named.readers
    (isolated,) = [document for document in load_documents(named, 0) if document.id == "here"]
    assert isolated.text != f"Process {os.getpid()}."
    with pytest.raises(ValidationError, match="has no name to import it by"):
        documents_of(texts, {".tei": lambda path: ""})

    info = tmp_path / "site" / "scholarly-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scholarly\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text("[optimsyn.readers]\ntei = scholarly.tei:read\n", "utf-8")
    importlib.invalidate_caches()
    assert load_documents(documents_of(texts, {".tei": "tei"}), 0)[0].id == "mill-1"

    optimsyn.register("reader", lambda path: f"Process {os.getpid()}.", name="cell")
    try:
        found = load_documents(documents_of(texts, {".tei": "cell"}), 0)
        assert found[0].text == f"Process {os.getpid()}."
    finally:
        READERS.forget("cell")
    with pytest.raises(RecipeError, match=r"documents.readers\['.tei'\]: there is no reader 'cell'"):
        load_documents(documents_of(texts, {".tei": "cell"}), 0)
