"""Local models: loading them, and sampling in batches."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_helpers import save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from optimsyn.base.errors import ModelError
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.language_model import Call
from optimsyn.llm.local.generation import Row, SeededSampling, generate, prompt_ids
from optimsyn.llm.local.loading import load_causal_lm, resolve_device, resolve_dtype
from optimsyn.llm.local.model import folder_fingerprint
from optimsyn.llm.local.sampling import truncated
from optimsyn.llm.replies import ReplyCache
from optimsyn.recipe.recipe import ModelSpec

PROMPTS = ["The capital of France is", "Iron", "Question: which vitamin prevents scurvy? Answer:"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny-chat"), chat=True)


def row(tokenizer: object, prompt: str, **values: object) -> Row:
    ids = prompt_ids(tokenizer, [{"role": "user", "content": prompt}])
    return Row(**{"ids": ids, "temperature": 0.9, "max_tokens": 12, "seed": 1, **values})  # type: ignore[arg-type]


def test_loading_sets_padding_dtype_and_evaluation_mode(folder: Path) -> None:
    model, tokenizer = load_causal_lm(ModelSpec(name=str(folder)))
    assert not model.training
    assert model.dtype == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token is not None
    assert load_causal_lm(ModelSpec(name=str(folder), dtype="bfloat16", device="cpu"))[0].dtype == torch.bfloat16


def test_a_missing_padding_token_becomes_the_end_token(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, again = load_causal_lm(ModelSpec(name=str(tmp_path)))
    assert again.pad_token == "<eos>"
    assert loaded.config.pad_token_id == again.eos_token_id


def test_models_that_cannot_be_loaded_are_named_with_a_cure(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_causal_lm(ModelSpec(name=str(tmp_path / "absent")))
    with pytest.raises(ModelError, match=tmp_path.name):
        load_causal_lm(ModelSpec(name=str(tmp_path)))
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        load_causal_lm(ModelSpec(name=str(folder)), adapter=tmp_path)
    with pytest.raises(ModelError, match="no such model folder"):
        load_language_model(ModelSpec(name=str(folder)), adapter=tmp_path / "absent")
    with pytest.raises(ModelError, match="not on this machine"):
        resolve_device("cuda:99")
    with pytest.raises(ModelError, match="unknown"):
        resolve_device("abacus")
    with pytest.raises(ModelError, match="float8"):
        resolve_dtype("float8", torch.device("cpu"))


def test_a_reply_does_not_depend_on_its_batch(folder: Path) -> None:
    model, tokenizer = load_causal_lm(ModelSpec(name=str(folder), dtype="float32"))
    rows = [row(tokenizer, prompt, seed=i, max_tokens=8 + 4 * i) for i, prompt in enumerate(PROMPTS)]
    together = generate(model, tokenizer, rows)
    assert together == [generate(model, tokenizer, [one])[0] for one in rows]
    assert together == list(reversed(generate(model, tokenizer, rows[::-1])))
    assert all(reply.tokens <= one.max_tokens for reply, one in zip(together, rows, strict=True))
    assert generate(model, tokenizer, [row(tokenizer, PROMPTS[0], seed=5)]) != together[:1]


def test_temperature_zero_is_greedy(folder: Path) -> None:
    model, tokenizer = load_causal_lm(ModelSpec(name=str(folder), dtype="float32"))
    one = row(tokenizer, PROMPTS[0], temperature=0.0)
    ids = list(one.ids)
    for _ in range(one.max_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    expected = tokenizer.decode(ids, skip_special_tokens=True)[len(PROMPTS[0]) :]
    assert generate(model, tokenizer, [one])[0].text == expected


def test_a_reply_ends_before_a_stop_text(folder: Path) -> None:
    model, tokenizer = load_causal_lm(ModelSpec(name=str(folder), dtype="float32"))
    free = generate(model, tokenizer, [row(tokenizer, PROMPTS[0])])[0]
    stop = free.text[4:6]
    cut, other = generate(
        model, tokenizer, [row(tokenizer, PROMPTS[0], stop=(stop, "never")), row(tokenizer, PROMPTS[1], max_tokens=20)]
    )
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.tokens < other.tokens or other.finish_reason == "stop"


def test_samples_follow_the_truncated_distribution() -> None:
    logits = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -9.0])
    count, temperature = 4000, 0.7
    rows = [Row(ids=[0], temperature=temperature, max_tokens=1, seed=seed) for seed in range(count)]
    drawn = SeededSampling(rows)(torch.zeros(count, 1, dtype=torch.long), logits.repeat(count, 1)).argmax(1).tolist()
    kept = truncated(logits)
    expected = (kept / temperature).softmax(0)
    frequencies = Counter(drawn)
    for token, probability in enumerate(expected.tolist()):
        spread = 4 * np.sqrt(count * probability * (1 - probability))
        assert abs(frequencies[token] - count * probability) <= spread


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12, unique=True),
    st.integers(1, 12),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0),
)
def test_truncation_against_a_plain_loop(values: list[float], top_k: int, top_p: float, min_p: float) -> None:
    ranked = sorted(range(len(values)), key=lambda i: -values[i])[:top_k]
    weights = np.exp(np.array([values[i] for i in ranked], dtype=np.float64) - values[ranked[0]])
    weights /= weights.sum()
    total = 0.0
    expected = set()
    near = False
    for index, weight in zip(ranked, weights, strict=True):
        near = near or abs(total - top_p) < 1e-5 or abs(weight - min_p * weights[0]) < 1e-5
        if not expected or (total < top_p and weight >= min_p * weights[0]):
            expected.add(index)
        total += weight
    kept = truncated(torch.tensor(values), top_k, top_p, min_p)
    found = {i for i, value in enumerate(kept.tolist()) if value != float("-inf")}
    assert found == expected or near
    assert all(kept[i] == torch.tensor(values)[i] for i in found)


async def test_concurrent_calls_share_batches_and_are_kept(folder: Path) -> None:
    cache = ReplyCache(":memory:")
    model = load_language_model(ModelSpec(name=str(folder), dtype="float32", max_tokens=16), cache)
    assert not model.chat
    assert not model.structured
    calls = [Call.of(prompt, seed=seed, max_tokens=6) for prompt in PROMPTS for seed in range(4)]
    replies = await asyncio.gather(*map(model.complete, calls))
    assert cache.totals().replies == len(calls)
    alone = load_language_model(ModelSpec(name=str(folder), dtype="float32", max_tokens=16))
    assert [(await alone.complete(call)).text for call in calls[::5]] == [reply.text for reply in replies[::5]]
    assert all(reply.input_tokens > 0 and reply.output_tokens <= 6 for reply in replies)
    with pytest.raises(ModelError, match="128"):
        await model.complete(Call.of("x" * 200))
    await model.aclose()


async def test_a_chat_template_is_used_also_without_a_system_role(chat_folder: Path) -> None:
    model = load_language_model(ModelSpec(name=str(chat_folder), max_tokens=16))
    assert model.chat
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.decode(prompt_ids(tokenizer, messages)) == "[user]Be brief.\n\nHi[assistant]"
    assert (await model.complete(Call.of(messages, seed=1))).output_tokens > 0


def test_weights_and_adapters_distinguish_models(folder: Path, chat_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    spec = ModelSpec(name=str(folder))
    peft_model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    peft_model.save_pretrained(tmp_path / "adapter")
    identities = {
        load_language_model(spec).identity,
        load_language_model(spec, adapter=tmp_path / "adapter").identity,
        load_language_model(ModelSpec(name=str(chat_folder))).identity,
        load_language_model(ModelSpec(name="org/name")).identity,
        load_language_model(ModelSpec(name="org/name", revision="abc")).identity,
    }
    assert len(identities) == 5
    assert folder_fingerprint(folder) == folder_fingerprint(folder)
    plain, _ = load_causal_lm(spec)
    adapted, tokenizer = load_causal_lm(spec, adapter=tmp_path / "adapter")
    ids = torch.tensor([prompt_ids(tokenizer, [{"role": "user", "content": "two words"}])])
    assert not torch.allclose(plain(ids).logits, adapted(ids).logits)
