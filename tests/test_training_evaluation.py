"""Evaluation: shared prefixes against one plain forward pass a sequence and against `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from training_helpers import QUESTIONS, make_model, make_target, make_tokenizer

from optimsyn.base.errors import ModelError
from optimsyn.data.chat import sample_of
from optimsyn.data.records import Question
from optimsyn.recipe.recipe import Lora
from optimsyn.recipe.sections.evaluation import Evaluation
from optimsyn.target.target import Target
from optimsyn.training.evaluation import evaluate, use_adapter
from optimsyn.training.intervals import metrics_of
from optimsyn.training.likelihood import AnswerScorer

CONFIG = Evaluation(max_new_tokens=6, batch_size=2)


def plain_score(target: Target, question: Question, answer: str | None) -> float:
    """Mean log-likelihood of an answer from one unpadded forward pass over the whole text."""
    encoded = target.encode(sample_of(question, answer))
    ids = list(encoded.input_ids)
    while ids[-1] == target.tokenizer.eos_token_id or not target.tokenizer.decode(ids[-1:]).strip():
        ids.pop()
    start = len(encoded.prompt_ids)
    with torch.no_grad():
        logits = target.model(input_ids=torch.tensor([ids])).logits[0].double()
    found = F.log_softmax(logits[start - 1 : -1], dim=-1).gather(1, torch.tensor(ids[start:])[:, None])
    return float(found.mean())


def randomise_adapter(target: Target, seed: int = 1) -> None:
    """Moves the adapter away from its start, where it changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in target.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("shares", [True, False])
def test_scores_equal_one_plain_pass_a_sequence(
    kind: str, chat: bool, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_target(kind, chat=chat)
    if not shares:
        monkeypatch.setattr(target.causal, "_is_stateful", True, raising=False)
    rows = evaluate(target, QUESTIONS, CONFIG)
    assert [row["id"] for row in rows] == [question.id for question in QUESTIONS]
    with target.model.disable_adapter():
        for row, question in zip(rows, QUESTIONS, strict=True):
            assert row["loss"] == pytest.approx(-plain_score(target, question, None), abs=1e-4)
            if question.choices is not None:
                wanted = [plain_score(target, question, choice) for choice in question.choices]
                assert row["choice_scores"] == pytest.approx(wanted, abs=1e-4)
                best = wanted.index(max(wanted))
                assert row["prediction"] == question.choices[best]
                assert row["correct"] == (best == question.answer_index)
                assert row["token_f1"] is None


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_greedy_answers_equal_generate(kind: str) -> None:
    target = make_target(kind)
    free = [question for question in QUESTIONS if question.choices is None]
    rows = evaluate(target, free, Evaluation(max_new_tokens=12, batch_size=3))
    with target.model.disable_adapter():
        for row, question in zip(rows, free, strict=True):
            ids = torch.tensor([target.encode(sample_of(question)).prompt_ids])
            out = target.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
            )
            text = target.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert row["prediction"] == (text.splitlines()[0].strip() if text else "")


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target()
    scorer = AnswerScorer(target)
    plain = [question for question in QUESTIONS if question.choices is None]
    items = [scorer.prepare(question) for question in plain]
    with torch.inference_mode():
        _, before = scorer.score(items, max_new_tokens=8)
        # Each token is now the first token of some answer: that row stops at once, the others must not change.
        first = int(target.model(input_ids=torch.tensor([items[1].prompt])).logits[0, -1].argmax())
        monkeypatch.setattr(scorer, "stop_ids", {*scorer.stop_ids, first})
        _, after = scorer.score(items, max_new_tokens=8)
    assert after[1] == ""
    assert all(before[i].startswith(after[i]) for i in (0, 2))


def test_result_does_not_depend_on_the_batch_size_or_the_order() -> None:
    target = make_target("gemma")
    one = evaluate(target, QUESTIONS, Evaluation(max_new_tokens=6, batch_size=1))
    many = evaluate(target, QUESTIONS[::-1], Evaluation(max_new_tokens=6, batch_size=16))[::-1]
    for left, right in zip(one, many, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-4)
        assert left["prediction"] == right["prediction"]


