"""A rubric model, a generator, checks and a scorer whose outcomes are known, for the tests of the optimisers.

Rubrics ask for one of four question types; a pair's influence depends on the type and a little on the passage. A
guiding text that names a type gets only rubrics of that type, so a search can improve, and by how much is known.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimsyn.base.errors import ReplyError
from optimsyn.base.seeds import derive_seed
from optimsyn.data.records import Pair, Passage, Rubric
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.replies import Reply, ReplyCache
from optimsyn.programs.pair import Refused
from optimsyn.programs.task_shape import TaskShape
from optimsyn.recipe.recipe import ModelSpec

WORTH = {"mechanism": 0.30, "quantity": 0.12, "comparison": 0.06, "definition": -0.04}
BASE_TEXT = "Write criteria for one question that a careful teacher would ask."


def passages(count: int) -> list[Passage]:
    return [
        Passage(
            id=f"p{i}", document_id=f"d{i}", text=f"Passage number {i} says that river {i} is {10 * i} miles long.",
            char_start=0, char_end=10,
        )
        for i in range(count)
    ]  # fmt: skip


def rubric(kind: str = "mechanism") -> Rubric:
    return Rubric(
        question_type=kind,
        question_quality=f"asks one clear {kind} question",
        answer_quality="short",
        alignment="the answer fits",
        trainability="a fact worth knowing",
    )


def noise(*parts: object) -> float:
    """In [-1, 1), the same in every process."""
    return derive_seed(*parts) / 2**30 - 1


Shape = TaskShape


class RubricModel(LanguageModel):
    """Replies with a rubric whose type follows the guiding text, or chance."""

    chat = False
    structured = True

    def __init__(
        self, cache: ReplyCache | None = None, *, garbage: bool = False, fails: Exception | None = None
    ) -> None:
        super().__init__(ModelSpec(name="test/rubrics"), cache, None, identity="test/rubrics")
        self.garbage = garbage
        self.fails = fails
        self.requests = 0

    async def _request(self, call: Call) -> Reply:
        self.requests += 1
        if self.fails is not None:
            raise self.fails
        prompt = call.messages[-1]["content"]
        # The prompt's demonstrations may name types too; the advice of the proposer is found by its own words.
        advised = prompt.split("taught most:", 1)[1].split(".", 1)[0] if "taught most:" in prompt else ""
        named = [name for name in WORTH if name in advised]
        kind = named[0] if named else list(WORTH)[derive_seed(call.seed, "type") % len(WORTH)]
        return Reply(
            text=self.text_for(call, kind),
            input_tokens=1,
            output_tokens=1,
            cost_usd=0.0,
            model=self.name,
            finish_reason="stop",
            seconds=0.0,
        )

    def text_for(self, call: Call, kind: str) -> str:
        """The text of a reply; `kind` is the question type that the guiding text asks for, or chance."""
        return "garbage" if self.garbage else json.dumps(rubric(kind).model_dump())


@dataclass
class Named:
    name: str = "test/generator"
    set_aside: int = 0

    def set_aside_latest(self, count: int) -> None:
        self.set_aside += count


class PairWriter:
    """Writes a pair that tells its question type; every purchase is appended to a log."""

    fingerprint = "test-pairs"

    def __init__(
        self, log: Path | None = None, *, kill_at: int | None = None, fail_at: int | None = None, kept: bool = False
    ) -> None:
        self.model = Named()
        self.log = log
        self.kill_at = kill_at
        self.fail_at = fail_at
        self.fails: Exception = RuntimeError("unset")
        self.garbage = False
        self.written: list[str] = []
        # As a run's reply cache does: what an earlier process has bought is not bought again.
        self.kept = set(log.read_text().split()) if kept and log is not None else set()

    async def awrite(
        self,
        passage: Passage,
        rubric: Rubric | None,
        *,
        seed: int,
        variant: str,
        guiding_text: str,
        rubric_model: str,
        refused: Refused | None = None,
    ) -> Pair:
        await asyncio.sleep(0)
        if self.garbage:
            raise ReplyError(f"no question in the reply (seed {seed})")
        if self.fail_at is not None and len(self.written) >= self.fail_at:
            raise self.fails
        if self.kill_at is not None and len(self.written) >= self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        kind = rubric.question_type if rubric else "definition"
        identity = hashlib.sha256(f"{passage.id}|{kind}|{seed}|{guiding_text}|{variant}".encode()).hexdigest()[:12]
        self.written.append(identity)
        if self.log is not None and identity not in self.kept:
            with self.log.open("a") as file:
                file.write(identity + "\n")
        return Pair(
            id=identity,
            question=f"{kind} of {passage.id}?",
            answer="bad answer" if "forbidden" in kind else f"{kind} answer {passage.id}",
            passage_id=passage.id,
            variant=variant,
            guiding_text=guiding_text,
            rubric=rubric,
            rubric_model=rubric_model,
            generator=self.model.name,
            seed=seed,
        )


@dataclass
class Verdict:
    valid: bool
    failed: tuple[str, ...]
    reasons: dict[str, str]


class Checks:
    fingerprint = "test-checks"

    def check(self, pair: Pair, passage: Passage) -> Verdict:
        if pair.answer == "bad answer":
            return Verdict(False, ("grounded",), {"grounded": "no word of the answer is in the passage"})
        return Verdict(True, (), {})


@dataclass
class Scores:
    total: list[float]
    by_subtask: list[list[float]]
    gradient_norm: list[float]
    loss: list[float]
    label_tokens: list[int]


class Scorer:
    """Influence by question type plus a little by passage; counts what it scores."""

    subtasks = ("easy", "hard")

    def __init__(self, value: float | None = None) -> None:
        self.value = value
        self.fingerprint = f"test-scorer-{value}"
        self.calls: list[int] = []
        self.scored: list[str] = []

    def score(self, pairs: Sequence[Pair]) -> Scores:
        self.calls.append(len(pairs))
        self.scored.extend(f"{pair.question}|{pair.answer}" for pair in pairs)
        totals = [self.worth(pair) if self.value is None else self.value for pair in pairs]
        return Scores(
            totals, [[t + 0.01, t - 0.01] for t in totals], [1.0] * len(pairs), [2.0] * len(pairs), [3] * len(pairs)
        )

    def worth(self, pair: Pair) -> float:
        return next((w for name, w in WORTH.items() if name in pair.answer), 0.0) + 0.02 * noise(pair.passage_id)


def make_reward(ledger: Path | None = None, **options: Any) -> Any:
    from optimsyn.reward.reward import InfluenceReward, RewardOptions

    writer = options.pop("writer", None) or PairWriter()
    scorer = options.pop("scorer", None) or Scorer()
    checks, penalty = options.pop("checks", None) or Checks(), options.pop("invalid_penalty", 0.1)
    asking = RewardOptions(**options)
    return InfluenceReward(scorer, writer, checks, invalid_penalty=penalty, ledger=ledger, options=asking)


def tiny_policy(path: Path, *, seed: int = 0) -> Path:
    """Saves a tiny random Llama that writes whole rubrics as one token: four right ones, one that fails a check."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rest = "\nQuestion quality: a\nAnswer quality: b\nAlignment: c\nTrainability: d\n"
    rubrics = [f" {kind}{rest}" for kind in (*WORTH, "forbidden")]
    pieces = ["<s>", "</s>", "<unk>", "\n\n", *rubrics, " junk"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(pieces), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # Logits of initial weights of 0.02 hardly differ, whatever a LoRA does before them.
    with torch.no_grad():
        model.lm_head.weight.mul_(12)
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path
