"""From source and execution to the committed notebook: ids that outlive edits, outputs without the moment."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from notebook_helpers import load_tool

SOURCE = """# %% [markdown]
# # A title
#
# What one learns.

# %% tags=["parameters"]
size: str = "tiny"

# %%
first = 1
first

# %% [markdown]
# ## Then
#
# More words here.

# %%
second = first + 1
second
"""


@pytest.fixture(scope="module")
def form() -> ModuleType:
    return load_tool("notebook_form")


def built(form: ModuleType, path: Path, text: str, earlier: Any = None) -> Any:
    path.write_text(text, encoding="utf-8")
    before = earlier.cells if earlier is not None else []
    return form.build(form.with_ids(form.source_cells(path), before), None, root=path.parent, keep=before)


def lines(notebook: Any) -> list[str]:
    return str(nbformat.writes(notebook, version=4)).splitlines()


def changed_lines(before: Any, after: Any) -> list[str]:
    diff = difflib.unified_diff(lines(before), lines(after), n=0, lineterm="")
    return [line for line in diff if line[0] in "+-" and not line.startswith(("+++", "---"))]


@pytest.mark.parametrize(
    ("old", "new"), [("More words here.", "Other words here."), ("second = first + 1", "second = first + 2")]
)
def test_an_edit_of_one_line_is_a_diff_of_one_line(form: ModuleType, tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "n.py"
    before = built(form, path, SOURCE)
    after = built(form, path, SOURCE.replace(old, new), before)
    removed, added = changed_lines(before, after)
    assert (old in removed, new in added) == (True, True)
    assert [cell.id for cell in before.cells] == [cell.id for cell in after.cells]


def test_a_cell_put_in_between_leaves_all_other_ids_and_outputs_alone(form: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "n.py"
    before = built(form, path, SOURCE)
    before.cells[4].outputs = [nbformat.v4.new_output("stream", text="2\\n")]
    after = built(form, path, SOURCE.replace("# %%\nfirst", "# %%\nzeroth = 0\n\n# %%\nfirst"), before)
    assert len(after.cells) == len(before.cells) + 1
    assert [cell for cell in after.cells if cell.source != "zeroth = 0"] == list(before.cells)


def test_ids_are_unique_and_valid_and_the_same_each_time(form: ModuleType, tmp_path: Path) -> None:
    twice = SOURCE + "\n# %% [markdown]\n# ## Then\n\n# %%\nfirst = 1\nfirst\n"
    one, two = (built(form, tmp_path / f"{name}.py", twice) for name in ("a", "b"))
    assert one == two
    assert len({cell.id for cell in one.cells}) == len(one.cells)
    assert one.cells[0].id == "a-title"
    nbformat.validate(one)


def test_what_depends_on_the_moment_or_the_machine_is_taken_out(
    form: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "not-for-anybody-123")
    output = nbformat.v4.new_output
    transient = output("display_data", {"text/plain": "3 of 9"}, metadata={"optimsyn": {"transient": True}})
    outputs = [
        transient,
        output("stream", text=f"in {tmp_path}/runs/a, key not-for-anybody-123, "),
        output("stream", text="at http://127.0.0.1:43211/v1 <object at 0x7f00aa12bb>\n"),
        output("execute_result", {"text/plain": "Table(...)", "text/html": "<p>ok</p>"}, execution_count=7),
    ]
    stream, result = form.scrubbed(outputs, tmp_path)
    assert stream.text == "in runs/a, key [redacted], at http://127.0.0.1:PORT/v1 <object at 0x…>\n"
    assert result.data == {"text/html": "<p>ok</p>"}
    assert result.execution_count is None


def test_papermills_cells_and_marks_do_not_reach_the_notebook(form: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "n.py"
    path.write_text(SOURCE, encoding="utf-8")
    cells = form.with_ids(form.source_cells(path), [])
    executed = nbformat.from_dict(nbformat.v4.new_notebook(cells=[dict(cell) for cell in cells]))
    injected = nbformat.v4.new_code_cell('size = "full"', metadata={"tags": ["injected-parameters"]})
    executed.cells.insert(2, injected)
    executed.metadata["papermill"] = {"duration": 3.2}
    for cell in executed.cells:
        cell.metadata["papermill"] = {"status": "completed"}
        if cell.cell_type == "code":
            cell.execution_count = 1
    made = form.build(cells, executed, root=tmp_path)
    assert "papermill" not in nbformat.writes(made, version=4)
    assert [cell.source for cell in made.cells] == [cell.source for cell in cells]
    assert all(cell.execution_count is None for cell in made.cells if cell.cell_type == "code")
    executed.cells[-1].source = "something else"
    with pytest.raises(ValueError, match="other code cells"):
        form.build(cells, executed, root=tmp_path)


def test_the_measured_line_stands_where_the_source_says(form: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "n.py"
    path.write_text(SOURCE + '\n# %% [markdown] tags=["measured"]\n# Not yet.\n', encoding="utf-8")
    before = form.with_ids(form.source_cells(path, "**Measured.** 3 s"), [])
    assert before[-1].source == "**Measured.** 3 s"
    after = form.with_ids(form.source_cells(path, "**Measured.** 4 min"), before)
    assert [cell.id for cell in after] == [cell.id for cell in before]


def test_secrets_of_the_environment_are_found_anywhere(form: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "quite-a-secret-thing")
    cell = nbformat.v4.new_code_cell("'quite-a-secret-thing'")
    assert os.environ["OTHER_TOKEN"] in cell.source
    assert any("key" in line for line in form.faults_of(nbformat.v4.new_notebook(cells=[cell]), "n"))