@pytest.mark.parametrize("bound", ["LOGITS_AT_ONCE", "TOKENS_AT_ONCE"])
def test_options_are_scored_in_bounded_chunks(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = make_target("gemma")
    whole = evaluate(target, QUESTIONS, CONFIG)
    monkeypatch.setattr(f"optimsyn.training.likelihood.{bound}", 1)
    assert [row["loss"] for row in evaluate(target, QUESTIONS, CONFIG)] == pytest.approx(
        [row["loss"] for row in whole], abs=1e-4
    )


def test_adapter_is_put_in_for_a_while_and_the_own_one_comes_back(tmp_path: Path) -> None:
    other = make_target(seed=3)
    randomise_adapter(other)
    other.model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    wanted = [plain_score(other, question, None) for question in QUESTIONS]

    target = make_target(seed=4)
    randomise_adapter(target, seed=5)
    own = {name: parameter.detach().clone() for name, parameter in target.parameters.items()}
    own_score = plain_score(target, QUESTIONS[0], None)
    rows = evaluate(target, QUESTIONS, CONFIG, adapter=tmp_path / "adapter")
    assert [-row["loss"] for row in rows] == pytest.approx(wanted, abs=1e-4)
    untuned = evaluate(target, QUESTIONS, CONFIG)
    assert [row["loss"] for row in untuned] != pytest.approx([row["loss"] for row in rows], abs=1e-3)
    assert plain_score(target, QUESTIONS[0], None) == pytest.approx(own_score, abs=1e-6)
    names = {name for name, parameter in target.model.named_parameters() if parameter.requires_grad}
    assert names == set(own)
    assert list(target.model.peft_config) == ["default"]
    for name, parameter in target.parameters.items():
        assert torch.equal(parameter, own[name])


def test_training_mode_comes_back_also_after_an_error(tmp_path: Path) -> None:
    target = make_target()
    target.model.train()
    with use_adapter(target, None):
        assert not target.model.training
    assert target.model.training
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        evaluate(target, QUESTIONS, CONFIG, adapter=tmp_path)
    assert target.model.training


def test_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    wide = Target.from_model(make_model(), make_tokenizer(), lora=Lora(r=4, target_modules=("gate_proj",)))
    wide.model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    target = make_target("gemma")
    (tmp_path / "a" / "adapter_config.json").write_text(
        (tmp_path / "a" / "adapter_config.json").read_text().replace("gate_proj", "absent_proj")
    )
    with pytest.raises(ModelError, match="does not fit the target"):
        evaluate(target, QUESTIONS, CONFIG, adapter=tmp_path / "a")
    assert list(target.model.peft_config) == ["default"]


def test_options_of_a_cut_context_share_one_prompt() -> None:
    target = make_target(max_length=80)
    question = Question(
        id="long",
        question="Salt is?",
        answer="sodium",
        choices=("sodium", "zinc and selenium and potassium"),
        answer_index=0,
        context="Iron carries oxygen in the blood. " * 20,
    )
    item = AnswerScorer(target).prepare(question)
    shortest = min(len(target.encode(sample_of(question, choice)).prompt_ids) for choice in question.choices or ())
    assert len(item.prompt) == shortest
    assert evaluate(target, [question], CONFIG)[0]["choice_scores"] is not None


def test_no_questions_is_refused() -> None:
    with pytest.raises(ModelError, match="no test questions"):
        evaluate(make_target(), [], CONFIG)


def test_likelihood_that_is_not_finite_is_refused_by_name() -> None:
    target = make_target()
    with torch.no_grad():
        target.causal.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="'f1'"):
        evaluate(target, QUESTIONS[:1], CONFIG)


