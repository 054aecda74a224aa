"""Which tokens of an answer count: tokenizers of every make, sums by hand, and that all who measure a loss agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import CHAT, byte_tokenizer, flat, plain_loss, samples, tiny_target
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from training_helpers import make_pairs, make_target
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from optimsyn.base.errors import ModelError
from optimsyn.data.chat import sample_of
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.attribution.pairs import pair_shares
from optimsyn.influence.attribution.pieces import answer_pieces
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.gradients.parts import GradientParts
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.store.store import GradientStore, QuestionStore
from optimsyn.influence.trainings import Trainings
from optimsyn.recipe.recipe import CountedTokens, TargetSpec
from optimsyn.recipe.sections.evaluation import Evaluation, FineTune
from optimsyn.target.encoding import Batch, Encoded, Role, counted, encode, pad
from optimsyn.target.target import Target
from optimsyn.training.evaluation import evaluate
from optimsyn.training.fine_tuning import fine_tune

NO_BREAK = CHAT.replace("</s>\n", "</s>")
WORDS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} [end of turn]\n{% endfor %}"
NONE = CountedTokens(end_of_questions=0, end_of_pairs=0)
HALF = CountedTokens(end_of_questions=0.3, end_of_pairs=0.3)
ALL = CountedTokens(end_of_questions=1.0, end_of_pairs=1.0)


def fast(template: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def slow(template: str | None = None) -> ByT5Tokenizer:
    """Written in Python, without offsets; it ends every text itself."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = template
    return tokenizer


def adds_its_own(*, eos: bool) -> PreTrainedTokenizerFast:
    """Whole words between [CLS] and [SEP], as BERT's; without an end-of-text token of its own, or with one."""
    words = "[UNK] [CLS] [SEP] </s> Question Answer : ? Where does it end Paris a".split()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    own = {"eos_token": "</s>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[SEP]", **own)


# How many tokens stand behind an answer, by hand.
TOKENIZERS: dict[str, tuple[Any, int]] = {
    "base": (fast(), 1),
    "chat": (fast(CHAT), 1),
    "chat, no line break": (fast(NO_BREAK), 1),
    "chat that ends a turn in words": (fast(WORDS), len(" [end of turn]")),
    "slow": (slow(), 1),
    "slow, chat": (slow(CHAT), 1),
    "slow, chat, no line break": (slow(NO_BREAK), 1),
    "slow, chat that ends a turn in words": (slow(WORDS), len(" [end of turn]")),
}
ANSWERS = ["end", "a", "é", "naïve café", "it says [end", "1,200 µg [end of turn]", "turn]", "0>", "a </s"]


def asked(answer: str) -> Sample:
    return sample_of(Question(id="q", question="Where does it end?", answer=answer))


def labels_of(encoded: Encoded) -> list[int]:
    return [label for label in encoded.labels if label != -100]


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_answer_counts_and_what_ends_it_does_not(name: str, answer: str) -> None:
    tokenizer, behind = TOKENIZERS[name]
    whole = encode(tokenizer, asked(answer), 400)
    assert whole.end_tokens == behind
    found = counted(whole, CountedTokens(), "question")
    lead = "" if tokenizer.chat_template else " "
    assert tokenizer.decode(labels_of(found)) == lead + answer
    assert found.input_ids == whole.input_ids and found.prompt_ids == whole.prompt_ids
    assert len(found.weights) == found.label_tokens == whole.label_tokens - behind == len((lead + answer).encode())
    assert labels_of(counted(whole, HALF, "pair")) == labels_of(whole)
    assert counted(whole, CountedTokens(), "pair") == counted(whole, NONE, "pair")
    pair = counted(whole, ALL, "pair")
    assert labels_of(pair) == labels_of(whole) and set(pair.weights) == {1 / whole.label_tokens}
    # The heat-map cuts the answer where the weights do.
    assert answer_pieces(tokenizer, asked(answer), 400)[-1] == ("", behind)


@pytest.mark.parametrize("eos", [True, False])
def test_markers_that_a_tokenizer_adds_itself_end_the_text_and_unknown_words_do_not(eos: bool) -> None:
    tokenizer = adds_its_own(eos=eos)
    whole = encode(tokenizer, asked("Paris London"), 100)
    assert tokenizer.convert_ids_to_tokens(labels_of(whole)) == ["Paris", "[UNK]", "[SEP]"] + ["</s>"] * eos
    found = counted(whole, NONE, "pair")
    assert tokenizer.convert_ids_to_tokens(labels_of(found)) == ["Paris", "[UNK]"]
    one = counted(encode(tokenizer, asked("London"), 100), NONE, "pair")
    assert tokenizer.convert_ids_to_tokens(labels_of(one)) == ["[UNK]"] and one.weights == (1.0,)


