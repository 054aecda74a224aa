"""Fine-tuning: the loss is the target's own, a killed training ends where an undisturbed one does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import make_pairs, make_target

from optimsyn.base.errors import ModelError
from optimsyn.data.chat import sample_of
from optimsyn.recipe.recipe import TargetSpec
from optimsyn.recipe.sections.evaluation import FineTune
from optimsyn.training import fine_tuning as sft
from optimsyn.training.fine_tuning import fine_tune, latest_checkpoint

SPEC = TargetSpec(name="embedded", max_length=200)
CONFIG = FineTune(steps=6, batch_size=4, lr=5e-3, warmup_ratio=0.0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss_and_leaves_a_loadable_adapter(tmp_path: Path) -> None:
    pairs = make_pairs(6)
    target = make_target()
    with torch.no_grad():
        batch = next(iter(target.batches(pairs)))
        before = float(target.losses(batch).mean())
    steps: list[tuple[int, int]] = []
    folder = tmp_path / "static"
    adapter = fine_tune(
        SPEC, pairs, CONFIG, folder, 0, target=target, report=lambda done, total: steps.append((done, total))
    )
    assert adapter == folder / "adapter"
    with torch.no_grad():
        assert float(target.losses(batch).mean()) < before - 0.1
    assert steps == [(step, 6) for step in range(1, 7)]
    rows = history(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(row["loss"]) and row["lr"] >= 0 and row["grad_norm"] > 0 for row in rows)
    assert {path.name for path in folder.iterdir()} == {"adapter", "history.jsonl", "fine_tune.json"}

    from optimsyn.training.evaluation import use_adapter

    other = make_target()
    with torch.no_grad(), use_adapter(other, adapter):
        again = float(other.losses(batch).mean())
    with torch.no_grad():
        assert again == pytest.approx(float(target.losses(batch).mean()), abs=1e-5)


def test_steps_equal_a_hand_written_adamw(tmp_path: Path) -> None:
    """One batch is the whole data set, so no order matters: the same clipped AdamW steps by hand."""
    pairs = make_pairs(4)
    folder = tmp_path / "x"
    config = FineTune(steps=3, batch_size=4, lr=5e-3, warmup_ratio=0.0)
    fine_tune(SPEC, pairs, config, folder, 0, target=make_target())
    target = make_target()
    parameters = list(target.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    losses = []
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (3 - step) / 3
        optimizer.zero_grad()
        # Mean over samples of the mean over label tokens, sample by sample.
        total = torch.stack([target.losses(b).squeeze(0) for pair in pairs for b in target.batches([pair])]).mean()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(total.detach()))
    assert [row["loss"] for row in history(folder)] == pytest.approx(losses, rel=1e-4)
    saved = weights(folder)
    for name, parameter in target.parameters.items():
        found = saved[name.replace(".default", "")]
        assert torch.allclose(found, parameter.detach(), atol=2e-5), name


def test_accumulated_passes_equal_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make_pairs(8)
    fine_tune(SPEC, pairs, CONFIG, tmp_path / "one", 0, target=make_target())
    longest = max(len(make_target().encode(sample_of(pair)).input_ids) for pair in pairs)
    monkeypatch.setattr(sft, "TOKENS_AT_ONCE", 2 * longest)
    fine_tune(SPEC, pairs, CONFIG, tmp_path / "two", 0, target=make_target())
    # The trainer reports a loss for the whole step, not for one pass.
    assert [row["loss"] for row in history(tmp_path / "two")] == pytest.approx(
        [row["loss"] for row in history(tmp_path / "one")], rel=1e-3
    )
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


class Killed(BaseException):
    """Stands for kill -9: nothing but the operating system cleans up."""


@pytest.mark.slow
def test_killed_training_ends_with_the_same_adapter(tmp_path: Path) -> None:
    pairs = make_pairs(6)
    fine_tune(SPEC, pairs, CONFIG, tmp_path / "whole", 3, target=make_target(seed=3))

    def kill(done: int, total: int) -> None:
        if done == 4:
            raise Killed

    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        fine_tune(SPEC, pairs, CONFIG, folder, 3, target=make_target(seed=3), report=kill)
    assert not (folder / "adapter").exists()
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None and newest.name == "checkpoint-3"
    # A checkpoint that was being written is passed over.
    torn = folder / "checkpoints" / "checkpoint-4"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"torn")
    steps: list[int] = []
    fine_tune(SPEC, pairs, CONFIG, folder, 3, target=make_target(seed=3), report=lambda done, total: steps.append(done))
    assert steps == [4, 5, 6]
    whole, resumed = weights(tmp_path / "whole"), weights(folder)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert history(folder) == history(tmp_path / "whole")


@pytest.mark.slow
def test_killed_after_the_last_step_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make_pairs(6)
    fine_tune(SPEC, pairs, CONFIG, tmp_path / "whole", 3, target=make_target(seed=3))

    def kill(*_: object) -> None:
        raise Killed

    folder = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(sft, "save_adapter", kill)
        with pytest.raises(Killed):
            fine_tune(SPEC, pairs, CONFIG, folder, 3, target=make_target(seed=3))
    fine_tune(SPEC, pairs, CONFIG, folder, 3, target=make_target(seed=3))
    whole, resumed = weights(tmp_path / "whole"), weights(folder)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert history(folder) == history(tmp_path / "whole")


@pytest.mark.slow
def test_same_seed_same_adapter_and_finished_training_is_not_repeated(tmp_path: Path) -> None:
    pairs = make_pairs(5)
    fine_tune(SPEC, pairs, CONFIG, tmp_path / "a", 1, target=make_target(seed=1))
    fine_tune(SPEC, pairs, CONFIG, tmp_path / "b", 1, target=make_target(seed=1))
    left, right = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(left[name], right[name]) for name in left)
    # No target is given: anything that is repeated would load the embedded one first.
    stamp = (tmp_path / "a" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    assert fine_tune(SPEC, pairs, CONFIG, tmp_path / "a", 1) == tmp_path / "a" / "adapter"
    assert (tmp_path / "a" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_other_pairs_or_settings_start_anew(tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        fine_tune(SPEC, make_pairs(6), CONFIG, tmp_path, 0, target=make_target(), report=kill)
    steps: list[int] = []
    fine_tune(
        SPEC, make_pairs(5), CONFIG, tmp_path, 0, target=make_target(), report=lambda done, total: steps.append(done)
    )
    assert steps == [1, 2, 3, 4, 5, 6]


def test_no_step_is_thrown_away_by_the_schedule(tmp_path: Path) -> None:
    config = FineTune(steps=6, batch_size=2, lr=1e-3, warmup_ratio=0.3)
    fine_tune(SPEC, make_pairs(4), config, tmp_path, 0, target=make_target())
    rates = [row["lr"] / 1e-3 for row in history(tmp_path)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "ratio"), [(1, 0.1), (2, 0.6)])
def test_a_training_that_is_all_warm_up_ends_well(tmp_path: Path, steps: int, ratio: float) -> None:
    config = FineTune(steps=steps, batch_size=2, lr=1e-3, warmup_ratio=ratio)
    fine_tune(SPEC, make_pairs(2), config, tmp_path / "x", 0, target=make_target())
    assert [row["step"] for row in history(tmp_path / "x")] == [*range(1, steps + 1)]


def test_the_models_own_forward_is_left_alone(tmp_path: Path) -> None:
    target = make_target()
    fine_tune(SPEC, make_pairs(4), CONFIG, tmp_path, 0, target=target)
    assert "forward" not in vars(target.causal)
    assert not target.model.training


def test_bad_input_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no pairs"):
        fine_tune(SPEC, [], CONFIG, tmp_path / "a", 0)
    pair = make_pairs(1)[0].model_copy(update={"answer": "  "})
    with pytest.raises(ModelError, match="'p0'"):
        fine_tune(SPEC, [pair], CONFIG, tmp_path / "b", 0, target=make_target())
    for known, message in (
        (False, r"the weight model\.embed_tokens\.weight contains"),
        (True, "loss of step 1 is nan"),
    ):
        target = make_target()
        if known:
            # The model is looked at once; what breaks later shows in the loss.
            target.losses(next(iter(target.batches([target.encode(make_pairs(1)[0])]))))
        with torch.no_grad():
            target.causal.get_input_embeddings().weight.fill_(float("nan"))
        with pytest.raises(ModelError, match=message):
            fine_tune(SPEC, make_pairs(4), CONFIG, tmp_path / "c", 0, target=target)
    assert not (tmp_path / "c" / "adapter").exists()


def test_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    for step, text in ((2, '{"global_step": 2}'), (10, '{"global_step": 10}'), (12, "{"), (14, "")):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(text)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize(
    ("batch", "longest", "per_pass"), [(4, 100, 4), (8, 1024, 4), (6, 1500, 2), (4, 9999, 1), (7, 640, 1)]
)
def test_batches_are_cut_to_equal_parts_that_fit(batch: int, longest: int, per_pass: int) -> None:
    assert sft.rows_per_pass(batch, longest) == per_pass