def test_progress_is_reported() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(make_target(), QUESTIONS, CONFIG, report=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert seen == sorted(seen)


@pytest.mark.slow
def test_embedded_target_agrees_with_its_own_losses() -> None:
    """The real Gemma: shared prefixes and left padding against `Target.losses` without the end-of-text label."""
    from dataclasses import replace

    loading: Any = pytest.importorskip("optimsyn.llm.local.loading")
    assert loading
    target = Target.load("embedded")
    rows = evaluate(target, QUESTIONS, Evaluation(max_new_tokens=4, batch_size=8))
    encoded = [target.encode(question) for question in QUESTIONS]
    assert all(item.input_ids[-1] == target.tokenizer.eos_token_id for item in encoded)
    cut = [replace(item, input_ids=item.input_ids[:-1], labels=item.labels[:-1]) for item in encoded]
    with torch.no_grad(), target.model.disable_adapter():
        for batch in target.batches(cut):
            for index, loss in zip(batch.indices, target.losses(batch).tolist(), strict=True):
                assert rows[index]["loss"] == pytest.approx(loss, abs=2e-3)


DIALOGUE = Question(
    id="d1",
    question="Which gland needs iodine?",
    answer="salt",
    form="dialogue",
    details={
        "messages": [
            {"role": "user", "content": "Which gland needs iodine?"},
            {"role": "assistant", "content": "the thyroid"},
            {"role": "user", "content": "What holds it?"},
            {"role": "assistant", "content": "salt"},
        ]
    },
)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("shares", [True, False])
def test_a_dialogues_loss_is_of_all_answers_and_its_words_of_the_last(
    chat: bool, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make_target("gemma", chat=chat)
    if not shares:
        monkeypatch.setattr(target.causal, "_is_stateful", True, raising=False)
    row = evaluate(target, [DIALOGUE], CONFIG)[0]
    # By hand: one pass over the whole text, the tokens of both answers.
    messages = [dict(message) for message in DIALOGUE.details["messages"]]  # type: ignore[arg-type, union-attr]
    if chat:
        text, answers = target.tokenizer.apply_chat_template(messages, tokenize=False), ("the thyroid", "salt")
    else:
        text = "User: Which gland needs iodine?\nAssistant: the thyroid\nUser: What holds it?\nAssistant: salt"
        answers = (" the thyroid", " salt")
    found = target.tokenizer(text, add_special_tokens=not chat, return_offsets_mapping=True)
    spans = [(text.rindex(answer), text.rindex(answer) + len(answer)) for answer in answers]
    counted = [
        i for i, (a, b) in enumerate(found["offset_mapping"]) if any(x <= a and b <= y and a < b for x, y in spans)
    ]
    ids = torch.tensor([found["input_ids"]])
    with torch.no_grad(), target.model.disable_adapter():
        logits = F.log_softmax(target.model(input_ids=ids).logits[0].double(), dim=-1)
        prompt = ids[:, : next(i for i, (a, _) in enumerate(found["offset_mapping"]) if a >= spans[1][0])]
        out = target.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
        )
    losses = [-float(logits[i - 1, ids[0, i]]) for i in counted]
    assert row["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    told = target.tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    # There is room for one and a half of the gold answer.
    assert row["prediction"].startswith(told.split("\nUser: ")[0].strip())


def test_answers_with_lines_are_decoded_past_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Question(
        id="l1",
        question="Which vitamin prevents scurvy?",
        answer="vitamin C\nhelps. It is in fruit.",
        form="long_answer",
    )
    target = make_target("gemma")
    letters = target.tokenizer("iron\nzinc", add_special_tokens=False)["input_ids"]
    score = AnswerScorer.score

    def told(self: AnswerScorer, items: Any, **options: Any) -> Any:
        assert options["lines"]
        return score(self, items)[0], [target.tokenizer.decode(letters)]

    monkeypatch.setattr(AnswerScorer, "score", told)
    row = evaluate(target, [long], CONFIG)[0]
    assert (row["prediction"], row["correct"], row["exact_match"]) == ("iron\nzinc", None, None)
    assert row["metrics"] == {"rouge_l": 0.0}
    monkeypatch.undo()
    scorer = AnswerScorer(target)
    item = scorer.prepare(long)
    with torch.inference_mode():
        texts = [scorer.score([item], max_new_tokens=40, lines=lines)[1][0] for lines in (False, True)]
    assert texts[1].strip().startswith(texts[0])
    assert metrics_of([row]).keys() == {"answer_loss", "token_f1", "rouge_l"}
