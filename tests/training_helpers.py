"""Tiny random models, a small tokenizer, and questions for the tests of training and evaluation."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from optimsyn.data.records import Pair, Question
from optimsyn.recipe.recipe import Lora
from optimsyn.target.target import Target

TEXTS = [
    "Question: Which vitamin prevents scurvy?\nAnswer: vitamin C",
    "Question: Which mineral carries oxygen in the blood?\nAnswer: iron",
    "Passage: Iodine is needed by the thyroid gland.\nQuestion: Which gland needs iodine?\nAnswer: the thyroid",
    "A. calcium\nB. sodium\nC. potassium\nD. zinc and selenium",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789 .,:;?!'()-\n",
]

QUESTIONS = [
    Question(id="f1", question="Which vitamin prevents scurvy?", answer="vitamin C", answers=("vitamin C", "C")),
    Question(id="f2", question="Which gland needs iodine most of all?", answer="the thyroid", subtask="glands"),
    Question(id="f3", question="Iron?", answer="iron", context="Iron carries oxygen in the blood. Zinc does not."),
    Question(
        id="m1",
        question="Which one builds bone?",
        answer="calcium",
        choices=("sodium", "calcium", "zinc and selenium"),
        answer_index=1,
    ),
    Question(id="m2", question="Salt is?", answer="sodium", choices=("sodium", "potassium"), answer_index=0),
]


def make_pairs(count: int = 6) -> list[Pair]:
    """Closed-book pairs with different texts."""
    subjects = ["scurvy", "rickets", "goitre", "anaemia", "pellagra", "beriberi", "night blindness"]
    cures = ["vitamin C", "vitamin D", "iodine", "iron", "niacin", "thiamine", "vitamin A"]
    return [
        Pair(
            id=f"p{i}",
            question=f"What prevents {subjects[i % 7]}{' again' * (i // 7)}?",
            answer=cures[i % 7],
            passage_id=f"d{i}",
        )
        for i in range(count)
    ]


@lru_cache
def tokenizer_file() -> Any:
    """A byte-level BPE tokenizer trained on a few lines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def make_tokenizer(*, chat: bool = False) -> Any:
    """A fast tokenizer with pad, eos and bos, and a chat template when asked for."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_file(), pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    if chat:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ '<bos>' + m['role'] + '\n' + m['content'] + '<eos>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<bos>assistant\n' }}{% endif %}"
        )
    return tokenizer


def make_model(kind: str = "llama", *, seed: int = 0) -> Any:
    """A random causal language model of a few ten thousand parameters; "gemma" has a sliding window of 8 tokens."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

    common = {
        "vocab_size": 360,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        "initializer_range": 0.3,
    }
    config: Any = (
        Gemma3TextConfig(**common, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
        if kind == "gemma"
        else LlamaConfig(**common)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).float().eval()


def make_target(kind: str = "llama", *, chat: bool = False, max_length: int = 200, seed: int = 0) -> Target:
    """A target with LoRA of rank 4 on the attention."""
    lora = Lora(r=4, alpha=8)
    return Target.from_model(make_model(kind), make_tokenizer(chat=chat), lora=lora, max_length=max_length, seed=seed)
