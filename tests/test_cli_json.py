"""`--json`: one document on standard output, for results and errors, without secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from docs_json import RESULTS, json_page, json_schema
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from report_helpers import stop, write_run
from runs_helpers import tiny_recipe

from optimsyn.base.terminal.json_document import Document
from optimsyn.cli import main
from optimsyn.execution.json_results import PreviewResult
from optimsyn.llm.reply import Usage
from optimsyn.machine import doctor
from optimsyn.machine.doctor import Finding
from optimsyn.report.cards import PairCard
from optimsyn.stages.preview import Preview


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Calls a command with `--json` in an empty folder: its exit code and its document."""
    monkeypatch.chdir(tmp_path)
    validator = Draft202012Validator(json_schema())

    def of(*arguments: object) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["optimsyn", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        document = json.loads(capsys.readouterr().out)
        validator.validate(document)
        assert list(document) == ["optimsyn", "command", "ok", "result", "error"]
        assert document["ok"] == (ended.value.code == 0) == (document["error"] is None)
        result = document["result"]
        if result is not None:
            command = "study --status" if "--status" in arguments else str(arguments[0])
            RESULTS[command].model_validate_json(json.dumps(result))
            assert result["schema"] == 1
        return int(ended.value.code or 0), document

    return of


COMMANDS = "doctor validate preview run batch study execute open report compare new agent".split()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_line_is_a_document_too(call: Any, command: str) -> None:
    code, document = call(command, "--no-such-option")
    assert (code, document["command"], document["error"]["kind"]) == (2, command, "UsageError")
    assert "--no-such-option" in document["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("validate", "quickstrt"), 2, "did you mean `quickstart`"),
        (("preview", "quickstrt"), 2, "did you mean `quickstart`"),
        (("run", "quickstrt"), 2, "did you mean `quickstart`"),
        (("run", "quickstart", "--stage", "prepair"), 1, "did you mean `prepare`"),
        (("batch", "quickstart", "--stage", "prepair"), 2, "there is no stage"),
        (("study", "nowhere.yaml"), 2, "nowhere.yaml"),
        (("execute", "nowhere.ipynb", "out.ipynb"), None, "nowhere.ipynb"),
        (("open", "nowhere"), 1, "nowhere"),
        (("report", "nowhere"), 1, "nowhere"),
        (("compare", "nowhere"), 1, "nowhere"),
        (("new", "quickstrt"), None, "quickstart"),
        (("agent",), 2, "GOAL: say in a sentence"),
        (("agent", "--continue", "nowhere.ipynb"), 1, "nowhere.ipynb"),
        (("agent", "Look", "--recipe", "quickstrt"), 2, "quickstrt"),
    ],
)
def test_an_error_has_its_kind_and_message(call: Any, arguments: Sequence[str], code: int | None, words: str) -> None:
    ended, document = call(*arguments)
    assert code in (ended, None)
    assert ended != 0
    assert words in document["error"]["message"]
    assert "Traceback" not in document["error"]["message"]


def test_validate_has_forecast_and_findings(call: Any, tmp_path: Path) -> None:
    code, document = call("validate", "quickstart", "--offline")
    result = document["result"]
    assert (code, result["problems"], result["counts"]["documents"]) == (0, [], 48)
    total, stages = result["forecast"]["total"], result["forecast"]["stages"]
    assert total["requests"]["expected"] == pytest.approx(sum(each["requests"]["expected"] for each in stages))
    assert result["disk"]["total"] == sum(result["disk"]["parts"].values())
    path = tmp_path / "mine.yaml"
    path.write_text(tiny_recipe(documents={"source": "nowhere.jsonl"}).to_yaml())
    code, document = call("validate", path, "--offline")
    assert (code, document["error"]["kind"]) == (2, "RecipeError")
    assert any("nowhere.jsonl" in problem for problem in document["result"]["problems"])