def test_a_slow_tokenizer_does_not_end_the_prompt() -> None:
    tokenizer = slow()
    encoded = encode(tokenizer, asked("end"), 200)
    assert tokenizer.decode(encoded.input_ids) == "Question: Where does it end?\nAnswer: end</s>"


def test_an_answer_that_holds_the_end_marker_is_shared_out_whole() -> None:
    # encode puts no second marker behind it, so this one ends the text.
    target = tiny_target()
    pair = Pair(id="p", question="Which marker?", answer="it is </s>", passage_id="x")
    encoded = target.encode(pair)
    assert encoded.end_tokens == 1 and labels_of(encoded)[-1] == target.tokenizer.eos_token_id
    for tokens in (ALL, NONE):
        scorer = InfluenceScorer(target, samples(2, seed=1), tokens=tokens)
        (shares,) = pair_shares(scorer, target, [pair])
        parts = [share for piece in shares.pieces for share in piece.shares]
        assert len(parts) == encoded.label_tokens and (parts[-1] == 0.0) == (tokens == NONE)
        assert shares.pieces[-1].end
        assert sum(parts) == pytest.approx(shares.influence, rel=1e-6)


@pytest.mark.parametrize(
    ("end", "reduction", "weights"),
    [
        (0.0, "mean", (1 / 2, 1 / 2)),
        (0.3, "mean", (1 / 2.3, 1 / 2.3, 0.3 / 2.3)),
        (1.0, "mean", (1 / 3, 1 / 3, 1 / 3)),
        (0.0, "root", (1 / 2**0.5, 1 / 2**0.5)),
        (0.3, "root", (1 / 2.3**0.5, 1 / 2.3**0.5, 0.3 / 2.3**0.5)),
        (1.0, "root", (1 / 3**0.5,) * 3),
        (0.0, "sum", (1.0, 1.0)),
        (0.3, "sum", (1.0, 1.0, 0.3)),
        (1.0, "sum", (1.0, 1.0, 1.0)),
    ],
)
def test_weights_and_losses_by_hand(end: float, reduction: Any, weights: tuple[float, ...]) -> None:
    target = tiny_target(warm=False)
    whole = Encoded("z", [0, 9, 8, 7, 6, 1], [-100, -100, -100, 7, 6, 1], False, end_tokens=1)
    longer = target.encode(samples(1)[0])
    logits = target.model(input_ids=torch.tensor([whole.input_ids])).logits[0].double()
    tokens = [-float(logits[i - 1].log_softmax(0)[whole.input_ids[i]].detach()) for i in (3, 4, 5)]
    roles: tuple[tuple[Role, CountedTokens], ...] = (
        ("question", CountedTokens(end_of_questions=end, end_of_pairs=0.9, reduction=reduction)),
        ("pair", CountedTokens(end_of_questions=0.9, end_of_pairs=end, reduction=reduction)),
    )
    for role, setting in roles:
        found = counted(whole, setting, role)
        assert found.weights == pytest.approx(weights)
        assert labels_of(found) == [7, 6, 1][: len(weights)]
        # In one batch with a longer sample that nothing was decided about: its mean over all labels stays.
        batch = pad([longer, found], [0, 1], pad_id=1)
        losses = target.losses(batch).detach().tolist()
        assert losses[1] == pytest.approx(sum(w * t for w, t in zip(weights, tokens, strict=False)), rel=1e-6)
        assert losses[0] == pytest.approx(float(plain_loss(target, longer).detach()), rel=1e-6)


def test_a_batch_without_weights_takes_means() -> None:
    labels = torch.tensor([[-100, 5, 6, 7], [-100, -100, 8, -100]])
    batch = Batch([0, 1], ["a", "b"], torch.zeros_like(labels), labels)
    rows, columns = (labels != -100).nonzero(as_tuple=True)
    order = torch.tensor([3, 1, 0, 2])
    assert batch.token_weights(rows[order], columns[order]).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


def test_what_has_no_label_is_left_to_be_refused_by_name() -> None:
    target = tiny_target(warm=False)
    bare = Encoded("naked", [5, 6, 7], [-100] * 3, truncated=False)
    assert counted(bare, HALF, "pair") is bare and bare.token_weights == ()
    (batch,) = target.batches([counted(target.encode(samples(1)[0]), HALF, "pair"), bare], 10_000)
    with pytest.raises(ModelError, match="'naked'"):
        target.losses(batch)


