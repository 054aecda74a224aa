"""The speed benchmark runs and writes what it measured; no claim about time is made here."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from influence_helpers import samples, tiny_target

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def _module(name: str) -> Any:
    return importlib.import_module(name)


@pytest.mark.slow
def test_quick_run_on_a_tiny_model(benchmarks: None, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    words = "--model qwen3-8b-shape --scale 0.005 --dtype float32 --threads 1 --quick --batch 3 --length 12 --samples 5"
    try:
        _module("influence_speed").main([*words.split(), "--questions", "3", "--output", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "influence_speed.json").read_text(encoding="utf-8"))
    (cell,) = result["cells"]
    assert list(cell["modes"]) == ["floor", "exact", "exact-cosine", "twin", "forward", "linear", "less", "less-labels"]
    assert (cell["samples"], cell["tokens"], cell["batches"]) == (5, 60, 2)
    for mode in cell["modes"].values():
        assert len(mode["seconds"]) == len(mode["cpu_seconds"]) == result["machine"]["repeats"] == 2
        assert mode["samples_per_second"] > 0 and mode["ratio"]["low"] <= mode["ratio"]["median"]
    assert cell["modes"]["floor"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert cell["spearman_twin_linear"] > 0.8 and cell["spearman_forward_linear"] > 0.99
    assert not any("extrapolated" in mode for mode in cell["modes"].values())
    assert "no --bergson" in cell["absent"]["bergson"]
    whats = [one["what"] for one in cell["criteria"]]
    assert whats[:3] == ["exact / floor, time", "less / exact, time", "twin / floor, time"]
    if sys.platform == "linux":
        assert all(0 < mode["above_resting_mib"] < mode["peak_mib"] for mode in cell["modes"].values())
        assert "exact / floor, peak memory" in whats
    table = (tmp_path / "influence_speed.md").read_text(encoding="utf-8")
    assert "| floor |" in table and str(tmp_path) not in table


@pytest.mark.slow
def test_a_loop_that_takes_too_long_is_extrapolated_and_marked(benchmarks: None, tmp_path: Path) -> None:
    words = "--model qwen3-8b-shape --scale 0.005 --threads 1 --repeats 1 --batch 3 --length 12 --samples 20"
    threads = torch.get_num_threads()
    try:
        _module("influence_speed").main(
            [*words.split(), "--modes", "floor", "exact", "less", "--less-seconds", "0.0001", "--output", str(tmp_path)]
        )
    finally:
        torch.set_num_threads(threads)
    result = json.loads((tmp_path / "influence_speed.json").read_text(encoding="utf-8"))
    assert result["machine"]["dtype"] == "bfloat16"
    less = result["cells"][0]["modes"]["less"]
    assert less["extrapolated"] == "from 1 of 20 samples, 2 % of a projection"
    # One sample and 128 of 8,192 columns were done; twenty and two projections are the whole.
    assert less["seconds"][0] > 0.0001
    assert "*extrapolated from 1 of 20" in (tmp_path / "influence_speed.md").read_text(encoding="utf-8")


def test_a_cell_that_does_not_fit_is_skipped_with_its_reason(benchmarks: None, tmp_path: Path) -> None:
    words = "--model qwen3-8b-shape --scale 0.005 --dtype float32 --threads 1 --batch 4 --length 16 --memory-gb 0.0001"
    threads = torch.get_num_threads()
    try:
        _module("influence_speed").main([*words.split(), "--output", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    (cell,) = json.loads((tmp_path / "influence_speed.json").read_text(encoding="utf-8"))["cells"]
    assert "more than --memory-gb" in cell["skipped"]


@pytest.mark.slow
def test_a_grid_has_a_row_a_cell_and_keeps_what_was_measured(
    benchmarks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = _module("influence_speed")
    words = "--model qwen3-8b-shape --scale 0.005 --dtype float32 --threads 1 --repeats 1 --samples 2 --questions 2"
    grid = "--batch 2 --length 8 12 --modes floor exact twin"
    monkeypatch.setattr(speed, "too_large", lambda target, batch, length, args: "is long" if length == 12 else None)
    threads = torch.get_num_threads()
    try:
        speed.main([*words.split(), *grid.split(), "--output", str(tmp_path)])
        rows = [
            row for row in (tmp_path / "influence_speed.md").read_text(encoding="utf-8").splitlines() if row[:1] == "|"
        ]
        assert [row.count("|") for row in rows] == [5] * 6
        assert (rows[0], rows[3]) == (
            "| time / floor | floor, tokens/s | exact | twin |",
            "| peak memory / floor | floor, MiB | exact | twin |",
        )
        cells = json.loads((tmp_path / "influence_speed.json").read_text(encoding="utf-8"))["cells"]
        ratio = cells[0]["modes"]["twin"]["ratio"]["median"]
        assert rows[2].startswith("| 2 × 8 |") and f"| {ratio:.2f} (" in rows[2]
        assert "2 × 12: is long." in (tmp_path / "influence_speed.md").read_text(encoding="utf-8")

        # Dies in the second cell: the first stays.
        def fails(name: str, *rest: Any) -> Any:
            if "12" in name:
                raise KeyboardInterrupt
            return cells[0]

        monkeypatch.setattr(speed, "too_large", lambda *rest: None)
        monkeypatch.setattr(speed, "cell", fails)
        with pytest.raises(KeyboardInterrupt):
            speed.main([*words.split(), *grid.split(), "--output", str(tmp_path), "--name", "cut"])
        assert len(json.loads((tmp_path / "cut.json").read_text(encoding="utf-8"))["cells"]) == 1
    finally:
        torch.set_num_threads(threads)


def test_the_projection_is_one_matrix_of_signs(benchmarks: None) -> None:
    less = _module("speed_less")
    target = tiny_target(dtype=torch.float32)
    loop = less.LessLoop(target, target.checkpoints[-1], width=200)
    size = sum(p.numel() for p in target.parameters.values())
    matrix = loop.project(torch.eye(size))
    assert torch.equal(matrix.abs(), torch.ones(size, 200))
    assert abs(float(matrix.mean())) < 5 / (200 * size) ** 0.5
    made = [torch.randn(3, size), torch.randn(2, size)]
    for part in made:
        torch.testing.assert_close(loop.project(part), part @ matrix, rtol=1e-4, atol=1e-3)


def test_the_loop_projects_directions_of_single_samples(benchmarks: None) -> None:
    less = _module("speed_less")
    target = tiny_target(dtype=torch.float32)
    encoded = [target.encode(sample) for sample in samples(3, seed=4)]
    published = less.LessLoop(target, target.checkpoints[-1], width=64).run(encoded)
    at_labels = less.LessLoop(target, target.checkpoints[-1], width=64, label_logits=True).run(encoded)
    assert published.shape == (3, 64)
    torch.testing.assert_close(published, at_labels, rtol=1e-2, atol=1e-2 * float(published.abs().max()))
    assert all(parameter.grad is None for parameter in target.parameters.values())


def test_measured_memory_sees_what_was_held(benchmarks: None) -> None:
    memory = _module("speed_memory")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks are read from Linux's /proc")
    total, taken = memory.measured(lambda: float(torch.ones(16 * 2**20).sum()), torch.device("cpu"))
    assert total == 16 * 2**20
    assert taken.peak - taken.resting > 48 * 2**20
    assert taken.seconds > 0
