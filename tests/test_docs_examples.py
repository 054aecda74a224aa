"""Every example in the documentation: recipes parse, commands exist with these options, Python runs."""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from optimsyn.recipe.recipe import Recipe
from optimsyn.study.arms.study_file import StudyFile
from optimsyn.study.transfer.transfer_file import TransferFile
from tests.docs_helpers import ROOT, Block, Prepared, blocks, pages

BASE: dict[str, Any] = {
    "name": "example",
    "documents": {"source": "texts/"},
    "questions": {"validation": "questions.jsonl"},
    "guiding_text": "Write criteria for one question that a specialist would ask to test a colleague.",
}
# Commands of other programs, which are not checked further.
FOREIGN = {"export", ".", "jupyter", "vllm", "cd", "ls", "curl", "npx"}
SEPARATORS = {"&&", "||", "|", ";", "&"}
REDIRECTIONS = {">", ">>"}


def merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in change.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_recipes_parse(block: Block) -> None:
    raw = yaml.safe_load(block.code)
    if "contrasts" in raw:
        StudyFile.parse(raw, str(block))
        return
    if "transfer" in raw:
        TransferFile.parse(raw, str(block))
        return
    assert set(raw) <= set(Recipe.model_fields), "a YAML block is a recipe or a part of one"
    Recipe.parse(merged(BASE, raw), str(block))


# Fields that only rows of a named form have.
OWN_FIELDS = {"messages": "dialogue", "reasoning": "reasoning", "language": "code"}


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_question_rows_are_questions(block: Block) -> None:
    from optimsyn.data.files.rows import Row
    from optimsyn.data.question_rows import Library, question_of

    if "mcpServers" in block.code:
        return  # the configuration of another program
    library = Library(by_id={}, id_of_text={}, complete=False)
    row = Row("docs", "1", yaml.safe_load(block.code))
    form = next((form for field, form in OWN_FIELDS.items() if field in row.values), None)
    assert question_of(row, library, open_book=None, subtask=None, form=form).answer


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block, without variables set in front; also those of a crontab line in a comment."""
    found: list[list[str]] = []
    for line in code.replace("\\\n", " ").splitlines():
        cron = re.match(r"#\s*(?:[\d*/,-]+\s+){5}(.*)", line)
        words = shlex.split(re.sub(r"\$\([^)]*\)", "VALUE", cron[1] if cron else line), comments=True)
        for place, word in enumerate(words):
            if word in REDIRECTIONS:
                del words[place:]
        current: list[str] = []
        for word in [*words, ";"]:
            if word in SEPARATORS:
                if current:
                    found.append(current)
                current = []
            elif current or not re.match(r"\w+=", word):
                current.append(word)
    return found


def test_shell_blocks_are_taken_apart() -> None:
    code = (
        "A=1 optimsyn run x.yaml \\\n  --size tiny  # why\nmake docs && ls\n"
        "# 0 1 * * 1-5  cd /srv && K=$(cat k) optimsyn doctor >> n"
    )
    assert commands(code) == [
        ["optimsyn", "run", "x.yaml", "--size", "tiny"],
        ["make", "docs"],
        ["ls"],
        ["cd", "/srv"],
        ["optimsyn", "doctor"],
    ]


@cache
def optimsyn_group() -> Any:
    import typer

    from optimsyn.cli import app

    return typer.main.get_command(app)


def check_command(words: list[str]) -> None:
    """Fails where a command, option or argument does not exist."""
    name, *rest = words
    if Path(name).name == "optimsyn":
        check_optimsyn(rest)
    elif name == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in rest:
            assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), f"make has no {target}"
    elif name == "papermill":
        from papermill.cli import papermill

        papermill.make_context("papermill", list(rest))
        assert (ROOT / rest[-3 if "-f" in rest else -1]).exists() or any(Path(w).suffix == ".ipynb" for w in rest)
    elif name in {"python", "python3"}:
        script = ROOT / rest[0]
        assert script.is_file(), script
        source = script.read_text(encoding="utf-8")
        for option in (word for word in rest[1:] if word.startswith("--")):
            assert f'"{option}"' in source, f"{rest[0]} has no {option}"
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for wanted in re.findall(r"optimsyn\[([\w,]+)\]", " ".join(rest)):
            assert set(wanted.split(",")) <= set(extras), f"no extra {wanted}"
    else:
        assert name in FOREIGN, f"unknown command {name!r}"


def check_optimsyn(rest: list[str]) -> None:
    group = optimsyn_group()
    if rest[0] == "--help":
        return
    command = group.commands.get(rest[0])
    assert command is not None, f"optimsyn has no command {rest[0]!r}"
    arguments = [part for word in rest[1:] for part in expanded(word)]
    context = command.make_context(f"optimsyn {rest[0]}", arguments)
    for change in context.params.get("changes", context.params.get("set_", ())) or ():
        check_change(change)
    for argument in arguments:
        if argument.startswith(("recipes/", "notebooks/")) and "ours" not in argument:
            assert (ROOT / argument).exists(), argument


def check_change(change: str) -> None:
    from optimsyn.recipe.changes import changed

    field, _, value = change.partition("=")
    changed(Recipe.parse(BASE), {field: yaml.safe_load(value)})


def expanded(word: str) -> list[str]:
    found = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob(word))] if "*" in word else []
    return found or [word]


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_commands_exist(block: Block) -> None:
    found = commands(block.code)
    assert found
    for words in found:
        check_command(words)


def test_commands_in_sentences_exist() -> None:
    """`optimsyn run …` inside a sentence names a command, too."""
    group = optimsyn_group()
    for page in pages():
        for name in re.findall(r"`optimsyn ([a-z]+)", page.read_text(encoding="utf-8")):
            assert name in group.commands, f"{page}: optimsyn has no command {name!r}"


def test_a_wrong_option_would_be_found() -> None:
    from click.exceptions import UsageError

    with pytest.raises((UsageError, Exception), match="no-such"):
        check_optimsyn(["run", "law", "--no-such", "1"])


PAGES_WITH_PYTHON = sorted({block.page for block in blocks("python")})


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return Prepared()


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=lambda page: page.stem)
def test_python_runs(page: Path, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXAMPLE_API_KEY", "set again by an example")
    namespace: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    for block in blocks("python", page):
        code = compile(block.code, str(block), "exec")
        check_imports(block)
        if block.how == "run" and page.name != "README.md":
            prepared.into(namespace, block.code)
            exec(code, namespace)


def check_imports(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("optimsyn"):
            for name in node.names:
                # As in the example, which may import a name or a module.
                exec(f"from {node.module} import {name.name}", {})
