"""Token shares as text: pieces that join to the answer, sums that are the influence, and how they are shown."""

from __future__ import annotations

import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import CHAT, byte_tokenizer, samples, tiny_target
from report_helpers import HOSTILE, shares_of
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from optimsyn.base.errors import DataError
from optimsyn.data.records import Pair
from optimsyn.influence.attribution.pairs import pair_shares
from optimsyn.influence.attribution.pieces import answer_pieces
from optimsyn.influence.attribution.records import PairShares, TokenPiece, TokenShares
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.report.heatmap import Heatmap
from optimsyn.target.encoding import encode

ANSWERS = [
    "end",
    "vitamin C",
    "Übergröße",
    "维生素 C",
    "a 🍊 day",
    "naïve  café",
    "1,200 µg/dℓ",
    "e\u0301 f\u0323\u0307",
]


def make_pair(answer: str, name: str = "p", **more: Any) -> Pair:
    return Pair(id=name, question="What is the end?", answer=answer, passage_id="x", **more)


def merged_byte_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level as GPT-2's, with merges that split letters of several bytes unevenly."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("v", "i"), ("vi", "t"), ("Ġ", "C"), ("ç", "»"), ("Ã", "ľ"), ("ð", "Ł")]
    merges = [(a, b) for a, b in merges if a in letters or len(a) > 1]
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: i + 2 for i, letter in enumerate(letters)}}
    for a, b in merges:
        vocabulary[a + b] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    if chat:
        fast.chat_template = CHAT
    return fast


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """As Gemma's and Llama's: blanks become ▁, letters that it lacks fall back to bytes."""
    known = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    known += [letter for letter in "abcdefghijklmnopqrstuvwxyzQWC?:1205,\n" if letter not in known]
    merges = [("▁", "C"), ("e", "n"), ("en", "d"), ("▁", "end")]
    vocabulary = {piece: i for i, piece in enumerate([*known, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


class Slow:
    """The same without offsets, as the tokenizers that are written in Python."""

    is_fast = False
    chat_template = None

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.eos_token_id = inner.eos_token_id
        self.all_special_ids = inner.all_special_ids

    def __call__(self, text: str, **options: Any) -> Any:
        return self._inner(text, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def decode(self, ids: list[int], **options: Any) -> str:
        return str(self._inner.decode(ids, **options))


TOKENIZERS: dict[str, Any] = {
    "bytes": byte_tokenizer(),
    "bytes, chat": byte_tokenizer(chat=True),
    "merged bytes": merged_byte_tokenizer(),
    "merged bytes, chat": merged_byte_tokenizer(chat=True),
    "sentencepiece": sentencepiece_tokenizer(),
    "slow bytes": Slow(byte_tokenizer()),
    "slow sentencepiece": Slow(sentencepiece_tokenizer()),
}


def check_pieces(tokenizer: Any, answer: str) -> list[tuple[str, int]]:
    pair = make_pair(answer)
    pieces = answer_pieces(tokenizer, pair, 2000)
    from optimsyn.data.chat import sample_of

    encoded = encode(tokenizer, sample_of(pair), 2000)
    assert sum(count for _, count in pieces) == encoded.label_tokens
    lead = "" if tokenizer.chat_template else " "
    assert "".join(text for text, _ in pieces) == lead + answer.strip()
    assert all(count > 0 for _, count in pieces)
    assert [text for text, _ in pieces if not text] in ([], [""]), "one piece without text: the end"
    return pieces


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_pieces_join_to_the_answer(name: str, answer: str) -> None:
    pieces = check_pieces(TOKENIZERS[name], answer)
    assert pieces[-1][0] == "", "the end marker is learned"
    assert len(pieces) > 2 or answer == "end"


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from([name for name in TOKENIZERS if not name.startswith("slow")]),
    answer=st.text(min_size=1, max_size=12).filter(
        lambda text: text.strip() and not re.search(r"[\x00-\x08\ud800-\udfff\U000f0000-\U0010ffff]|<|OPTIMSYN", text)
    ),
)
def test_pieces_of_any_text_join_to_it(name: str, answer: str) -> None:
    check_pieces(TOKENIZERS[name], answer)


def test_a_letter_of_several_bytes_is_one_piece_with_all_its_tokens() -> None:
    pieces = answer_pieces(TOKENIZERS["bytes"], make_pair("ü 🍊"), 200)
    assert pieces == [(" ", 1), ("ü", 2), (" ", 1), ("🍊", 4), ("", 1)]
    pieces = answer_pieces(TOKENIZERS["sentencepiece"], make_pair("end ü"), 200)
    assert pieces == [(" end", 1), (" ", 1), ("ü", 2), ("", 1)]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("twin", {"estimator": "adam_linear"}),
        ("exact", {"estimator": "adam_linear"}),
        ("exact", {"estimator": "sgd", "normalization": "cosine"}),
        ("exact", {"estimator": "adam"}),
    ],
)
def test_shares_of_a_pair_sum_to_its_influence(chat: bool, kind: str, options: dict[str, Any]) -> None:
    target = tiny_target(chat=chat)
    make: Any = TwinScorer if kind == "twin" else InfluenceScorer
    scorer = make(target, samples(3, seed=5, subtasks=("a", "b")), **options)
    pairs = [
        make_pair("ü 🍊", "one"),
        make_pair("some longer words", "two", choices=("some longer words", "b"), answer_index=0),
    ]
    found = pair_shares(scorer, target, pairs)
    totals = scorer.score(pairs).total.tolist()
    for shares, total, pair in zip(found, totals, pairs, strict=True):
        assert shares.influence == pytest.approx(total, rel=1e-9)
        parts = [share for piece in shares.pieces for share in piece.shares]
        assert math.fsum(parts) + shares.remainder == pytest.approx(total, rel=1e-12)
        if options["estimator"] != "adam":
            assert math.fsum(parts) == pytest.approx(total, rel=1e-6)
        assert "".join(piece.text for piece in shares.pieces).strip() == pair.answer
        assert [piece.end for piece in shares.pieces].index(True) == len(shares.pieces) - 1
        assert shares.choices == pair.choices
    if options["estimator"] == "adam":
        assert any(abs(shares.remainder) > 1e-9 for shares in found), "momentum's part is told"


def test_shares_are_written_and_read(tmp_path: Path) -> None:
    found = TokenShares(variant="policy", estimator="adam_linear, dot", pairs=(shares_of(make_pair("ü b"), 0.2),))
    found.write(tmp_path / "s.json")
    assert TokenShares.read(tmp_path / "s.json") == found
    (tmp_path / "s.json").write_text('{"variant": 3}')
    with pytest.raises(DataError, match=r"s\.json: .*delete the file"):
        TokenShares.read(tmp_path / "s.json")


def shown_text(html: str) -> str:
    """The answer as a browser shows it: text of the cells, without tags."""
    cells = re.search(r'<span style="white-space:pre-wrap[^>]*>(.*?)</span>\s*&nbsp;', html, re.S)
    assert cells is not None
    return unescape(re.sub(r"<[^>]+>", "", cells.group(1)))


def test_the_heatmap_shows_the_exact_text_with_sign_and_value() -> None:
    pieces = (
        TokenPiece(text=" 5 <b>", shares=(0.04,)),
        TokenPiece(text=" mg", shares=(-0.01, -0.01)),
        TokenPiece(text=" of", shares=(0.0001,)),
        TokenPiece(text="", shares=(0.005,), end=True),
    )
    pair = PairShares(
        id="p", question=f"How much {HOSTILE}", answer="5 <b> mg of", influence=0.0251, remainder=0.0, pieces=pieces
    )
    html = Heatmap([pair], title="A <pair>")._repr_html_()
    assert "<script" not in html and "<img" not in html and "A &lt;pair&gt;" in html
    assert shown_text(html).strip() == "5 <b> mg of⏎ end"
    cells = re.findall(r"<span(?: style=\"([^\"]*)\")? title=\"([^\"]+)\">([^<]*)</span>", html)
    (helps, first, _), (hurts, second, _), (plain, third, _), (end, fourth, _) = cells
    assert "solid" in helps and "0,114,178" in helps and first.startswith("+0.0400, 159% of the pair")
    assert "wavy" in hurts and "213,94,0" in hurts and second == "−0.0200, −80% of the pair&#39;s influence, 2 tokens"
    assert plain == "" and third.startswith("+0.0001")
    assert "solid" in end and fourth.startswith("+0.0050")
    assert "Helps: “5 &lt;b&gt;” +0.0400, end of the answer +0.0050." in " ".join(html.split())
    assert "Hurts: “mg” −0.0200." in " ".join(html.split())
    assert "Momentum" not in html
    assert "background:#" not in html and "color:#" not in html, "fits light and dark"


def test_pairs_share_one_scale_and_momentum_is_told() -> None:
    strong, weak = shares_of(make_pair("one two"), 0.5), shares_of(make_pair("three four"), 0.001)
    heatmap = Heatmap([strong, weak.model_copy(update={"remainder": 0.0005})])
    assert all(cell.style for cell in heatmap.rows[0].cells)
    assert not any(cell.style for cell in heatmap.rows[1].cells), "a pair that teaches little is pale"
    assert heatmap.rows[1].remainder == "+0.001" and heatmap.rows[0].remainder == ""
    assert [cell.text for cell in heatmap.legend] == ["−0.3", "−0.15", "0", "+0.15", "+0.3"]


def test_empty_heatmaps_and_pairs_without_influence() -> None:
    assert Heatmap([]).strongest == 0.0
    assert "<div>" in Heatmap([])._repr_html_()
    nothing = PairShares(
        id="p", question="q", answer="a", influence=0.0, remainder=0.0, pieces=(TokenPiece(text=" a", shares=(0.0,)),)
    )
    assert 'title="0.000"' in Heatmap([nothing])._repr_html_() or "+0.000" in Heatmap([nothing])._repr_html_()


def test_in_a_terminal_the_answer_is_a_line() -> None:
    from rich.console import Console

    console = Console(width=120, no_color=True)
    with console.capture() as captured:
        console.print(Heatmap([shares_of(make_pair("5 mg [a]"), 0.25)], title="Words"))
    assert "+0.25  What is the end? 5 mg [a]⏎" in captured.get()


@pytest.mark.slow
def test_pieces_of_the_embedded_model() -> None:
    from optimsyn.llm.local.loading import load_tokenizer
    from optimsyn.recipe.recipe import ModelSpec

    tokenizer = load_tokenizer(ModelSpec(name="embedded"))
    for answer in ANSWERS:
        check_pieces(tokenizer, answer)
