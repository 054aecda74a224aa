"""Tiny tokenizers in the shapes of the families that people train: made here, trained on a page of text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TEXT = [
    "The quick brown fox jumps over the lazy dog, and 12 copper mines closed in 1931.",
    "Passage: Scurvy is a disease that results from a lack of vitamin C.\nQuestion: Which vitamin?\nAnswer: vitamin C",
    "Die Äpfel fallen nicht weit vom Stamm; l'été est fini.\n\n\tif x < y and z > 3: return [a, b]",
    "user assistant system model end start of turn eos bos pad unk header id begin text <b>bold</b> </p>",
] * 4


@dataclass(frozen=True)
class Shape:
    """One family.

    Attributes:
        controls: Its control tokens, all of them strings that data can hold.
        template: Its chat template; "" for a base model.
        plain: Non-special added tokens, which are steered by as well.
    """

    name: str
    build: Callable[[list[str]], Any]
    controls: tuple[str, ...]
    template: str = ""
    plain: tuple[str, ...] = ()
    bos: str = ""
    eos: str = ""
    unk: str = ""

    def tokenizer(self) -> Any:
        """A fast tokenizer of this shape."""
        from tokenizers import AddedToken
        from transformers import PreTrainedTokenizerFast

        backend = self.build([*self.controls, *self.plain])
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in self.controls])
        if self.plain:
            backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in self.plain])
        named = {"bos_token": self.bos, "eos_token": self.eos, "unk_token": self.unk}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{k: v for k, v in named.items() if v})
        tokenizer.chat_template = self.template or None
        return tokenizer


def byte_level(controls: list[str], *, in_vocabulary: bool = False) -> Any:
    """BPE over bytes, as GPT, Llama 3, Qwen and DeepSeek have it: control tokens behind the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=controls if in_vocabulary else [],
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend


def sentence_bpe(controls: list[str]) -> Any:
    """BPE with a prepended ▁ and bytes to fall back on, as Llama 2, Mistral and Phi-3 have it; BOS in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    pieces = [*controls, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(unk_token=controls[0], byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=pieces, show_progress=False)
    backend.train_from_iterator(TEXT, trainer)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{controls[1]} $A", special_tokens=[(controls[1], backend.token_to_id(controls[1]))]
    )
    return backend


def gemma_bpe(controls: list[str]) -> Any:
    """BPE with ▁ for blanks and nothing prepended, control tokens inside of the vocabulary, as Gemma has it."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    pieces = [*controls, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=620, special_tokens=pieces, show_progress=False))
    backend.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<b>", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", backend.token_to_id("<bos>"))]
    )
    return backend


def unigram(controls: list[str]) -> Any:
    """Unigram pieces with ▁, whose vocabulary holds the control tokens with the best score, as T5 and XLM-R have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        TEXT,
        trainers.UnigramTrainer(vocab_size=180, special_tokens=controls, unk_token=controls[0], show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {controls[1]}", special_tokens=[(controls[1], backend.token_to_id(controls[1]))]
    )
    return backend


def word_piece(controls: list[str]) -> Any:
    """WordPiece over words in lower case, as BERT has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.WordPiece(unk_token=controls[0]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        TEXT, trainers.WordPieceTrainer(vocab_size=400, special_tokens=controls, show_progress=False)
    )
    places = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=places)
    return backend


def words(controls: list[str]) -> Any:
    """Whole words between blanks: `<eos>` on its own is a word of the vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.WordLevel(unk_token=controls[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=controls, show_progress=False))
    return backend


def _turns(start: str, middle: str, end: str, prompt: str, head: str = "") -> str:
    return (
        head
        + "{% for m in messages %}"
        + start
        + "{{ m['role'] }}"
        + middle
        + "{{ m['content'] | trim }}"
        + end
        + "{% endfor %}{% if add_generation_prompt %}"
        + prompt
        + "{% endif %}"
    )


SHAPES = (
    Shape(
        "gemma",
        gemma_bpe,
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<unused0>"),
        _turns("<start_of_turn>", "\n", "<end_of_turn>\n", "<start_of_turn>model\n", "{{ bos_token }}"),
        bos="<bos>",
        eos="<eos>",
        unk="<unk>",
    ),
    Shape("gemma base", gemma_bpe, ("<pad>", "<eos>", "<bos>", "<unk>"), bos="<bos>", eos="<eos>", unk="<unk>"),
    Shape(
        "llama 2",
        sentence_bpe,
        ("<unk>", "<s>", "</s>"),
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<s>[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' </s>' }}{% endif %}{% endfor %}",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
    ),
    Shape(
        "llama 3",
        byte_level,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        _turns(
            "<|start_header_id|>",
            "<|end_header_id|>\n\n",
            "<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|begin_of_text|>Today is {{ strftime_now('%d %b %Y') }}.\n",
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    Shape(
        "chatml",
        byte_level,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        _turns("<|im_start|>", "\n", "<|im_end|>\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("<think>", "</think>", "<tool_call>"),
        eos="<|im_end|>",
    ),
    Shape(
        "mistral",
        sentence_bpe,
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]"
        "{% else %}{{ m['content'] }}</s>{% endif %}{% endfor %}",
        bos="<s>",
        eos="</s>",
        unk="<unk>",
    ),
    Shape(
        "phi",
        sentence_bpe,
        ("<unk>", "<s>", "<|endoftext|>"),
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        bos="<s>",
        eos="<|endoftext|>",
        unk="<unk>",
    ),
    Shape(
        "deepseek",
        byte_level,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜begin▁of▁sentence｜>{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
        "{% else %}<｜Assistant｜>{{ m['content'].split('</think>')[-1] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}",
        ("<think>", "</think>"),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
    ),
    Shape(
        "harmony",
        byte_level,
        ("<|startoftext|>", "<|endoftext|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
        _turns(
            "<|start|>",
            "<|channel|>final<|message|>",
            "<|end|>",
            "<|start|>assistant",
            "Date: {{ strftime_now(form) }} ",
        ).replace("Date:", "{% set form = '%Y-%m-%d' %}Date:"),
        eos="<|return|>",
    ),
    Shape("gpt", lambda controls: byte_level(controls, in_vocabulary=True), ("<|endoftext|>",), eos="<|endoftext|>"),
    Shape("t5", unigram, ("<unk>", "</s>", "<pad>", "<extra_id_0>"), eos="</s>", unk="<unk>"),
    Shape("bert", word_piece, ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"), eos="[SEP]", unk="[UNK]"),
    Shape("words", words, ("<unk>", "<eos>", "<pad>"), eos="<eos>", unk="<unk>"),
)