def test_an_answer_of_end_markers_alone_keeps_one() -> None:
    whole = encode(fast(), asked("end"), 100)
    only = Encoded("e", whole.input_ids, [-100] * (len(whole.input_ids) - 1) + whole.input_ids[-1:], False, 1)
    assert counted(only, NONE, "pair").weights == counted(only, CountedTokens(), "pair").weights == (1.0,)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(TOKENIZERS)),
    answer=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip),
    end=st.sampled_from([0.0, 0.3, 1.0]) | st.floats(0, 1),
    reduction=st.sampled_from(["mean", "root", "sum"]),
)
def test_laws_of_weights(name: str, answer: str, end: float, reduction: Any) -> None:
    tokenizer, behind = TOKENIZERS[name]
    whole = encode(tokenizer, asked(answer), 400)
    tokens = CountedTokens(end_of_pairs=end, reduction=reduction)
    found = counted(whole, tokens, "pair")
    assert whole.end_tokens == behind
    content = labels_of(whole)[:-behind]
    assert labels_of(found)[: len(content)] == content, "the answer's tokens always count"
    assert min(found.weights[: len(content)]) == max(found.weights) > 0
    size = len(content) + behind * end
    assert sum(found.weights) == pytest.approx({"mean": 1.0, "root": size**0.5, "sum": size}[reduction])
    again = counted(found, tokens, "pair")
    assert labels_of(again) == labels_of(found) and again.weights == pytest.approx(found.weights)