def test_doctor_has_its_rows(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Finding("disk", "ok", "4 GB"), Finding("keys", "note", "none")]
    monkeypatch.setattr(doctor, "diagnose", lambda *_: iter(rows))
    assert call("doctor")[1]["result"]["rows"][1] == {"what": "keys", "status": "note", "detail": "none"}
    rows.append(Finding("memory", "fail", "too little"))
    code, document = call("doctor")
    assert (code, document["error"]["kind"], len(document["result"]["rows"])) == (1, "NotDone", 3)


def test_reports_have_the_figures_of_the_run(call: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    result = call("report", run.folder)[1]["result"]
    assert Path(result["page"]).is_file()
    figures = result["run"]
    assert (figures["state"], [each["status"] for each in figures["stages"]]) == ("finished", ["finished"] * 7)
    rows = json.loads((run.folder / "evaluation.json").read_text())
    assert [{name: row[name] for name in rows[0]} for row in figures["evaluation"]] == rows
    assert figures["usage"]["cost_usd"] == pytest.approx(0.35)
    failed = write_run(tmp_path / "b", stages=4, seed=1)
    stop(failed, "synthesize", "failed", reason="the service is down")
    both = call("compare", run.folder, failed.folder)[1]["result"]["runs"]
    assert [each["state"] for each in both] == ["finished", "failed"]
    assert "the service is down" in both[1]["stages"][4]["error"]
    assert both[1]["evaluation"] == []


def test_no_secret_is_in_a_document(call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = "sk-abcdefghijklmnopq"
    monkeypatch.setenv("TEST_API_KEY", secret)
    failed = write_run(tmp_path / "b", stages=4)
    stop(failed, "synthesize", "failed", reason=f"refused {secret}")
    assert secret not in json.dumps(call("report", failed.folder)[1])
    assert secret not in json.dumps(call("validate", tmp_path / f"{secret}.yaml")[1])
    monkeypatch.setattr(doctor, "diagnose", lambda *_: iter([Finding("keys", "ok", f"is {secret}")]))
    assert secret not in json.dumps(call("doctor")[1])


def test_new_names_its_file(call: Any) -> None:
    assert call("new", "quickstart", "mine.yaml")[1]["result"] == {"schema": 1, "path": "mine.yaml"}
    assert call("new", "quickstart", "mine.yaml")[0] == 1


def test_a_preview_has_its_pairs_with_influence_and_cost(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    parts = (("Passage", "P"), ("Question", "Q"), ("Answer", "A"), ("Checks", "passed every check"), ("Cost", "1"))
    usages = (Usage(replies=2, cost_usd=0.5), Usage(replies=1, cost_usd=0.25))
    rows = (("p", "r", "Q A", "valid", 0.5), ("p", None, None, "grounded: no", None))
    cards = (PairCard("1", "valid", parts), PairCard("2", "not valid", parts[:1]))
    preview = Preview(body=rows, cards=cards, usages=usages, look=None)
    result = PreviewResult.of(run, preview)
    assert [(pair.valid, pair.influence) for pair in result.pairs] == [(True, 0.5), (False, None)]
    assert result.pairs[0].parts == {"passage": "P", "question": "Q", "answer": "A"}
    assert result.cost == Usage(replies=3, cost_usd=0.75)
    document = Document(command="preview", ok=True, result=result, error=None).text()
    Draft202012Validator(json_schema()).validate(json.loads(document))


def test_child_processes_and_text_go_to_standard_error(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom optimsyn.machine import doctor\nfrom optimsyn.cli import main\n"
        "def diagnose(step):\n    print('text')\n    os.system('echo child')\n    return iter(())\n"
        "doctor.diagnose = diagnose\nsys.argv = ['optimsyn', 'doctor', '--json']\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["result"]["rows"] == []
    assert "child" in done.stderr
    assert "text" in done.stderr


def test_every_field_is_in_the_reference() -> None:
    page = json_page()
    for name, part in json_schema()["$defs"].items():
        assert f"## {name} {{" in page
        for field in part.get("properties", {}):
            assert f"| `{field}` |" in page
