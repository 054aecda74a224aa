"""The store of compressed directions: exact without projection, unbiased with it, durable, and free of the model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import samples, tiny_target
from scipy.stats import spearmanr

from optimsyn.base.errors import DataError, ModelError, RecipeError
from optimsyn.influence.gradients.projection import Layout, Projection
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.scores import Scores
from optimsyn.influence.store.shards import VERSION, Rows
from optimsyn.influence.store.store import GradientStore, QuestionStore
from optimsyn.recipe.recipe import CountedTokens
from optimsyn.target.target import Target

HERE = Path(__file__).parent
QUESTIONS = samples(7, seed=50, subtasks=("a", "b"))


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target("llama", dtype=torch.float32)


def fill(folder: Path, target: Target, count: int = 12, **options: object) -> tuple[GradientStore, QuestionStore]:
    pool = GradientStore.open_or_create(folder / "pool", target, **options)  # type: ignore[arg-type]
    pool.add(samples(count), batch_tokens=300)
    options.pop("dtype", None)
    asked = QuestionStore.open_or_create(folder / "asked", target, **options)  # type: ignore[arg-type]
    asked.add(QUESTIONS, batch_tokens=300)
    return pool, asked


def close(found: Scores, wanted: Scores, tolerance: float = 1e-5) -> None:
    assert found.ids == wanted.ids and found.subtasks == wanted.subtasks
    for name in ("total", "by_subtask", "gradient_norm", "loss", "label_tokens"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("estimator", ["adam", "adam_momentum_free", "adam_linear", "sgd", "less"])
@pytest.mark.parametrize("normalization", ["cosine", "dot"])
def test_without_projection_it_is_the_scorer(
    tmp_path: Path, target: Target, estimator: str, normalization: Any
) -> None:
    pool, asked = fill(tmp_path, target, estimator=estimator, projection=None, dtype="float32")
    order = [sample.id for sample in samples(12)]
    kinds: tuple[Any, ...] = ("plain", "unit", "probability")
    # One store answers for both: its rows have length 1, and what length they had stands beside them.
    for kind in kinds:
        scorer = InfluenceScorer(
            target, QUESTIONS, estimator=estimator, normalization=normalization, question_gradients=kind
        )
        found = pool.score(asked, normalization=normalization, question_gradients=kind, ids=order)
        close(found, scorer.score(samples(12)))
    default = pool.score(asked, normalization=normalization, ids=order)
    close(
        default, InfluenceScorer(target, QUESTIONS, estimator=estimator, normalization=normalization).score(samples(12))
    )
    with pytest.raises(RecipeError, match=r"influence\.question_gradients: 'mean' is none of plain, unit, probability"):
        asked.directions("mean")  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", ["mean", "root", "sum"])
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_probabilities_are_those_of_what_counts(tmp_path: Path, target: Target, reduction: Any, end: float) -> None:
    tokens = CountedTokens(reduction=reduction, end_of_questions=end)
    pool, asked = fill(tmp_path, target, projection=None, dtype="float32", tokens=tokens)
    scorer = InfluenceScorer(target, QUESTIONS, question_gradients="probability", tokens=tokens)
    found = pool.score(asked, question_gradients="probability", ids=[sample.id for sample in samples(12)])
    close(found, scorer.score(samples(12)))


def test_a_part_of_an_end_has_no_probability(tmp_path: Path, target: Target) -> None:
    _, asked = fill(tmp_path, target, tokens=CountedTokens(end_of_questions=0.5))
    with pytest.raises(RecipeError, match=r"asked: .*end_of_questions to 0 or 1, and store the questions again"):
        asked.directions("probability")


def test_half_precision_rounds_little_even_where_gradients_are_below_its_range(tmp_path: Path, target: Target) -> None:
    pool, asked = fill(tmp_path, target, estimator="sgd", projection=None)
    scorer = InfluenceScorer(target, QUESTIONS, estimator="sgd", normalization="cosine")
    found = pool.score(asked, normalization="cosine", ids=[sample.id for sample in samples(12)])
    close(found, scorer.score(samples(12)), 1e-3)
    tiny = torch.tensor([[1e-9, -3e-9, 0.0], [0.0, 0.0, 0.0]])
    from optimsyn.influence.store.writer import scaled_to_one

    scales, values = scaled_to_one(tiny)
    again = values.astype(np.float16).astype(np.float64) * scales[:, None]
    np.testing.assert_allclose(again, tiny.double().numpy(), rtol=1e-3)


def test_several_checkpoints_and_max_across_subtasks(tmp_path: Path) -> None:
    target = tiny_target("gemma", dtype=torch.float32)
    target.warm_up(samples(6, seed=3), steps=6, batch_size=2, lr=1e-2, checkpoints=3)
    # Unlike weights, which a constant learning rate would not give.
    target.checkpoints = [type(c)(**{**c.__dict__, "lr": c.lr * (i + 1)}) for i, c in enumerate(target.checkpoints)]
    pool, asked = fill(tmp_path, target, projection=None, dtype="float32")
    kinds: tuple[Any, ...] = ("plain", "unit", "probability")
    for kind in kinds:
        scorer = InfluenceScorer(target, QUESTIONS, across_subtasks="max", question_gradients=kind)
        found = pool.score(asked, across_subtasks="max", question_gradients=kind, ids=[s.id for s in samples(12)])
        close(found, scorer.score(samples(12)))


@given(
    seed=st.integers(0, 2**16), shape=st.sampled_from([(12, 9), (3, 20), (20, 3), (11,)]), size=st.sampled_from([4, 6])
)
@settings(deadline=None, max_examples=20)
def test_projected_inner_products_are_unbiased_and_spread_as_documented(
    seed: int, shape: tuple[int, ...], size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    pair[1] += 0.5 * pair[0]
    found = []
    for k in range(300):
        rows = Layout({"w": shape}, Projection(size, size, seed=1000 * seed + k)).project("w", pair)
        found.append(float(rows[0] @ rows[1]))
    truth = float((pair[0] * pair[1]).sum())
    sides = [2 / size for length in shape if length > size]
    bound = sum(sides) + (sides[0] * sides[1] if len(sides) == 2 else 0)
    spread = (bound * float(pair[0].square().sum() * pair[1].square().sum())) ** 0.5
    assert abs(np.mean(found) - truth) < 5 * spread / 300**0.5
    assert np.var(found) < 1.3 * spread**2


def test_sides_that_are_small_stay_exact_and_matrices_come_back_from_the_seed() -> None:
    projection = Projection(8, 4, seed=3)
    assert projection.matrix("w", "out", 8) is None
    first, again = projection.matrix("w", "in", 9), Projection(8, 4, seed=3).matrix("w", "in", 9)
    assert first is not None and again is not None and torch.equal(first, again)
    assert first.shape == (4, 9) and torch.equal(first.abs(), torch.full_like(first, 0.5))
    other = projection.matrix("v", "in", 9)
    assert other is not None and not torch.equal(first, other)
    layout = Layout({"w": (8, 9), "b": (8,)}, projection)
    assert layout.widths == {"w": 32, "b": 8} and layout.width == 40
    with pytest.raises(RecipeError, match=r"projection\.in_size: 0"):
        Projection(8, 0)


def test_ranks_survive_the_projection(tmp_path: Path, target: Target) -> None:
    pool, asked = fill(tmp_path, target, count=80, projection=Projection(8, 8))
    exact = InfluenceScorer(target, QUESTIONS, normalization="cosine").score(samples(80))
    found = pool.score(asked, normalization="cosine", ids=exact.ids)
    assert pool.manifest["width"] < sum(p.numel() for p in target.parameters.values())
    assert spearmanr(found.total.numpy(), exact.total.numpy()).statistic > 0.8


def test_a_stale_store_is_refused_by_what_differs(tmp_path: Path, target: Target) -> None:
    fill(tmp_path, target)
    pool = tmp_path / "pool"
    with pytest.raises(ModelError, match=r'another estimator \(there: "adam_linear", here: "sgd"\)'):
        GradientStore.open_or_create(pool, target, estimator="sgd")
    with pytest.raises(ModelError, match=r"another tokens .*end_of_pairs.*delete this one"):
        GradientStore.open_or_create(pool, target, tokens=CountedTokens(end_of_pairs=1.0))
    with pytest.raises(ModelError, match=r"another projection .*seed.*delete this one"):
        GradientStore.open_or_create(pool, target, projection=Projection(seed=1))
    with pytest.raises(ModelError, match="another dtype"):
        GradientStore.open_or_create(pool, target, dtype="float32")
    with pytest.raises(ModelError, match="another target"):
        GradientStore.open_or_create(pool, tiny_target("llama", dtype=torch.float32, seed=1))
    later = tiny_target("llama", dtype=torch.float32)
    later.warm_up(samples(6, seed=9), steps=2, batch_size=2)
    with pytest.raises(ModelError, match="another checkpoints"):
        GradientStore.open_or_create(pool, later)
    with pytest.raises(ModelError, match="is a store of samples, not of questions"):
        QuestionStore.open(pool)
    other = QuestionStore.open_or_create(tmp_path / "other", target, projection=Projection(seed=5))
    with pytest.raises(ModelError, match="another projection .* store the questions again"):
        GradientStore.open(pool).score(other)
    with pytest.raises(ModelError, match="no warm-up checkpoint"):
        fresh = tiny_target("llama", dtype=torch.float32)
        fresh.checkpoints = []
        GradientStore.open_or_create(tmp_path / "new", fresh)
    with pytest.raises(ModelError, match="holds no gradient store"):
        GradientStore.open(tmp_path)


def test_the_same_text_twice_is_one_row_and_another_text_is_refused(tmp_path: Path, target: Target) -> None:
    store = GradientStore.open_or_create(tmp_path / "pool", target)
    some = samples(5)
    assert store.add([*some, some[0], some[3]]) == 5
    assert store.add(iter(some)) == 0
    assert len(store) == 5 and set(store.ids) == {sample.id for sample in some}
    changed = some[2].model_copy(update={"completion": " other"})
    with pytest.raises(DataError, match=r"'s0-2' is already there with another text; give the changed sample a new id"):
        store.add([changed])
    twice = samples(1, seed=4)[0]
    with pytest.raises(DataError, match="another text"):
        store.add([twice, twice.model_copy(update={"completion": " other"})])
    assert len(GradientStore.open(store.folder)) == 5
    with pytest.raises(DataError, match="has no sample 'nobody'"):
        store.score(QuestionStore.open_or_create(tmp_path / "asked", target), ids=["nobody"])
    asked = QuestionStore.open_or_create(tmp_path / "asked", target)
    with pytest.raises(DataError, match="holds no question"):
        store.score(asked)
    asked.add(QUESTIONS)
    with pytest.raises(DataError, match="changed question"):
        asked.add([QUESTIONS[0].model_copy(update={"subtask": "c"})])
    with pytest.raises(ModelError, match="use open_or_create"):
        GradientStore.open(store.folder).add(some)
    assert len(store.score(asked, ids=[])) == 0


def test_what_one_process_adds_another_writer_keeps(tmp_path: Path, target: Target) -> None:
    first = GradientStore.open_or_create(tmp_path, target)
    second = GradientStore.open_or_create(tmp_path, target)
    first.add(samples(4))
    assert second.add(samples(6)) == 2
    with FileLock(tmp_path / "writer.lock"), pytest.raises(ModelError, match="another process is adding"):
        second.add(samples(1, seed=8))
    assert len(GradientStore.open(tmp_path)) == 6


def test_shards_and_torn_index(tmp_path: Path) -> None:
    manifest = {"version": VERSION, "checkpoints": [{}], "width": 3, "dtype": "float32", "rows_per_shard": 4}
    Rows.create(tmp_path, manifest)
    rows = Rows(tmp_path)

    def put(into: Rows, first: int, count: int) -> None:
        records = np.zeros(count, dtype=into.record)
        records["values"][:, 0] = np.arange(first, first + count)[:, None]
        names = [f"é{i}" for i in range(first, first + count)]
        with into.writing():
            into.append(names, list(range(first, first + count)), [""] * count, records)

    put(rows, 0, 3)
    put(rows, 3, 7)
    assert sorted(file.name for file in tmp_path.glob("rows-*")) == [f"rows-0000{i}.bin" for i in range(3)]
    wanted = np.array([9, 0, 4, 3, 8])
    assert rows.read(wanted)["values"][:, 0, 0].tolist() == wanted.tolist()
    # Killed while the index was written: the last line ends inside of a letter.
    index = tmp_path / "index.jsonl"
    whole = index.read_bytes()
    index.write_bytes(whole[: whole.rindex("é".encode()) + 1])
    again = Rows(tmp_path)
    assert len(again.ids) == 9
    put(again, 9, 3)
    last = Rows(tmp_path)
    assert list(last.ids) == [f"é{i}" for i in range(12)]
    assert last.read(np.arange(12))["values"][:, 0, 2].tolist() == list(range(12))
    (tmp_path / "rows-00001.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"rows-00001.bin: 0 bytes, too short for the 4 rows"):
        Rows(tmp_path)


ADD = """
import sys, torch
from pathlib import Path
from influence_helpers import samples, tiny_target
from optimsyn.influence.store.store import GradientStore
store = GradientStore.open_or_create(Path(sys.argv[1]), tiny_target("llama", dtype=torch.float32))
store.add(samples(150), batch_tokens=200)
"""


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_kill_9_loses_and_doubles_nothing(tmp_path: Path, target: Target) -> None:
    folder = tmp_path / "pool"
    process = child(ADD, str(folder))
    index, deadline = folder / "index.jsonl", time.monotonic() + 300
    while not (index.is_file() and index.read_bytes().count(b"\n") > 10):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    # As if the kill had come later: records without lines, and half a line.
    shard = folder / "rows-00000.bin"
    shard.write_bytes(shard.read_bytes() + b"\xff" * 10_000)
    with index.open("ab") as file:
        file.write(b'{"id": "s0-')
    kept = len(GradientStore.open(folder))
    assert 10 < kept < 150
    again = GradientStore.open_or_create(folder, target)
    assert again.add(samples(150), batch_tokens=2000) == 150 - kept
    store = GradientStore.open(folder)
    assert len(store.ids) == 150 and set(store.ids) == {sample.id for sample in samples(150)}
    # Not only counted: every row is the one that an undisturbed writer makes.
    calm = GradientStore.open_or_create(tmp_path / "calm", target)
    calm.add(samples(150), batch_tokens=2000)
    asked = QuestionStore.open_or_create(tmp_path / "asked", target)
    asked.add(QUESTIONS)
    close(store.score(asked, ids=calm.ids), calm.score(asked), 1e-3)


ASK = """
import sys
from pathlib import Path
from optimsyn.influence.store.store import GradientStore, QuestionStore
pool, asked = (GradientStore.open(Path(sys.argv[1])), QuestionStore.open(Path(sys.argv[2])))
scores = pool.score(asked, normalization="cosine")
assert not {"transformers", "peft", "tokenizers"} & set(sys.modules)
import json
print(json.dumps([list(scores.ids), scores.total.tolist()]))
"""


def test_a_second_question_set_is_answered_without_the_model(tmp_path: Path, target: Target) -> None:
    pool, _ = fill(tmp_path, target)
    second = QuestionStore.open_or_create(tmp_path / "second", target)
    second.add(samples(5, seed=77, subtasks=("x",)))
    process = child(ASK, str(tmp_path / "pool"), str(tmp_path / "second"))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    names, totals = json.loads(out)
    here = pool.score(second, normalization="cosine")
    assert tuple(names) == here.ids and totals == pytest.approx(here.total.tolist(), abs=1e-12)
    assert here.subtasks == ("x",) and re.fullmatch("s0-\\d+", names[0])
