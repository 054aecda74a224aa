"""`optimsyn study` with `transfer`: one dataset for several targets, several generators for one, in one table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from scipy import stats
from transfer_helpers import FAKE_CELL, fake_command, run_here, write_transfer

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.batch import engines as batch_engines
from optimsyn.cli import main
from optimsyn.machine import preflight
from optimsyn.runs.folder import Run
from optimsyn.runs.taking_over import taken_from
from optimsyn.study.transfer.outcomes import CellState, Outcome, folder_of, gain
from optimsyn.study.transfer.result import TransferResult
from optimsyn.study.transfer.table import table_of
from optimsyn.study.transfer.transfer import Transfer
from optimsyn.study.transfer.transfer_file import TransferCell, TransferFile, cells_of
from tools.docs_json import json_schema

DRIVER = """
import sys
from rich.console import Console
from optimsyn.batch import engines as batch_engines
from optimsyn.batch.plan import BatchLimits
from optimsyn.machine import preflight
from optimsyn.study.transfer.transfer import Transfer, conduct
fake, path, root = sys.argv[1:]
preflight.check_trained = lambda *_: None
batch_engines.run_command = lambda arguments: [sys.executable, "-c", fake, *arguments]
sys.exit(conduct(Transfer.open(path, root), BatchLimits(jobs=2), console=Console(width=140)))
"""


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls `optimsyn study --json` with fake runs: its exit code and its document."""
    monkeypatch.setattr(batch_engines, "run_command", fake_command)
    monkeypatch.setattr(preflight, "check_trained", lambda *_: None)
    validator = Draft202012Validator(json_schema())

    def of(path: Path, root: Path, *options: str) -> tuple[int, dict[str, Any]]:
        arguments = ["optimsyn", "study", str(path), "--root", str(root), "--jobs", "2", "--json", *options]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        document = json.loads(capsys.readouterr().out)
        validator.validate(document)
        return int(ended.value.code or 0), document

    return of


def _sold(folder: Path) -> list[str]:
    return [line for place in (folder, folder / "transferred") for line in (place / "sold.txt").read_text().split()]


@pytest.mark.slow
def test_one_command_makes_a_table_of_two_targets_and_two_generators(tmp_path: Path, study: Any) -> None:
    path, root = write_transfer(tmp_path, seeds=[1]), tmp_path / "runs"
    code, status = study(path, root, "--status")
    assert code == 0
    forecast = status["result"]["forecast"]
    assert (forecast["runs"], forecast["finished"]) == (4, 0)
    assert forecast["requests"]["low"] > 0
    assert not root.exists()

    (root / "toy").mkdir(parents=True)
    (root / "toy" / "fail-warm").touch()
    code, told = study(path, root)
    assert code == 1
    states = {(r["generator"], r["target"]): (r["state"], r["reason"]) for r in told["result"]["transfer"]["runs"]}
    assert states["plain", "wide"] == ("finished", "")
    assert states["warm", "wide"][0] == "waiting"
    assert states["warm", "small"][0] == "failed"
    assert "no luck" in states["warm", "small"][1]

    (root / "toy" / "fail-warm").unlink()
    code, told = study(path, root)
    assert code == 0
    assert told["result"]["transfer"] == json.loads((root / "toy" / "transfer.json").read_text())
    sold = _sold(root / "toy")
    assert len(sold) == len(set(sold)) == 2 * 7 + 2 * 2


