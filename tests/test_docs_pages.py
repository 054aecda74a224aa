"""What the pages say about the code is still so: messages, fields, mathematics, notebooks."""

from __future__ import annotations

import ast
import builtins
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
import pytest
from data_helpers import load_documents, recipe_of

from optimsyn.base import errors
from optimsyn.machine.preflight import validate
from tests.docs_helpers import ROOT

TROUBLE = ROOT / "docs" / "troubleshooting.md"


def _texts(node: ast.AST) -> list[str]:
    """The string literals of some code, those inside f-strings with an ellipsis where a value goes."""
    found = []
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            pieces = [str(v.value) if isinstance(v, ast.Constant) else "…" for v in part.values]
            found.append("".join(pieces))
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.append(part.value)
    return found


@pytest.fixture(scope="module")
def said() -> list[str]:
    """Every text in the source of optimsyn."""
    sources = sorted((ROOT / "optimsyn").rglob("*.py"))
    return [text for path in sources for text in _texts(ast.parse(path.read_text(encoding="utf-8")))]


def quoted_messages() -> list[str]:
    """The messages of the troubleshooting page: code in the first cell of each row of a table of messages."""
    found = []
    in_table = False
    for line in TROUBLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| message |"):
            in_table = True
        elif not line.startswith("|"):
            in_table = False
        elif in_table and not line.startswith("|---"):
            match = re.match(r"\| (`+) ?(.+?) ?\1 \|", line)
            assert match, line
            found.append(match[2])
    return found


@pytest.mark.parametrize("message", quoted_messages())
def test_quoted_messages_are_said(message: str, said: list[str]) -> None:
    pieces = [re.escape(piece.strip()) for piece in message.split("…") if piece.strip()]
    pattern = re.compile(r".*?".join(pieces), re.DOTALL)
    assert any(pattern.search(text) for text in said), message


def documented_errors() -> dict[str, str]:
    """The first table of the troubleshooting page: class of error to what it means."""
    rows = re.findall(r"^\| ((?:`\w+Error`(?:, )?)+) \| (.+) \|$", TROUBLE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: meaning for names, meaning in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_errors_of_the_docs_are_those_of_the_code() -> None:
    of_the_code = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.OptimsynError) and found is not errors.OptimsynError
    }
    assert set(documented_errors()) == of_the_code
    for page in [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]:
        for name in re.findall(r"\b[A-Z]\w+Error\b", page.read_text(encoding="utf-8")):
            assert name in of_the_code or hasattr(builtins, name), f"{page.name}: {name}"


def test_who_meets_an_unreadable_document_meets_the_error_that_the_page_names(tmp_path: Path) -> None:
    (tmp_path / "torn.md").write_bytes(b"")
    recipe = recipe_of(tmp_path, documents={"source": str(tmp_path / "torn.md")})
    with pytest.raises(errors.RecipeError, match="no text in it"):
        validate(recipe, offline=True, here=False).raise_if_refused()
    with pytest.raises(errors.DataError, match="no text in it"):
        load_documents(recipe.documents, 0)
    meanings = documented_errors()
    assert "unreadable document" in meanings["RecipeError"] and "before anything starts" in meanings["RecipeError"]
    assert "from Python" in meanings["DataError"]


def test_every_recipe_field_is_described() -> None:
    from docs_reference import undescribed_fields

    assert undescribed_fields() == []


def test_the_recipe_reference_has_every_field_with_its_range() -> None:
    from docs_reference import recipe_page

    page = recipe_page()
    assert re.search(r"`passage_words` \| whole number, ≥ 20 and ≤ 2000 \| .*`160` \| Longest passage", page)
    assert "| `cosine` · `dot` | <span" in page
    assert "**required**" in page
    assert "Undefined" not in page
    assert "<class" not in page


def test_the_command_line_reference_has_every_option() -> None:
    from docs_reference import cli_page

    page = cli_page()
    for name in "doctor validate preview run new execute open batch study report compare".split():
        assert f"## optimsyn {name} {{" in page
    assert "`--size`" in page


def test_mathematics_becomes_mathml_and_code_stays() -> None:
    from docs_math import with_mathml

    page = with_mathml(
        "Cost $20 and $\\Gamma(z)$ or `$HOME`.\n\n$$\na_i * b\n$$\n\n```sh\nexport A=$B C=$D\n```\n| $|x|$ | y |\n"
    )
    assert "Cost $20 and <span" in page
    assert "`$HOME`" in page
    assert "export A=$B C=$D" in page
    formulas = re.findall(r"<math.*?</math>", page, re.DOTALL)
    assert len(formulas) == 3
    for formula in formulas:
        ET.fromstring(re.sub(r"&(?!#|amp|lt|gt)\w+;", "x", formula))
        assert not re.search(r"[*_|\[\]]", re.sub(r"<[^>]*>", "", formula))


def test_all_mathematics_of_the_docs_is_understood() -> None:
    from docs_math import with_mathml

    page = with_mathml((ROOT / "docs" / "influence.md").read_text(encoding="utf-8"))
    formulas = re.findall(r"<math.*?</math>", page, re.DOTALL)
    assert len(formulas) > 20
    for formula in formulas:
        assert "\\" not in formula.replace("&#92;", "\\"), formula


def test_notebooks_become_pages(tmp_path: object) -> None:
    from pathlib import Path

    from docs_notebooks import notebook_pages

    cells = [
        nbformat.v4.new_markdown_cell("# A title\n\nIt says *one* thing. And more.", id="a"),
        nbformat.v4.new_code_cell('size: str = "tiny"', id="b", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("show()", id="c"),
    ]
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    new_output = nbformat.v4.new_output
    cells[2].outputs = [
        new_output("stream", name="stdout", text="kept line\n"),
        new_output("display_data", data={"text/plain": "12 s"}, metadata={"optimsyn": {"transient": True}}),
        new_output("display_data", data={"text/html": "<table>\n\n<tr><td>1</td></tr></table>", "text/plain": "x"}),
        new_output("display_data", data={"image/png": pixel}),
    ]
    folder = Path(str(tmp_path))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "01_one.ipynb")
    made = notebook_pages(folder)
    page = str(made["notebooks/01_one.md"])
    assert page.startswith("# A title\n\n<p class")
    assert "kept line" in page
    assert "12 s" not in page
    assert '<div class="nb-html"><table>\n<tr>' in page
    image = re.search(r"!\[[^]]+\]\(([^)]+)\)", page)
    assert image
    assert f"notebooks/{image[1]}" in made
    assert "[A title](01_one.md): It says *one* thing." in str(made["notebooks/index.md"])
