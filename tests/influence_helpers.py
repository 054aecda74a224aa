"""Tiny random models, a byte tokenizer and plain autograd references for the influence tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from optimsyn.data.records import Sample
from optimsyn.recipe.recipe import Lora
from optimsyn.target.encoding import Encoded
from optimsyn.target.target import Target

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def byte_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, `<s>` in front, `</s>` as end and padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: i + 2 for i, letter in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]),
        ]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    if chat:
        fast.chat_template = CHAT
    return fast


def tiny(kind: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, layers: int = 2) -> Any:
    """A random model of two layers and sixteen units: llama, gemma (tied, soft cap, sliding window) or gpt2."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        gpt2 = GPT2Config(vocab_size=260, n_embd=16, n_layer=layers, n_head=2, n_positions=256)
        model: Any = GPT2LMHeadModel(gpt2)
    else:
        shape: dict[str, Any] = {
            "vocab_size": 260,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "max_position_embeddings": 256,
        }
        if kind == "llama":
            model = LlamaForCausalLM(LlamaConfig(**shape))
        else:
            config = Gemma3TextConfig(**shape, sliding_window=16, final_logit_softcapping=3.0)
            config.layer_types = ["sliding_attention", "full_attention"][:layers]
            model = Gemma3ForCausalLM(config)
    # Initial weights of 0.02 make everything nearly linear; larger ones let a wrong formula show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.to(dtype)


def modules_of(kind: str) -> tuple[str, ...]:
    return ("c_attn", "c_proj") if kind == "gpt2" else ("q_proj", "v_proj", "o_proj", "down_proj")


def tiny_target(
    kind: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, chat: bool = False, warm: bool = True
) -> Target:
    """A target with a LoRA of rank 2, its two halves random, or warmed up for real."""
    lora = Lora(r=2, alpha=4, target_modules=modules_of(kind))
    model = tiny(kind, dtype=dtype, seed=seed)
    target = Target.from_model(model, byte_tokenizer(chat=chat), lora=lora, max_length=200, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in target.parameters.items():
            parameter.data = parameter.data.to(dtype)
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    if warm:
        target.warm_up(samples(6, seed=seed + 100), steps=3, batch_size=2, lr=1e-2, seed=seed)
    return target


def samples(count: int, *, seed: int = 0, subtasks: Sequence[str] = ("",)) -> list[Sample]:
    """Short samples of unlike lengths."""
    generator = torch.Generator().manual_seed(seed)

    def words(low: int, high: int) -> str:
        n = int(torch.randint(low, high, (1,), generator=generator))
        letters = torch.randint(97, 123, (n, 4), generator=generator).tolist()
        return " ".join("".join(map(chr, word)) for word in letters)

    made = []
    for i in range(count):
        body, answer = f"Question: {words(2, 9)}?", words(1, 4)
        made.append(
            Sample(
                id=f"s{seed}-{i}",
                prompt=f"{body}\nAnswer:",
                completion=f" {answer}",
                messages=({"role": "user", "content": body}, {"role": "assistant", "content": answer}),
                subtask=subtasks[i % len(subtasks)],
            )
        )
    return made


def by_hand(
    target: Target,
    item: Any,
    role: Literal["question", "pair"],
    *,
    end: float | None = None,
    reduction: str = "mean",
) -> Encoded:
    """What counts of a sample, written out: each token of the answer once, what ends the text `end` times.

    By default the end counts not at all, as in the evaluation.
    """
    end = {"question": 0.0, "pair": 0.0}[role] if end is None else end
    encoded = target.encode(item)
    ends = {target.tokenizer.eos_token_id}
    labels, weights = [], []
    for token in encoded.labels:
        weight = 0.0 if token == -100 else end if token in ends else 1.0
        labels.append(token if weight else -100)
        weights += [weight] if weight else []
    total = sum(weights)
    divisor = total if reduction == "mean" else total**0.5 if reduction == "root" else 1.0
    return Encoded(encoded.id, encoded.input_ids, labels, encoded.truncated, 0, tuple(w / divisor for w in weights))


def plain_loss(target: Target, encoded: Encoded) -> torch.Tensor:
    """One sample, all logits, Hugging Face's own forward, each label's loss times its weight: the reference for all."""
    ids = torch.tensor([encoded.input_ids])
    logits = target.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
    labels = torch.tensor(encoded.labels[1:])
    kept = labels != -100
    losses = torch.nn.functional.cross_entropy(logits[kept].to(target.dtype), labels[kept], reduction="none")
    return losses @ torch.tensor(encoded.weights, dtype=losses.dtype) if encoded.weights else losses.mean()


def plain_gradient(target: Target, encoded: Encoded) -> dict[str, torch.Tensor]:
    """Autograd's gradient of one sample's loss by parameter name."""
    loss = plain_loss(target, encoded)
    found = torch.autograd.grad(loss, list(target.parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(target.parameters.items(), found, strict=True)
    }


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """One long float64 vector, parameters in the order of their names."""
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])
