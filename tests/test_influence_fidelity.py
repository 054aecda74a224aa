"""Counterfactuals, baselines and the fidelity table, against real AdamW steps, scipy and hand computation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import by_hand, flat, plain_gradient, plain_loss, samples, tiny_target
from scipy import stats

from optimsyn.errors import DataError, ModelError, RecipeError
from optimsyn.influence import baselines
from optimsyn.influence.counterfactual import LEDGER, AdamState, Counterfactuals
from optimsyn.influence.fidelity import Extra, Plan, fidelity, influence_scores, measure
from optimsyn.influence.fidelity_report import PAPER, FidelityReport
from optimsyn.influence.fidelity_statistics import LDS, CellStatistics, FidelityCell, Subsets, estimate, spearman
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.models.target import Target
from optimsyn.recipe import CountedTokens

POOL, QUESTIONS, COMPANIONS = samples(12, seed=1), samples(4, seed=2, subtasks=("a", "b")), samples(6, seed=3)
SMALL = Plan(subsets=4, subset_batch=3, top_random=2, top_batch=2, batch_size=4)


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


def optimizer_at(target: Target, lr: float) -> torch.optim.AdamW:
    """A real AdamW, put where the target's last checkpoint is."""
    checkpoint = target.checkpoints[-1]
    target.load_checkpoint(checkpoint)
    optimizer = torch.optim.AdamW(target.parameters.values(), lr=lr, weight_decay=0.0)
    for name, parameter in target.parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": checkpoint.exp_avg[name].clone(),
            "exp_avg_sq": checkpoint.exp_avg_sq[name].clone(),
        }
    return optimizer


def real_steps(target: Target, batches: list[list[int]], lr: float, clip: float | None) -> float:
    """Validation loss after torch's own steps on batches of the pool, one sample at a time."""
    optimizer = optimizer_at(target, lr)
    for batch in batches:
        optimizer.zero_grad()
        for i in batch:
            (plain_loss(target, target.encode(POOL[i])) / len(batch)).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(target.parameters.values()), clip)
        optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        found = float(torch.stack([plain_loss(target, by_hand(target, q)) for q in QUESTIONS]).mean())
    target.load_checkpoint(target.checkpoints[-1])
    return found


@pytest.mark.parametrize("clip", [None, 1.0, 0.01])
def test_a_step_is_torchs_own(target: Target, clip: float | None) -> None:
    optimizer = optimizer_at(target, 1e-2)
    state = AdamState.of(target, target.checkpoints[-1])
    generator = torch.Generator().manual_seed(0)
    for size in (1e-6, 1.0, 30.0):
        gradient = torch.randn(len(state.weights), generator=generator, dtype=torch.float64) * size
        offset = 0
        for parameter in target.parameters.values():
            parameter.grad = gradient[offset : offset + parameter.numel()].view_as(parameter).clone()
            offset += parameter.numel()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(target.parameters.values()), clip)
        optimizer.step()
        state = state.step(gradient, lr=1e-2, max_grad_norm=clip)
        real = torch.cat([parameter.detach().flatten() for parameter in target.parameters.values()])
        torch.testing.assert_close(state.weights, real, rtol=1e-12, atol=1e-14)
    for parameter in target.parameters.values():
        parameter.grad = None
    target.load_checkpoint(target.checkpoints[-1])


@pytest.mark.parametrize("clip", [None, 1.0])
def test_truths_are_those_of_real_training(target: Target, clip: float | None) -> None:
    facts = Counterfactuals(target, POOL, QUESTIONS, batch_size=4, max_grad_norm=clip, lr=3e-3, seed=5)
    start = real_steps(target, [], 3e-3, clip)
    assert facts.start() == pytest.approx(start, rel=1e-12)
    lone, in_batch = facts.lone(), facts.in_batch()
    drawn = facts._rows
    assert len(drawn) == 5
    for i in (drawn[0], drawn[4], next(i for i in range(12) if i not in drawn)):
        assert float(lone[i]) == pytest.approx(start - real_steps(target, [[i]], 3e-3, clip), rel=1e-6)
        rows = [row for row in drawn if row != i][:4]
        expected = real_steps(target, [rows], 3e-3, clip) - real_steps(target, [[*rows, i]], 3e-3, clip)
        assert float(in_batch[i]) == pytest.approx(expected, rel=1e-5, abs=2e-8)


