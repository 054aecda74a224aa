"""Similarity beside influence: halves of the questions, rank correlation, the plane, and the whole comparison."""

from __future__ import annotations

import pytest
import torch
from influence_helpers import tiny_target
from scipy.stats import spearmanr

from optimsyn.base.errors import DataError
from optimsyn.data.records import Pair, Question
from optimsyn.recipe.sections.influence import Influence
from optimsyn.study.similarity import REAL, SYNTHETIC, compare_similarity, halves, principal_plane, spearman


def question(number: int, subtask: str = "all") -> Question:
    return Question(id=f"q{number}", question=f"What is {number} plus one?", answer=str(number + 1), subtask=subtask)


def pair(number: int) -> Pair:
    return Pair(id=f"p{number}", question=f"Which number follows {number}?", answer=f"{number + 1}.", passage_id="a")


def test_every_second_question_of_each_subtask_gives_the_direction() -> None:
    questions = [question(i, "ab"[i % 3 == 0]) for i in range(9)]
    given, real = halves(questions)
    assert sorted([*given, *real], key=lambda q: q.id) == questions
    for subtask in "ab":
        sizes = [sum(q.subtask == subtask for q in side) for side in (given, real)]
        assert 0 <= sizes[0] - sizes[1] <= 1


def test_spearman_is_that_of_scipy_and_its_interval_holds_it() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, generator=generator, dtype=torch.float64)
    y = x + torch.randn(40, generator=generator, dtype=torch.float64)
    found = spearman(x.tolist(), y.tolist())
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.text().endswith("n = 40")


@pytest.mark.parametrize("x", [[1.0, 2.0, 3.0], [2.0] * 6])
def test_too_few_or_constant_samples_have_no_correlation(x: list[float]) -> None:
    found = spearman(x, list(range(len(x))))
    assert found.value is None
    assert found.text() == f"undefined, n = {len(x)}"


def test_the_plane_is_that_of_the_largest_variance_with_settled_signs() -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(30, 5, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 3.0, 0.1, 0.1, 0.1])
    plane = principal_plane(vectors)
    assert plane.shape == (30, 2)
    assert plane[:, 0].var() > plane[:, 1].var()
    torch.testing.assert_close(principal_plane(-vectors), -plane)
    assert principal_plane(vectors[:1]).tolist() == [[0.0, 0.0]]


def test_the_whole_comparison_scores_every_pair_and_half_of_the_questions() -> None:
    target = tiny_target()
    pairs = [pair(i) for i in range(6)]
    target.warm_up(pairs, steps=2, batch_size=2)
    config = Influence(batch_tokens=256)
    found = compare_similarity(target, config, [question(i) for i in range(9)], pairs)
    assert [s.kind for s in found.samples] == [SYNTHETIC] * 6 + [REAL] * 4
    assert found.questions == 5
    assert all(-1 <= sample.similarity <= 1 for sample in found.samples)
    assert {kind: c.n for kind, c in found.correlations.items()} == {"all": 10, SYNTHETIC: 6, REAL: 4}
    assert len(found.table().rows) == 3
    apart = found.apart()
    assert float(apart.rows[0][1].replace("−", "-")) >= float(apart.rows[1][1].replace("−", "-"))
    assert found.picture().png == found.picture().png
    assert "6 synthetic pairs" in found.picture().alt


def test_too_little_to_compare_is_said() -> None:
    with pytest.raises(DataError, match="1 validation question and 2 pairs"):
        compare_similarity(tiny_target(), Influence(), [question(1)], [pair(1), pair(2)])
