"""Memory that the runs of a batch share, and the GPUs that they are put on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimsyn.batch.memory import Need, Place, Room
from optimsyn.machine.gpus import Gpu, gpus, visible

GB = 10**9
ONE = [Gpu("0", "GPU-a", 80 * GB, 80 * GB)]
TWO = [*ONE, Gpu("1", "GPU-b", 40 * GB, 40 * GB)]


def test_runs_that_fit_together_share_one_gpu_and_the_next_waits() -> None:
    room = Room(ONE)
    first, second = room.place(Need(gpu=30 * GB)), room.place(Need(gpu=50 * GB))
    assert first is not None
    assert second is not None
    assert room.place(Need(gpu=1 * GB)) is None
    assert room.place(Need()) is not None
    room.leave(second)
    assert room.place(Need(gpu=1 * GB)) is not None


def test_each_run_gets_the_gpu_with_most_room() -> None:
    room = Room(TWO)
    places = [room.place(Need(gpu=size * GB)) for size in (50, 30, 30)]
    assert [place.gpu.index for place in places if place is not None and place.gpu is not None] == ["0", "1", "0"]
    assert room.place(Need(gpu=20 * GB)) is None
    pinned = room.place(Need(gpu=5 * GB, pinned=True))
    assert pinned is not None
    assert pinned.gpu is None


def test_a_run_that_can_never_fit_is_refused_with_the_reason() -> None:
    assert Room(TWO).refusal(Need(gpu=80 * GB)) is None
    assert "the largest GPU here has 80.0 GB" in (Room(TWO).refusal(Need(gpu=90 * GB)) or "")
    assert "--gpu-memory-gb 24" in (Room(TWO, 24 * GB).refusal(Need(gpu=30 * GB)) or "")
    assert Room().refusal(Need(gpu=10**15)) is None


def test_main_memory_lets_a_lone_run_pass_and_others_wait() -> None:
    room = Room(main_bytes=8 * GB)
    large = room.place(Need(main=9 * GB))
    assert large is not None
    assert room.place(Need(main=1 * GB)) is None
    assert room.place(Need()) is not None
    room.leave(large)
    assert room.place(Need(main=1 * GB)) is not None


@given(st.lists(st.integers(0, 60), max_size=30), st.integers(1, 100))
def test_running_needs_never_pass_the_cap(sizes: list[int], cap: int) -> None:
    room = Room(ONE, cap * GB)
    placed: list[Place] = []
    for size in sizes:
        need = Need(gpu=size * GB)
        if room.refusal(need) is not None:
            continue
        while (place := room.place(need)) is None:
            assert placed, "a run that is alone must be able to start"
            room.leave(placed.pop(0))
        placed.append(place)
        assert sum(one.need.gpu for one in placed) <= min(cap, 80) * GB


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            "0, GPU-a, 81559, 80000\\n1, GPU-b, 40960, 100",
            [("0", "GPU-a", 81559 * 2**20), ("1", "GPU-b", 40960 * 2**20)],
        ),
        ("No devices were found", []),
        ("", []),
    ],
)
def test_the_driver_tells_the_gpus(
    said: str, found: list[tuple[str, str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{said}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus.cache_clear()
    try:
        assert [(gpu.index, gpu.uuid, gpu.total) for gpu in gpus()] == found
    finally:
        gpus.cache_clear()


@pytest.mark.parametrize(
    ("chosen", "found"), [(None, "01"), ("1,0", "10"), ("GPU-b", "1"), ("", ""), ("1,7,0", "1"), ("-1", "")]
)
def test_cuda_visible_devices_are_respected(chosen: str | None, found: str) -> None:
    assert "".join(gpu.index for gpu in visible(TWO, chosen)) == found