def test_a_subset_is_trained_on_in_order(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = Counterfactuals(target, POOL, QUESTIONS, batch_size=4, lr=3e-3)
    orders: list[list[int]] = []

    class Order:
        def __init__(self, _: object) -> None: ...

        def shuffle(self, items: list[int]) -> None:
            items.reverse()
            orders.append(list(items))

    start = facts.start()
    monkeypatch.setattr("optimsyn.influence.counterfactual.random.Random", Order)
    found = facts.subset([0, 3, 4, 7, 9], batch_size=2, epochs=2)
    assert orders == [[9, 7, 4, 3, 0]] * 2
    batches = [[9, 7], [4, 3], [0]] * 2
    assert found == pytest.approx(start - real_steps(target, batches, 3e-3, 1.0), rel=1e-6)


def test_gradients_and_companions(target: Target) -> None:
    facts = Counterfactuals(target, POOL, QUESTIONS, companions=COMPANIONS, batch_size=4, lr=3e-3)
    expected = plain_gradient(target, target.encode(POOL[3]))
    in_order = torch.cat([expected[name].flatten() for name in target.parameters])
    torch.testing.assert_close(facts.gradients()[3], in_order, rtol=1e-9, atol=1e-12)
    rows = facts.gradients("companions")[facts._rows]
    assert rows.shape[0] == 4
    stepped = facts.state.step((rows.sum(0) + in_order) / 5, lr=3e-3, max_grad_norm=1.0)
    torch.testing.assert_close(facts._step_on_batch(facts._rows, 3).weights, stepped.weights)
    assert flat(expected).norm() > 0


def test_the_adapter_is_left_at_its_checkpoint(target: Target) -> None:
    Counterfactuals(target, POOL, QUESTIONS, batch_size=4, lr=0.5).lone()
    for name, parameter in target.parameters.items():
        assert torch.equal(parameter, target.checkpoints[-1].state[name])


def test_a_killed_run_continues(target: Target, tmp_path: Path) -> None:
    done: list[str] = []

    def make(stop_after: int | None = None) -> Counterfactuals:
        def told(key: str, seconds: float) -> None:
            done.append(key)
            if stop_after is not None and len(done) == stop_after:
                raise KeyboardInterrupt

        return Counterfactuals(target, POOL, QUESTIONS, batch_size=4, folder=tmp_path, on_result=told)

    with pytest.raises(KeyboardInterrupt):
        make(5).lone()
    ledger = tmp_path / LEDGER
    with ledger.open("a") as file:
        file.write('{"key": "lone/4", "lo')
    continued = make().lone()
    # start and twelve samples, each once: what the kill tore off was done again.
    assert len(done) == len(set(done)) == 13
    fresh = Counterfactuals(target, POOL, QUESTIONS, batch_size=4).lone()
    torch.testing.assert_close(continued, fresh, rtol=0, atol=0)
    made = make()
    assert torch.equal(made.lone(), fresh) and len(done) == 13
    # The gradients come from their file.
    assert np.array_equal(np.load(tmp_path / "gradients-pool.npy"), made.gradients().numpy())


def test_a_folder_of_something_else_is_refused(target: Target, tmp_path: Path) -> None:
    Counterfactuals(target, POOL, QUESTIONS, batch_size=4, folder=tmp_path)
    for changed in (
        {"seed": 1},
        {"lr": 0.1},
        {"max_grad_norm": None},
        {"held_out": COMPANIONS},
        {"tokens": CountedTokens(end_of_pairs=0.5)},
    ):
        with pytest.raises(DataError, match="another target, pool, question set or setting"):
            Counterfactuals(target, POOL, QUESTIONS, **{"batch_size": 4, "folder": tmp_path, **changed})
    with pytest.raises(DataError, match="another target"):
        Counterfactuals(target, POOL[1:], QUESTIONS, batch_size=4, folder=tmp_path)


def test_what_cannot_be_measured_is_refused(target: Target) -> None:
    with pytest.raises(ModelError, match="warm-up"):
        Counterfactuals(tiny_target(warm=False), POOL, QUESTIONS)
    with pytest.raises(DataError, match="at least one sample"):
        Counterfactuals(target, [], QUESTIONS)
    with pytest.raises(DataError, match="needs 13 samples, there are 12"):
        Counterfactuals(target, POOL, QUESTIONS, batch_size=12)
    facts = Counterfactuals(target, POOL, QUESTIONS, batch_size=4)
    with pytest.raises(DataError, match="held-out"):
        facts.lone(held_out=True)
    with pytest.raises(DataError, match="at least one sample"):
        facts.subset([])
    with pytest.raises(RecipeError, match="nonsense"):
        influence_scores(facts, ["all"] * 4, ["nonsense"])
    with pytest.raises(DataError, match="'mine' has 2 values for 12"):
        measure(target, POOL, QUESTIONS, truths=(), plan=SMALL, extra=Extra({"mine": [1.0, 2.0]}))
    with pytest.raises(DataError, match="at least one cell"):
        FidelityReport.of([])


@pytest.mark.parametrize("tokens", [CountedTokens(), CountedTokens(end_of_pairs=0.3, reduction="root")], ids=str)
@pytest.mark.parametrize("estimator", ["adam", "adam_momentum_free", "adam_linear", "sgd", "less"])
def test_scores_are_those_of_the_scorer(target: Target, estimator: str, tokens: CountedTokens) -> None:
    facts = Counterfactuals(target, POOL, QUESTIONS, tokens=tokens, batch_size=4)
    found = influence_scores(facts, [q.subtask for q in QUESTIONS], [estimator])
    for normalization in ("cosine", "dot"):
        scorer = InfluenceScorer(
            target,
            QUESTIONS,
            estimator=estimator,
            normalization=normalization,  # type: ignore[arg-type]
            tokens=tokens,
        )
        scores = scorer.score(POOL)
        torch.testing.assert_close(facts.losses("scored"), scores.loss, rtol=1e-9, atol=0)
        expected = scores.total
        mine = found[f"{estimator} {normalization}"]
        # The scorer divides a dot by a constant.
        scale = float(expected.norm() / mine.norm()) if normalization == "dot" else 1.0
        torch.testing.assert_close(mine * scale, expected, rtol=1e-6, atol=1e-9)


def test_small_steps_do_what_the_exact_dot_says(target: Target) -> None:
    """With so small a learning rate that only first order counts, the plain-mean dot of Adam is the lone truth.

    A step learns the end of the text too, so it has to count in the score.
    """
    tokens = CountedTokens(end_of_pairs=1.0)
    facts = Counterfactuals(target, POOL, QUESTIONS, tokens=tokens, batch_size=4, lr=1e-5, max_grad_norm=None)
    found = influence_scores(facts, ["all"] * len(QUESTIONS), ["adam"])["adam dot, plain mean"]
    torch.testing.assert_close(facts.lone() / 1e-5, found, rtol=5e-3, atol=2e-3)


def test_bm25_by_hand() -> None:
    pool = samples(5, seed=7)
    query = pool[2]
    found = baselines.bm25_scores(pool, [query])
    documents = [baselines._WORD.findall(baselines.text_of(item).lower()) for item in pool]
    mean_length = sum(map(len, documents)) / len(documents)
    expected = []
    for words in documents:
        total = 0.0
        for word in documents[2]:
            holding = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            count = words.count(word)
            total += idf * count / (count + 1.5 * (0.25 + 0.75 * len(words) / mean_length))
        expected.append(total)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert int(found.argmax()) == 2
    # Words that the pool has not are no match.
    assert not baselines.bm25_scores(
        [pool[0]], [samples(1, seed=99)[0].model_copy(update={"prompt": "", "completion": "zz"})]
    ).any()


def test_embeddings_by_hand(target: Target) -> None:
    table = {
        baselines.text_of(item): torch.randn(3, generator=torch.Generator().manual_seed(i))
        for i, item in enumerate(POOL)
    }
    found = baselines.embedding_scores(POOL, POOL[:2], lambda texts: torch.stack([table[text] for text in texts]))
    one, two = (table[baselines.text_of(item)].double() for item in POOL[:2])
    mean = (one / one.norm() + two / two.norm()) / 2
    expected = [
        float(
            table[baselines.text_of(item)].double()
            @ mean
            / table[baselines.text_of(item)].double().norm()
            / mean.norm()
        )
        for item in POOL
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    embedded = baselines.BaseModelEmbedder(target)(["one text", "another"])
    with target.model.disable_adapter(), torch.no_grad():
        ids = target.tokenizer("another", return_tensors="pt")["input_ids"]
        hidden = target.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
    torch.testing.assert_close(embedded[1], hidden)


VALUES = st.lists(st.integers(-4, 4).map(float), min_size=6, max_size=20)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_spearman_is_scipys(data: st.DataObject) -> None:
    x = data.draw(VALUES)
    y = data.draw(st.lists(st.integers(-4, 4).map(float), min_size=len(x), max_size=len(x)))
    found = float(spearman(np.array(x), np.array(y)))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=1e-9)


def test_partial_spearman_is_the_one_of_residuals() -> None:
    generator = np.random.default_rng(0)
    x, y, a, b = generator.normal(size=(4, 30))
    x, y = x + a, y + 2 * a - b
    ranked = [stats.rankdata(values) for values in (x, y, a, b)]
    design = np.stack([np.ones(30), ranked[2], ranked[3]], axis=1)
    rest = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in ranked[:2]]
    assert float(spearman(x, y, [a, b])) == pytest.approx(np.corrcoef(*rest)[0, 1], abs=1e-9)
    # A control that is the score itself leaves nothing; one that repeats another changes nothing.
    assert math.isnan(float(spearman(a, y, [a, b])))
    assert float(spearman(x, y, [a, b, a])) == pytest.approx(float(spearman(x, y, [a, b])))


