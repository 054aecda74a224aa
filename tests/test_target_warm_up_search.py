"""A warm-up that ends by evidence: its rules, and what it leaves against plain PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from influence_helpers import byte_tokenizer, modules_of, plain_loss, samples, tiny, tiny_target

from optimsyn.base.errors import ModelError
from optimsyn.recipe.recipe import Lora
from optimsyn.target.target import Target, train_full_weights
from optimsyn.target.warm_up import search as warm_up_search
from optimsyn.target.warm_up.checkpoints import Checkpoint, epochs
from optimsyn.target.warm_up.curve import Search, WarmUpCurve
from optimsyn.target.warm_up.measure import measure

QUESTIONS = samples(6, seed=50)
PAIRS = samples(12, seed=60)
SEARCH = Search(max_steps=16, every=4, around=1e-3)


def same(found: Checkpoint, expected: Checkpoint) -> bool:
    return found.fingerprint == expected.fingerprint


def quick_learner(*, chat: bool = False) -> Target:
    """A tiny model whose output layer is trained too, so that it learns form and content within a few steps."""
    model = tiny("llama", dtype=torch.float32)
    train_full_weights(model, ["down_proj", "lm_head"])
    return Target.from_model(model, byte_tokenizer(chat=chat), lora=None, max_length=200)


@pytest.mark.parametrize("chat", [False, True])
def test_a_look_measures_form_and_content_apart(chat: bool) -> None:
    target = tiny_target(warm=False, chat=chat)
    encoded = [target.encode(item) for item in QUESTIONS]
    found = measure(target, encoded, encoded[:2], batch_tokens=90)
    for place, item in enumerate(encoded):
        assert item.end_tokens == 1
        ids = torch.tensor([item.input_ids])
        with torch.no_grad():
            logits = target.model(input_ids=ids).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        # A template may put a line break behind the end token.
        each = each[torch.tensor(item.labels[1:]) != -100]
        assert found.end[place] == pytest.approx(float(each[-1]))
        assert found.first[place] == pytest.approx(float(each[0]))
        assert found.content[place] == pytest.approx(float(each[:-1].mean()))
    assert found.unseen == found.content[:2]
    assert measure(target, encoded, []).unseen == ()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_checkpoint_is_that_of_a_plain_run_at_the_rate_and_steps_that_were_found(dropout: float) -> None:
    def made() -> Target:
        lora = Lora(r=2, alpha=4, dropout=dropout, target_modules=modules_of("llama"))
        return Target.from_model(
            tiny("llama", dtype=torch.float32), byte_tokenizer(), lora=lora, max_length=200, seed=1
        )

    target, plain = made(), made()
    told: list[tuple[int, int]] = []
    kept = target.warm_up(
        PAIRS, questions=QUESTIONS, search=SEARCH, seed=3, checkpoints=2, report=lambda *step: told.append(step)
    )
    curve = target.curve
    assert curve is not None
    assert curve.lr in {rate.lr for rate in curve.rates} == {5e-4, 1e-3, 2e-3}
    assert kept[-1].step == curve.steps >= 12
    assert (curve.trained_on, curve.held_out, curve.questions) == (10, 2, 6)
    assert len(told) <= told[-1][1] == 12 + 16
    train, _ = SEARCH.split(PAIRS)
    alone = plain.warm_up(train, steps=curve.steps, lr=curve.lr, seed=3)
    assert same(kept[-1], alone[-1])
    assert kept[0].losses + kept[1].losses == alone[-1].losses == curve.losses
    middle = made().warm_up(train, steps=kept[0].step, lr=curve.lr, seed=3)
    assert same(kept[0], middle[-1])
    for name, parameter in target.parameters.items():
        assert torch.equal(parameter, kept[-1].state[name])
        assert parameter.grad is None
    assert not target.model.training


def test_moments_at_the_checkpoint_are_those_of_a_real_adamw() -> None:
    target, reference = tiny_target(warm=False), tiny_target(warm=False)
    (kept,) = target.warm_up(PAIRS, questions=QUESTIONS, search=SEARCH, seed=2, max_grad_norm=0.5)
    curve = target.curve
    assert curve is not None
    assert [look.step for look in curve.looks][:4] == [0, 4, 8, 12]
    encoded = [reference.encode(pair) for pair in SEARCH.split(PAIRS)[0]]
    optimizer = torch.optim.AdamW(reference.parameters.values(), lr=curve.lr, weight_decay=0.0)
    order = epochs(len(encoded), 4, 2)
    for _ in range(kept.step):
        optimizer.zero_grad()
        torch.stack([plain_loss(reference, encoded[i]) for i in next(order)]).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(reference.parameters.values(), 0.5)
        optimizer.step()
    for name, parameter in reference.parameters.items():
        torch.testing.assert_close(kept.exp_avg[name], optimizer.state[parameter]["exp_avg"], rtol=1e-6, atol=1e-14)
        torch.testing.assert_close(
            kept.exp_avg_sq[name], optimizer.state[parameter]["exp_avg_sq"], rtol=1e-6, atol=1e-16
        )
        torch.testing.assert_close(kept.state[name], parameter.detach(), rtol=1e-6, atol=1e-10)
    assert curve.last is not None
    # What was recorded of the checkpoint is what the model now gives.
    now = measure(target, [target.encode(q) for q in QUESTIONS], [])
    assert curve.last.end_loss == pytest.approx(sum(now.end) / len(now.end))
    assert curve.last.question_loss == pytest.approx(sum(now.content) / len(now.content))


@pytest.mark.parametrize("chat", [False, True])
def test_a_form_that_is_learned_already_takes_the_fewest_steps(chat: bool) -> None:
    target = quick_learner(chat=chat)
    # Every answer is the same word, so that there is little but the end to learn.
    alike = [
        item.model_copy(
            update={"completion": " ab", "messages": (item.messages[0], {"role": "assistant", "content": "ab"})}
        )
        for item in PAIRS
    ]
    target.warm_up(alike, steps=16, lr=1e-1)
    target.warm_up(alike[:8], questions=alike[8:], search=SEARCH, lr=1e-4)
    curve = target.curve
    assert curve is not None
    assert curve.looks[0].end_loss is not None
    assert curve.looks[0].end_loss < 0.5
    assert (curve.stopped, curve.steps, curve.why_lr, curve.rates) == ("settled", 12, "given", ())


def test_a_form_that_never_settles_takes_the_most_steps() -> None:
    target = tiny_target(warm=False)
    target.warm_up(PAIRS, questions=QUESTIONS, search=SEARCH, lr=1e-7)
    curve = target.curve
    assert curve is not None
    assert (curve.stopped, curve.steps) == ("most steps", 16)
    assert "had not settled" in curve.why


def test_it_stops_before_pairs_that_it_does_not_see_get_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up_search, "settled", lambda history: "")
    target, others = quick_learner(), samples(8, seed=70)
    search = Search(max_steps=40, every=4)
    kept = target.warm_up(PAIRS[:4], questions=QUESTIONS[:2], unseen=others, search=search, lr=1e-2)
    curve = target.curve
    assert curve is not None
    assert curve.stopped == "overfits"
    assert "8 unseen pairs rose" in curve.why
    assert kept[-1].step == curve.steps
    assert curve.looks[-1].step == curve.steps + 4 > 12
    assert (curve.trained_on, curve.held_out) == (4, 8)
    # The model is that of the checkpoint again, not of the look that was too late.
    now = measure(target, [target.encode(QUESTIONS[0])], [target.encode(item) for item in others])
    assert curve.last is not None
    assert curve.last.unseen_loss == pytest.approx(sum(now.unseen) / 8, rel=1e-5)


def test_sixteen_bits_start_each_trial_from_the_same_weights() -> None:
    def made() -> Target:
        model = tiny("llama", dtype=torch.bfloat16)
        train_full_weights(model, ["down_proj"])
        return Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)

    target = made()
    (kept,) = target.warm_up(PAIRS, questions=QUESTIONS, search=SEARCH)
    curve = target.curve
    assert curve is not None
    (alone,) = made().warm_up(SEARCH.split(PAIRS)[0], steps=curve.steps, lr=curve.lr)
    assert same(kept, alone)
    assert kept.exp_avg["model.layers.0.mlp.down_proj.weight"].dtype == torch.float32


def test_numbers_that_are_given_are_taken_and_nothing_is_looked_at() -> None:
    one, two = tiny_target(warm=False), tiny_target(warm=False)
    a = one.warm_up(PAIRS, steps=3, lr=1e-2, seed=4)
    b = two.warm_up(PAIRS, questions=QUESTIONS, steps=3, lr=1e-2, seed=4)
    assert same(a[0], b[0])
    assert two.curve is not None
    assert (two.curve.stopped, two.curve.looks, two.curve.trained_on, two.curve.lr) == ("given", (), 12, 1e-2)
    # Nobody to look at: twelve steps at the rate of a short fine-tuning.
    three = tiny_target(warm=False)
    assert [(c.step, c.lr) for c in three.warm_up(PAIRS)] == [(12, 2e-4)]
    # The steps are given, the rate is found.
    four = tiny_target(warm=False)
    (kept,) = four.warm_up(PAIRS, questions=QUESTIONS, steps=3, search=SEARCH)
    assert four.curve is not None
    assert (kept.step, four.curve.stopped, len(four.curve.rates)) == (3, "given", 3)


def test_checkpoints_have_to_fit_the_looks() -> None:
    target = tiny_target(warm=False)
    with pytest.raises(ModelError, match="4 warm-up checkpoints cannot be spread over the 3 looks"):
        target.warm_up(PAIRS, questions=QUESTIONS, search=SEARCH, checkpoints=4)
    kept = target.warm_up(PAIRS, questions=QUESTIONS, search=SEARCH, checkpoints=3, lr=1e-7)
    assert kept[-1].step == 16
    assert len({c.step for c in kept}) == 3
    assert all(c.step % 4 == 0 for c in kept)


def test_a_killed_search_leaves_the_same_and_a_finished_one_is_not_repeated(tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"questions": QUESTIONS[:2], "search": Search(8, 4, around=1e-3), "checkpoints": 2}
    expected = tiny_target(warm=False).warm_up(PAIRS, **options, folder=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tiny_target(warm=False).warm_up(PAIRS, **options, folder=tmp_path / "killed", report=stop)
    target = tiny_target(warm=False)
    found = target.warm_up(PAIRS, **options, folder=tmp_path / "killed")
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))
    for file in (tmp_path / "whole").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "killed" / file.relative_to(tmp_path / "whole")).read_bytes()
    curve, again, steps = target.curve, tiny_target(warm=False), list[tuple[int, int]]()
    loaded = again.warm_up(PAIRS, **options, folder=tmp_path / "killed", report=lambda *step: steps.append(step))
    assert steps == []
    assert all(same(a, b) for a, b in zip(loaded, expected, strict=True))
    assert again.curve == curve
    # Other questions or settings are another warm-up.
    again.warm_up(
        PAIRS, **{**options, "questions": QUESTIONS[2:3]}, folder=tmp_path / "killed", report=lambda *s: steps.append(s)
    )
    assert steps
    third = tiny_target(warm=False)
    third.add_checkpoints_from(tmp_path / "killed")
    assert third.curve == again.curve
    raw = json.loads((tmp_path / "killed" / "curve.json").read_text())
    (tmp_path / "killed" / "curve.json").write_text(json.dumps({**raw, "looks": [{"step": 1}]}))
    with pytest.raises(ModelError, match="not a readable curve"):
        WarmUpCurve.load(tmp_path / "killed" / "curve.json")