@pytest.mark.long
def test_a_table_of_two_targets_and_two_generators(tmp_path: Path) -> None:
    transfer = Transfer.open(write_transfer(tmp_path), tmp_path / "runs")
    folder = transfer.folder
    assert transfer.take_over() == []
    for cell in [cell for cell in transfer.cells if cell.own]:
        run_here(Run.open(cell.recipe, folder).folder)
    moved = transfer.take_over()
    assert [cell.own for cell in moved] == [False] * 4
    for cell in moved:
        run_here(folder_of(cell, folder))
    # Nothing is left to take over, and nothing of what was done is lost.
    assert transfer.take_over() == moved
    found = transfer.write()
    assert found == TransferResult.model_validate_json((folder / "transfer.json").read_text())
    assert [each.state for each in found.runs] == ["finished"] * 8

    sold = _sold(folder)
    # A run that takes pairs over buys only its own fine-tuning and evaluation.
    assert len(sold) == len(set(sold)) == 4 * 7 + 4 * 2
    assert {each.rpartition("/")[2] for each in sold if "-to-" in each} == {"fine_tune", "evaluate"}
    (taken,) = (folder / "transferred").glob("plain-for-small-s0-to-wide-*")
    assert not (taken / "warm_up" / "checkpoints").exists()
    assert taken_from(Run.load(taken)) == Run.open(transfer.cells[0].recipe, folder).name

    page = (folder / "transfer.html").read_text()
    assert [each.own for each in found.table] == [True, True, False, False]
    for cell in found.table:
        differences = []
        for seed in (0, 1):
            way = f"{cell.generator}-for-small-s{seed}" + ("" if cell.own else "-to-wide")
            (run,) = (folder if cell.own else folder / "transferred").glob(f"{way}-??????????")
            rows = [
                [json.loads(line)["loss"] for line in (run / "evaluate" / f"{name}.jsonl").read_text().splitlines()]
                for name in ("static", "target")
            ]
            differences.append(np.subtract(rows[0], rows[1]))
        change = cell.gains["answer_loss"]
        assert change.value == pytest.approx(np.mean(differences))
        assert change.low is not None and change.high is not None
        assert change.low < change.value < change.high
        assert {"answer_loss", "accuracy", "token_f1"} == set(cell.gains)
        assert (cell.seeds, cell.pairs, change.questions) == ([0, 1], [5, 6], 24)
        assert f"{change.value:+.3f}".replace("-", "−") in page
    assert "scored the pairs" in page
    assert "embedded, temperature 0.9" in page