def cell_of(seed: int, name: str = "") -> FidelityCell:
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=40)
    good, bad = truth + 0.2 * generator.normal(size=40), generator.normal(size=40)
    members = tuple(tuple(sorted(generator.choice(40, 20, replace=False).tolist())) for _ in range(10))
    return FidelityCell(
        name=name,
        ids=tuple(map(str, range(40))),
        scores={PAPER: tuple(bad), "good": tuple(good), "same": (1.0,) * 40},
        truths={"in_batch": tuple(truth)},
        length=tuple(generator.integers(1, 9, 40).astype(float)),
        gradient_norm=tuple(generator.random(40)),
        subsets=Subsets(members, tuple(float(truth[list(m)].sum()) for m in members)),
        top={"random": [0.1, 0.3], "good": [0.5, -0.1]},
        start_loss=2.0,
        questions=4,
    )


def test_the_report_by_hand() -> None:
    cells = [cell_of(1, "one"), cell_of(2, "two")]
    report = FidelityReport.of(cells, resamples=200)
    row = {row.score: row for row in report.rows}
    assert report.rows[0].score == "good" and report.rows[-1].score == "same"
    each = [stats.spearmanr(cell.scores["good"], cell.truths["in_batch"]).statistic for cell in cells]
    paper = [stats.spearmanr(cell.scores[PAPER], cell.truths["in_batch"]).statistic for cell in cells]
    found = row["good"].spearman["in_batch"]
    assert found.value == pytest.approx(np.mean(each)) and found.cells == 2
    assert found.low is not None and found.high is not None and found.low < found.value < found.high < 1
    assert row["good"].against_paper["in_batch"].value == pytest.approx(np.mean(each) - np.mean(paper))
    assert row[PAPER].against_paper["in_batch"].high == 0
    assert row["same"].spearman["in_batch"].value is None and row["same"].spearman[LDS].value is None
    assert report.random == pytest.approx(0.2)
    assert row["good"].top == pytest.approx(0.3) and row["good"].bottom == pytest.approx(-0.3)
    lds = []
    for cell in cells:
        assert cell.subsets is not None
        sums = [sum(cell.scores["good"][i] for i in m) for m in cell.subsets.members]
        lds.append(stats.spearmanr(sums, cell.subsets.decreases).statistic)
    assert row["good"].spearman[LDS].value == pytest.approx(np.mean(lds))
    assert report.by_cell["two"]["in_batch"]["good"] == pytest.approx(each[1])


