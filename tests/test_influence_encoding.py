"""Encoding, batches and label-only losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import CHAT, byte_tokenizer, plain_loss, samples, tiny, tiny_target
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForCausalLM

from optimsyn.base.errors import ModelError
from optimsyn.data.chat import sample_of
from optimsyn.data.records import Question, Sample
from optimsyn.recipe.recipe import Lora
from optimsyn.target.encoding import Encoded, encode, make_batches
from optimsyn.target.target import Target


def _question(context: str | None, answer: str = "end") -> Sample:
    return sample_of(Question(id="q1", question="Where does it end?", answer=answer, context=context))


def test_plain_format_has_bos_answer_labels_and_eos() -> None:
    tokenizer = byte_tokenizer()
    encoded = encode(tokenizer, _question(None), 200)
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    labels = [i for i in encoded.labels if i != -100]
    assert tokenizer.decode(labels) == " end</s>"
    assert tokenizer.decode(encoded.prompt_ids) == "<s>Question: Where does it end?\nAnswer:"
    assert encoded.input_ids[len(encoded.prompt_ids) :] == labels
    assert not encoded.truncated


def test_chat_template_labels_answer_and_end_of_turn_only() -> None:
    # The answer "end" also stands in the question: the labels must still be the assistant's words.
    tokenizer = byte_tokenizer(chat=True)
    encoded = encode(tokenizer, _question(None), 200)
    assert tokenizer.decode([i for i in encoded.labels if i != -100]) == "end</s>"
    assert tokenizer.decode(encoded.prompt_ids).endswith("<s>assistant: ")


@pytest.mark.parametrize("chat", [False, True])
def test_long_context_is_cut_on_the_left_only(chat: bool) -> None:
    tokenizer = byte_tokenizer(chat=chat)
    context = " ".join(f"word{i}" for i in range(60))
    encoded = encode(tokenizer, _question(context), 120)
    text = tokenizer.decode(encoded.input_ids)
    assert encoded.truncated
    assert len(encoded.input_ids) <= 120
    assert len(encoded.input_ids) > 100
    assert ("word59\n\nWhere does it end?" if chat else "word59\nQuestion: Where does it end?") in text
    assert ("Passage: " in text) is not chat
    assert "word0 " not in text


def test_question_and_answer_are_never_cut() -> None:
    encoded = encode(byte_tokenizer(), _question("some context that has to go"), 50)
    assert byte_tokenizer().decode(encoded.input_ids) == "<s>Question: Where does it end?\nAnswer: end</s>"
    with pytest.raises(ModelError, match=r"'q1': question and answer alone take .* max_length 30"):
        encode(byte_tokenizer(), _question("some context"), 30)


@pytest.mark.parametrize("completion", ["", "  "])
def test_empty_answer_is_refused_by_name(completion: str) -> None:
    sample = samples(1)[0].model_copy(update={"completion": completion})
    with pytest.raises(ModelError, match=r"'s0-0' has an empty answer"):
        encode(byte_tokenizer(), sample, 100)


def _letters(chat: bool) -> PreTrainedTokenizerFast:
    """A vocabulary of ASCII alone, which drops other letters and puts nothing in front."""
    vocabulary = {"</s>": 0, **{chr(i): i for i in range(1, 128)}}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", pad_token="</s>")
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_without_tokens_is_refused_by_name(chat: bool) -> None:
    sample = samples(1)[0]
    question = sample.messages[0]
    blank = sample.model_copy(
        update={"completion": "答え", "messages": (question, {"role": "assistant", "content": "答え"})}
    )
    with pytest.raises(ModelError, match=r"'s0-0': the tokenizer produces no token for the answer '答え'.*vocabulary"):
        encode(_letters(chat), blank, 100)
    known = encode(_letters(chat), sample, 100)
    assert known.label_tokens == len(sample.completion.strip() if chat else sample.completion) + 1


def test_an_answer_with_nothing_in_front_is_refused_by_name() -> None:
    # The first token has no loss; counted as a label it would double the twin scores of a one-token answer.
    bare = samples(1)[0].model_copy(update={"prompt": "", "completion": "a"})
    with pytest.raises(ModelError, match=r"'s0-0' has no token before its answer.*give it a prompt"):
        encode(_letters(chat=False), bare, 100)
    encoded = encode(byte_tokenizer(), bare, 100)
    assert len(encoded.prompt_ids) == 1 and encoded.label_tokens == 2


def test_a_passage_without_a_question_stays_whole() -> None:
    sample = samples(1)[0].model_copy(update={"prompt": "Passage: a text of some length\nAnswer:"})
    assert not encode(byte_tokenizer(), sample, 100).truncated
    with pytest.raises(ModelError, match="raise models.target.max_length"):
        encode(byte_tokenizer(), sample, 30)


def test_rows_without_labels_are_refused_by_name() -> None:
    target = tiny_target(warm=False)
    bare = Encoded("naked", [5, 6, 7], [-100] * 3, truncated=False)
    (batch,) = target.batches([*map(target.encode, samples(2)), bare], 10_000)
    with pytest.raises(ModelError, match="'naked'"):
        target.losses(batch)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(1, 200))
def test_batches_keep_the_budget_and_every_sample_once(lengths: list[int], budget: int) -> None:
    encoded = [Encoded(str(i), [3] * n, [-100] * (n - 1) + [3], truncated=False) for i, n in enumerate(lengths)]
    batches = list(make_batches(encoded, budget, pad_id=0))
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(lengths)))
    for batch in batches:
        rows, width = batch.input_ids.shape
        assert rows == 1 or rows * width <= budget
        for row, i in enumerate(batch.indices):
            assert batch.ids[row] == str(i)
            assert int((batch.input_ids[row] == 3).sum()) == lengths[i]
            assert int((batch.labels[row] != -100).sum()) == 1


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
@pytest.mark.parametrize("fused", [True, False])
def test_losses_equal_the_models_own(kind: str, fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimsyn.target.output_layer.CHUNK_BYTES", 260 * 8 * 3)
    target = tiny_target(kind, warm=False)
    encoded = [target.encode(s) for s in samples(5)]
    if not fused:
        target.label_loss.fused = False
    for batch in target.batches(encoded, 200):
        losses = target.losses(batch)
        assert target.label_loss.fused is fused
        expected = torch.stack([plain_loss(target, encoded[i]) for i in batch.indices])
        torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
        found = torch.autograd.grad(losses.sum(), list(target.parameters.values()))
        wanted = torch.autograd.grad(expected.sum(), list(target.parameters.values()))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


def test_unknown_output_post_processing_uses_the_models_own_way() -> None:
    model = tiny("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 0.37)
    target = Target.from_model(model, byte_tokenizer(), lora=tiny_lora(), max_length=200)
    encoded = [target.encode(s) for s in samples(3)]
    (batch,) = target.batches(encoded, 10_000)
    expected = torch.stack([plain_loss(target, encoded[i]) for i in batch.indices])
    torch.testing.assert_close(target.losses(batch), expected, rtol=1e-10, atol=1e-12)


def test_dropout_does_not_hide_the_models_output_layer() -> None:
    # The first losses are the warm-up's, with dropout: two passes differ then, whatever the output layer is.
    target = Target.from_model(tiny("llama"), byte_tokenizer(), lora=tiny_lora(dropout=0.5), max_length=200)
    with torch.no_grad():
        for name, parameter in target.parameters.items():
            if "lora_B" in name:
                parameter.fill_(0.5)
    (batch,) = target.batches(samples(2), 10_000)
    target.model.train()
    first, second = target.losses(batch), target.losses(batch)
    assert not torch.equal(first, second), "the test must meet dropout"
    assert target.label_loss.fused is True
    assert all(module.training for module in target.model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_sees_later_tokens_is_refused_by_name(dtype: torch.dtype) -> None:
    shape = {"vocab_size": 260, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}

    def target(*, causal: bool) -> Target:
        torch.manual_seed(0)
        config = RobertaConfig(**shape, intermediate_size=24, max_position_embeddings=256, is_decoder=causal)
        model = RobertaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4 if parameter.dim() > 1 else 1)
        lora = tiny_lora(target_modules=("query", "value"))
        return Target.from_model(model.to(dtype), byte_tokenizer(), lora=lora, max_length=200)

    with pytest.raises(ModelError, match="depend on later tokens.*is_decoder"):
        target(causal=False).warm_up(samples(2), steps=1)
    fine = target(causal=True)
    long, short = sorted(samples(6), key=lambda s: -len(s.prompt + s.completion))[::5]
    (batch,) = fine.batches([short, long], 10_000)
    together = fine.losses(batch)[batch.indices.index(0)]
    (alone,) = fine.batches([short], 10_000)
    torch.testing.assert_close(together, fine.losses(alone)[0], rtol=2e-2 if dtype is torch.bfloat16 else 1e-5, atol=0)


def tiny_lora(**settings: Any) -> Lora:
    return Lora(**{"r": 2, "alpha": 4, "target_modules": ("q_proj",), **settings})


def test_adapter_that_does_not_fit_is_explained() -> None:
    with pytest.raises(ModelError, match="target_modules"):
        Target.from_model(tiny("gpt2"), byte_tokenizer(), lora=Lora())
    frozen = tiny("llama").requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable parameter"):
        Target.from_model(frozen, byte_tokenizer(), lora=None)
