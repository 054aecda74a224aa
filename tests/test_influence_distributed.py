"""Several processes: the same scores as one gives, in the caller's order, and errors that reach all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from optimsyn.influence.distributed import in_shares, process_count

HERE = Path(__file__).parent


def test_one_process_does_all_the_work() -> None:
    assert process_count() == 1
    assert in_shares([3, 1, 2], "same", lambda places: [place * 10 for place in places]) == [([0, 1, 2], [0, 10, 20])]


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "influence_shared_run.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert first["five"] == second["five"], "every process has the whole result"
    assert (first["worked_on"], second["worked_on"]) == (3, 2)
    for shared, alone in (("five", "five_alone"), ("one", "one_alone")):
        a, b = first[shared], first[alone]
        assert a["ids"] == b["ids"]
        assert a["label_tokens"] == b["label_tokens"]
        for field in ("total", "by_subtask", "gradient_norm", "loss"):
            torch.testing.assert_close(torch.tensor(a[field]), torch.tensor(b[field]), rtol=1e-6, atol=1e-9)
        for x, y in zip(a["token_shares"] or [], b["token_shares"] or [], strict=True):
            assert x == pytest.approx(y, rel=1e-5, abs=1e-6)
    assert first["none"]["ids"] == []
    assert first["none"]["by_subtask"] == []
    failures = [first["hollow"], second["hollow"]]
    assert failures[0].startswith("process 1 of 2 failed")
    assert all("sample 'hollow' has an empty answer" in failure for failure in failures)
    assert "different samples" in first["unlike"]
    assert "different samples" in second["unlike"]
    assert first["afterwards"] == second["afterwards"] == first["five"]["total"]
