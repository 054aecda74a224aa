"""The command line: exit codes, messages, and what it loads to start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs_helpers import tiny_recipe

from optimsyn.base.errors import RecipeError
from optimsyn.cli import app


def optimsyn(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimsyn", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **variables},
        timeout=600,
        check=False,
    )


def test_help_lists_the_verbs() -> None:
    shown = optimsyn("--help")
    assert shown.returncode == 0
    for verb in ("doctor", "validate", "preview", "run", "execute", "open", "new"):
        assert verb in shown.stdout
    assert optimsyn("--version").stdout.startswith("optimsyn ")


# What the command line and `import optimsyn` may load before somebody asks for more: a start stays below a second with
# them. Any other library is imported where it is needed.
LIGHT = {
    *("click", "filelock", "markdown_it", "mdurl", "platformdirs", "pydantic", "pydantic_core", "pygments", "rich"),
    *("shellingham", "typer", "yaml", "annotated_types", "annotated_doc", "typing_extensions", "typing_inspection"),
    "optimsyn",
}


@pytest.mark.parametrize("start", ["import optimsyn", "from optimsyn.cli import main; main()"])
def test_a_start_loads_only_light_libraries(start: str) -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nsys.argv = ['optimsyn', '--help']\n"
        f"try:\n    {start}\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split()[1:]) - sys.stdlib_module_names
    assert "optimsyn" in loaded
    assert loaded - LIGHT == set()


def test_wrong_recipe_has_its_own_exit_code(tmp_path: Path) -> None:
    missing = optimsyn("validate", "quickstrt")
    assert missing.returncode == 2
    assert "did you mean `quickstart`" in missing.stderr
    path = tmp_path / "mine.yaml"
    path.write_text(tiny_recipe().to_yaml().replace("guiding_text:", "guidingtext:"))
    wrong = optimsyn("validate", str(path))
    assert wrong.returncode == 2
    assert "did you mean `guiding_text`" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_an_option_is_named_as_it_was_typed() -> None:
    wrong = optimsyn("validate", "quickstart", "--set", "synthesis.pairs=1", "--set", "seed=2")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("RecipeError: --set synthesis.pairs=1:\n  synthesis.pairs: ")


def test_run_refuses_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    changed = tiny_recipe(documents={"source": "nowhere.jsonl"})
    path.write_text(changed.to_yaml())
    refused = optimsyn("run", str(path), cwd=tmp_path)
    assert refused.returncode == 2
    assert "nowhere.jsonl" in refused.stderr
    assert not (tmp_path / "runs").exists()
    unknown = optimsyn("run", str(path), "--stage", "sinthesize", cwd=tmp_path)
    assert unknown.returncode == 1
    assert "did you mean `synthesize`" in unknown.stderr


def test_validate_quickstart() -> None:
    good = optimsyn("validate", "quickstart")
    assert good.returncode == 0, good.stderr
    assert "nothing would stop it" in good.stdout


def test_validate_offline_tells_what_it_did_not_check() -> None:
    law = optimsyn("validate", "law", "--offline", ANTHROPIC_API_KEY="", ANTHROPIC_AUTH_TOKEN="")
    assert law.returncode == 0, law.stderr
    told = " ".join(law.stdout.split())
    assert "not checked: models.generator: anthropic/" in told
    assert "not checked: documents.source: whether the hub has theatticusproject/cuad-qa" in told
    assert told.endswith("law: nothing that was checked would stop it")


def test_a_folder_in_place_of_a_recipe_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").mkdir()
    wrong = optimsyn("validate", "mine.yaml", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "mine.yaml: is a folder" in wrong.stderr


def test_new_copies_a_recipe_once(tmp_path: Path) -> None:
    made = optimsyn("new", "quickstart", "my/own/mine.yaml", cwd=tmp_path)
    assert made.returncode == 0
    assert made.stdout.startswith("my/own/mine.yaml (in the new folder my/own): change documents")
    assert "name: quickstart" in (tmp_path / "my" / "own" / "mine.yaml").read_text()
    again = optimsyn("new", "quickstart", "my/own/mine.yaml", cwd=tmp_path)
    assert again.returncode == 1
    assert "exists already" in again.stderr and "new folder" not in again.stdout


def test_new_without_a_recipe_and_with_a_path_of_two_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match=r"mine.yaml: there is no such recipe to copy; name one of .*quickstart"):
        app(["new", str(tmp_path / "mine.yaml")], standalone_mode=False)
    app(["new", "quickstart", str(tmp_path / "my recipe.yaml")], standalone_mode=False)
    assert f"`optimsyn validate '{tmp_path}/my recipe.yaml'`" in capsys.readouterr().out


def test_secrets_stay_out_of_messages(tmp_path: Path) -> None:
    secret = "sk-abcdefghijklmnop"
    shown = optimsyn("validate", str(tmp_path / f"{secret}.yaml"), TEST_API_KEY=secret)
    assert shown.returncode == 2
    assert secret not in shown.stderr + shown.stdout
    assert "holds the value of the environment variable TEST_API_KEY" in shown.stderr


def test_a_folder_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no folder")
    shown = optimsyn("new", "quickstart", str(file / "mine.yaml"))
    assert shown.returncode == 1
    assert str(file) in shown.stderr
    assert "fix its permissions or free space" in shown.stderr
    assert shown.stderr.count("\n") == 1