@pytest.mark.slow
def test_a_killed_transfer_does_no_finished_cell_again(tmp_path: Path) -> None:
    path, root = write_transfer(tmp_path, seeds=[0]), tmp_path / "runs"
    (root / "toy" / "transferred").mkdir(parents=True)
    (root / "toy" / "transferred" / "hang").touch()
    command = [sys.executable, "-c", DRIVER, FAKE_CELL, str(path), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while process.poll() is None and not list((root / "toy" / "transferred").glob("*/pid.txt")):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    (root / "toy" / "transferred" / "hang").unlink()
    before = _sold(root / "toy")
    assert {each for each in before if each.endswith("/fine_tune") and "-to-" in each}

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sold = _sold(root / "toy")
    assert len(sold) == len(set(sold)) == 2 * 7 + 2 * 2
    found = json.loads((root / "toy" / "transfer.json").read_text())
    assert [each["state"] for each in found["runs"]] == ["finished"] * 4
    # One seed: the interval is that of the questions.
    assert {each["gains"]["answer_loss"]["interval_over"] for each in found["table"]} == {"questions"}


def _cells(tmp_path: Path, **changes: Any) -> list[TransferCell]:
    return cells_of(TransferFile.load(write_transfer(tmp_path, **changes)))


def test_each_scoring_target_has_a_dataset_of_its_own(tmp_path: Path) -> None:
    models = {
        "targets": {"small": None, "wide": {"max_length": 500}},
        "generators": {"plain": None},
        "scored_by": "all",
    }
    cells = _cells(tmp_path, transfer=models, seeds=[3])
    assert [(each.scored_by, each.target, each.own) for each in cells] == [
        ("small", "small", True),
        ("wide", "wide", True),
        ("small", "wide", False),
        ("wide", "small", False),
    ]
    own, moved = cells[0].recipe, cells[2].recipe
    assert moved.models == own.models
    assert moved.trained_target == cells[1].recipe.models.target
    assert cells[2].source is not None
    assert cells[2].source.fingerprint == own.fingerprint != moved.fingerprint

    luck = np.random.default_rng(0)
    values = {each.name: {f"q{i}": float(luck.normal()) for i in range(12)} for each in cells}
    groups = {f"q{i}": f"g{i // 2}" for i in range(12)}
    zero = {"answer_loss": dict.fromkeys(groups, 0.0)}
    states = [
        CellState(each, tmp_path, "finished", outcome=Outcome(zero, {"answer_loss": values[each.name]}, groups, 4))
        for each in cells
    ]
    table = table_of(states)
    beside = table[2].against_own["answer_loss"]
    assert beside.value == pytest.approx(
        np.mean([values[cells[2].name][name] - values[cells[1].name][name] for name in groups])
    )
    assert not table[0].against_own
    # While its own run has not finished, there is nothing to stand beside.
    assert not table_of([each for each in states if each.cell is not cells[1]])[1].against_own


def test_the_interval_over_seeds_is_that_of_a_study(tmp_path: Path) -> None:
    cells = [each for each in _cells(tmp_path, seeds=[0, 1, 2]) if each.own and each.generator == "plain"]
    luck = np.random.default_rng(1)
    # One group only: the spread over seeds is all there is, so the interval is that of a t-test over seeds.
    seeds = luck.normal(size=3)
    sides = [
        ({"answer_loss": {"a": 1.0, "b": 2.0}}, {"answer_loss": {"a": 1.0 + s, "b": 2.0 + s}}, {"a": "g", "b": "g"})
        for s in seeds
    ]
    found = gain("answer_loss", sides, cells)
    half = stats.t.ppf(0.975, 2) * seeds.std(ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((seeds.mean() - half, seeds.mean() + half))
    assert found.interval_over == "seeds and questions"
    sides[0][1]["answer_loss"].pop("b")
    with pytest.raises(DataError, match="'b' is on one only"):
        gain("answer_loss", sides, cells)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transfer": {"targets": {"a": None, "b": {"max_length": 300}}, "generators": {"c": None}}}, None),
        (
            {"transfer": {"targets": {"a": None, "b": {}}, "generators": {"c": None}}},
            "transfer.targets: a and b are the same model",
        ),
        ({"transfer": {"targets": {"a": None}, "generators": {"c": None}}}, "a table of one cell"),
        (
            {"transfer": {"targets": {"small": None, "b": "x/y"}, "generators": {"c": None}, "scored_by": ["smal"]}},
            "did you mean `small`",
        ),
        (
            {"transfer": {"targets": {"small": None, "b": "x/y"}, "generators": {"c": None}, "scored_by": "al"}},
            "there is no target 'al'; did you mean `all`",
        ),
        ({"size": "tinny"}, "did you mean `tiny`"),
        (
            {"transfer": {"targets": {"a": None, "b": {"lora": {"rr": 4}}}, "generators": {"c": None}}},
            "transfer.targets.b.lora.rr: unknown field; did you mean `transfer.targets.b.lora.r`?",
        ),
        ({"arm": "statics"}, "arm: the recipe does not make 'statics'; did you mean `static`"),
        ({"set": {"fine_tune.target": "x/y"}}, "name that model under transfer.targets"),
        ({"contrasts": [["static", "policy"]]}, "contrasts"),
        ({"seeds": [0, 0]}, "named once"),
    ],
)
def test_what_a_transfer_refuses(tmp_path: Path, changes: dict[str, Any], said: str | None) -> None:
    path = write_transfer(tmp_path, **changes)
    if said is None:
        assert cells_of(TransferFile.load(path))
        return
    with pytest.raises(RecipeError) as caught:
        cells_of(TransferFile.load(path))
    assert said in str(caught.value)


def test_all_faults_of_a_transfer_come_at_once(tmp_path: Path) -> None:
    targets = {"small": None, "wide": {"lora": {"rr": 4}}, "same": {}}
    models = {"targets": targets, "generators": {"plain": None}, "scored_by": ["smal", "wid"]}
    path = write_transfer(tmp_path, transfer=models, sze="tiny", set={"reward.source": "randm"})
    with pytest.raises(RecipeError) as refused:
        Transfer.open(path, tmp_path / "runs")
    for words in ("'smal'; did you mean `small`", "'wid'; did you mean `wide`", "`size`", "did you mean `random`"):
        assert words in str(refused.value)
    path = write_transfer(tmp_path, transfer={**models, "scored_by": ["smal"]}, arm="statics")
    with pytest.raises(RecipeError) as refused:
        Transfer.open(path, tmp_path / "runs")
    for words in ("did you mean `small`", "lora.rr: unknown field", "small and same are the same", "`static`"):
        assert words in str(refused.value)


def test_a_target_that_cannot_be_asked_a_test_question_is_refused_by_name(tmp_path: Path) -> None:
    models = {"targets": {"small": None, "tight": {"max_length": 32}}, "generators": {"plain": None}}
    transfer = Transfer.open(write_transfer(tmp_path, transfer=models), tmp_path / "runs")
    with pytest.raises(
        RecipeError, match=r"toy.yaml:\n  transfer.targets.tight: embedded cannot read the test question '.*'"
    ):
        transfer.foresee(transfer.states(), 1)