def test_resamples_are_shared_and_seeded() -> None:
    one, two = CellStatistics(cell_of(1), 50, 3), CellStatistics(cell_of(1), 50, 3)
    assert np.array_equal(one.spearman("good", "in_batch"), two.spearman("good", "in_batch"), equal_nan=True)
    drawn = one._samples[7]
    cell = cell_of(1)
    again = stats.spearmanr(np.array(cell.scores["good"])[drawn], np.array(cell.truths["in_batch"])[drawn]).statistic
    assert one.spearman("good", "in_batch")[7] == pytest.approx(again)


def test_an_estimate_averages_what_is_defined() -> None:
    nan = math.nan
    found = estimate([np.array([0.5, 0.4, nan]), np.array([0.1, nan, nan]), np.array([nan, 1.0, 1.0])])
    assert found.value == pytest.approx(0.3) and found.cells == 2 and found.low == found.high == pytest.approx(0.4)
    assert estimate([np.array([nan, 1.0])]).text() == "–"
    assert estimate([np.array([-0.25, -0.25])]).text() == "-.25 [-.25, -.25]"
    assert estimate([np.array([1.0, 1.0])]).text(interval=False) == "1.00"


def test_everything_in_one_go(target: Target, tmp_path: Path) -> None:
    report = fidelity(
        target,
        POOL,
        QUESTIONS,
        plan=SMALL,
        held_out=COMPANIONS,
        extra=Extra({"mine": list(range(12))}),
        folder=tmp_path / "work",
        resamples=50,
    )
    assert report.truths == ("in_batch", "in_batch held out", "lone", "lone held out", LDS)
    names = {row.score for row in report.rows}
    assert {"adam cosine", "less dot", "sgd dot, plain mean", "BM25", "mine", "random", "answer length"} <= names
    row = {row.score: row for row in report.rows}
    assert row["answer length"].partial["lone"].value is None
    assert row["answer length"].with_length.value == pytest.approx(1)
    report.save(tmp_path)
    kept = json.loads((tmp_path / "fidelity.json").read_text())
    assert len(kept["rows"]) == len(report.rows)
    table = (tmp_path / "fidelity.md").read_text()
    assert "| BM25 |" in table and "in-batch, held out" in table
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    assert (tmp_path / "fidelity.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_comes_back_from_its_file(tmp_path: Path) -> None:
    cell = cell_of(4, "four")
    cell.save(tmp_path / "cell.json")
    back = FidelityCell.load(tmp_path / "cell.json")
    assert FidelityReport.of([back], resamples=20) == FidelityReport.of([cell], resamples=20)
    (tmp_path / "cell.json").write_text("{")
    with pytest.raises(DataError, match=r"cell\.json"):
        FidelityCell.load(tmp_path / "cell.json")