@pytest.fixture(scope="module")
def exact() -> Target:
    return tiny_target("gpt2")


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), other=st.integers(2, 200), reduction=st.sampled_from(["mean", "root", "sum"]))
def test_what_does_not_count_changes_neither_loss_nor_gradient(
    exact: Target, seed: int, other: int, reduction: Any
) -> None:
    first, second = (
        counted(exact.encode(s), CountedTokens(end_of_pairs=0, reduction=reduction), "pair")
        for s in samples(2, seed=seed)
    )
    changed = Encoded("x", [*first.input_ids[:-1], other], first.labels, False, weights=first.weights)
    found = []
    for item in (first, changed):
        (batch,) = exact.batches([item, second], 10_000)
        losses = exact.losses(batch)
        gradients = torch.autograd.grad(losses.sum(), list(exact.parameters.values()))
        by_name = dict(zip(exact.parameters, gradients, strict=True))
        found.append((losses.detach()[batch.indices.index(0)], flat(by_name)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert float(found[0][1].norm()) > 0


@pytest.mark.parametrize(
    ("chat", "end", "reduction"),
    [
        (False, 0.0, "mean"),
        (True, 0.0, "mean"),
        (False, 0.3, "mean"),
        (True, 0.3, "root"),
        (True, 1.0, "mean"),
        (False, 1.0, "sum"),
    ],
)
def test_all_who_measure_a_loss_agree(
    chat: bool, end: float, reduction: Literal["mean", "root", "sum"], tmp_path: Path
) -> None:
    target = tiny_target("gpt2", dtype=torch.float32, chat=chat)
    tokens = CountedTokens(end_of_questions=end, end_of_pairs=end, reduction=reduction)
    questions = [
        Question(id=f"q{i}", question="Where does it end?", answer=answer, subtask="all")
        for i, answer in enumerate(["in the very end", "a", "é"])
    ]
    # By hand: logits of the whole text, the answer's bytes once, the marker behind them `end` times.
    wanted, counts, first = [], [], 0
    for question in questions:
        ids = target.encode(question).input_ids
        if chat:  # the line break with which the template ends, which nobody measures
            assert target.tokenizer.decode(ids.pop()) == "\n"
        size = len(question.answer.encode()) + (0 if chat else 1)
        first = len(ids) - size - 1
        assert ids[-1] == target.tokenizer.eos_token_id
        with torch.no_grad():
            logits = target.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        losses = [-float(logits[i - 1, ids[i]]) for i in range(first, len(ids))]
        total = size + end
        divisor = {"mean": total, "root": total**0.5, "sum": 1.0}[reduction]
        wanted.append((sum(losses[:-1]) + end * losses[-1]) / divisor)
        counts.append(size + (end > 0))
    found = [counted(target.encode(question), tokens, "question") for question in questions]
    (batch,) = target.batches(found, 10_000)
    with torch.no_grad():
        own = target.losses(batch).tolist()
    assert [own[batch.indices.index(i)] for i in range(3)] == pytest.approx(wanted, rel=1e-4)
    scorer = InfluenceScorer(target, questions, tokens=tokens)
    assert list(scorer.directions[-1].losses) == pytest.approx(wanted, rel=1e-4)
    scores = scorer.score(questions, token_shares=True)
    twins = TwinScorer(target, questions, tokens=tokens).score(questions, token_shares=True)
    store = GradientStore.open_or_create(tmp_path / "pool", target, tokens=tokens)
    kept = QuestionStore.open_or_create(tmp_path / "asked", target, tokens=tokens)
    store.add(questions)
    kept.add(questions)
    stored = store.score(kept, ids=[question.id for question in questions])
    for one in (scores, twins, stored):
        assert one.loss.tolist() == pytest.approx(wanted, rel=1e-4)
        assert one.label_tokens.tolist() == counts
    for shared in (scores, twins):
        assert shared.token_shares is not None
        assert [len(shares) for shares in shared.token_shares] == counts
        sums = torch.stack([shares.sum() for shares in shared.token_shares])
        torch.testing.assert_close(sums, shared.total, rtol=1e-4, atol=1e-6)
    measured = [counted(target.encode(question), tokens, "question") for question in questions]
    trainings = Trainings(target, target.checkpoints[-1], [target.encode(item) for item in questions], measured)
    assert trainings.start().tolist() == pytest.approx(wanted, rel=1e-5)
    parts = GradientParts.of(target, target.checkpoints[-1], [target.encode(item) for item in questions])
    assert parts.losses(tokens, "question").tolist() == pytest.approx(wanted, rel=1e-5)
    target.model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    rows = evaluate(target, questions, Evaluation(max_new_tokens=1), adapter=tmp_path / "adapter", tokens=tokens)
    assert [row["loss"] for row in rows] == pytest.approx(wanted, rel=1e-5)
    if end == 0 and reduction == "mean":
        rows = evaluate(target, questions, Evaluation(max_new_tokens=1), adapter=tmp_path / "adapter")
        assert [row["loss"] for row in rows] == pytest.approx(wanted, rel=1e-5), "the default"


@pytest.mark.parametrize("reduction", ["root", "sum"])
def test_options_are_compared_per_token_in_any_case(reduction: Any) -> None:
    target = tiny_target("gpt2", dtype=torch.float32)
    options = ("a long option of many words", "b", "two words")
    asked = [
        Question(id=f"m{i}", question="Which?", answer=options[i], choices=options, answer_index=i) for i in range(3)
    ]
    config = Evaluation(max_new_tokens=1)
    means = evaluate(target, asked, config)
    found = evaluate(target, asked, config, tokens=CountedTokens(reduction=reduction))
    for i, (one, other) in enumerate(zip(found, means, strict=True)):
        assert one["choice_scores"] == pytest.approx(other["choice_scores"], rel=1e-5)
        assert (one["prediction"], one["correct"]) == (other["prediction"], other["correct"])
        tokens = len(options[i]) + 1
        size = tokens if reduction == "sum" else tokens**0.5
        assert one["loss"] == pytest.approx(other["loss"] * size, rel=1e-5)


def test_weights_follow_the_losses_to_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # As of a model on several GPUs, whose losses are where its output layer is.
    target = tiny_target("gpt2")
    (batch,) = target.batches([counted(target.encode(s), HALF, "pair") for s in samples(3)], 10_000)
    tokens = target.label_loss.tokens

    def elsewhere(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        losses, rows, columns = tokens(*inputs)
        return losses.to("meta"), rows, columns

    monkeypatch.setattr(target.label_loss, "tokens", elsewhere)
    losses = target.losses(batch)
    assert losses.device.type == "meta" and losses.shape == (3,)


def test_warm_up_and_fine_tuning_learn_every_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, pairs = make_target(), make_pairs(4)
    seen: list[Batch] = []
    losses = Target.losses

    def watched(self: Target, batch: Batch) -> torch.Tensor:
        seen.append(batch)
        return losses(self, batch)

    monkeypatch.setattr(Target, "losses", watched)
    target.warm_up(pairs, steps=2, batch_size=2)
    warmed = len(seen)
    fine_tune(TargetSpec(name="embedded"), pairs, FineTune(steps=2, batch_size=2), tmp_path, 0, target=target)
    assert 0 < warmed < len(seen)
    learned = {tuple(label for label in labels_of(target.encode(pair))) for pair in pairs}
    for batch in seen:
        assert batch.weights is None
        for row in batch.labels.tolist():
            labels = tuple(label for label in row if label != -100)
            assert labels in learned and labels[-1] == target.tokenizer.eos_token_id
