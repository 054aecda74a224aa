"""Tests of the one module that touches `os.environ`, and of the rule that no other does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optimsyn.base import environment

_ROOT = Path(__file__).parents[1]


def test_variables_are_read_set_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM_KEY", "")
    assert environment.variable("TEAM_KEY") == ""
    environment.set_default("TEAM_KEY", "later")
    assert os.environ["TEAM_KEY"] == ""
    environment.set_variables({"TEAM_KEY": "set"})
    assert environment.variables()["TEAM_KEY"] == "set"
    environment.variables()["TEAM_KEY"] = "only in the copy"
    assert environment.variable("TEAM_KEY") == "set"
    environment.unset(("TEAM_KEY", "NEVER_SET"))
    assert environment.variable("TEAM_KEY") is None
    environment.set_default("TEAM_KEY", "default")
    assert environment.variable("TEAM_KEY") == "default"


def test_every_variable_of_our_own_is_named_there_and_only_there() -> None:
    named = {value for value in vars(environment).values() if isinstance(value, str) and value.startswith("OPTIMSYN_")}
    for file in sorted((_ROOT / "optimsyn").rglob("*.py")):
        if file != Path(environment.__file__):
            code = re.sub(r'""".*?"""', "", file.read_text(encoding="utf-8"), flags=re.S)
            assert not re.findall(r"OPTIMSYN_[A-Z_]+", code), file
    assert named == {
        *(
            "OPTIMSYN_ANALYST_MODEL",
            "OPTIMSYN_CACHE",
            "OPTIMSYN_EMBEDDED_KEY",
            "OPTIMSYN_EMBEDDED_URL",
            "OPTIMSYN_KERNEL_LOCK",
        ),
        *("OPTIMSYN_PARENT", "OPTIMSYN_PURSE", "OPTIMSYN_SECRET_NAMES"),
    }


@pytest.mark.parametrize(
    "line", ["os.environ.get('X')", "os.environ['X'] = ''", "os.getenv('X')", "os.putenv('X', '')"]
)
def test_ruff_refuses_the_environment_elsewhere_in_the_package(line: str) -> None:
    def refused(name: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--no-cache",
            "--select",
            "TID251",
            "--stdin-filename",
            name,
            "-",
        ]
        return subprocess.run(command, input=f"import os\n\n{line}\n", capture_output=True, text=True, cwd=_ROOT)

    answer = refused("optimsyn/llm/reply.py")
    assert answer.returncode == 1
    assert "base/environment.py" in answer.stdout
    assert refused("optimsyn/base/environment.py").returncode == 0
    assert refused("tests/test_x.py").returncode == 0
