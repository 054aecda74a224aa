"""Running batches of a local model: slots, sampling on the device, stops, memory, and who asks them."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from influence_helpers import tiny
from llm_helpers import save_tiny_model
from peft import LoraConfig, get_peft_model
from scipy import stats
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM

from optimsyn.base.errors import ModelError
from optimsyn.llm.embedded.model import EmbeddedModel
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.language_model import Call
from optimsyn.llm.local import batches as batches_module
from optimsyn.llm.local.batches import Batches, generate
from optimsyn.llm.local.generation import prompt_ids
from optimsyn.llm.local.loading import load_causal_lm
from optimsyn.llm.local.model import LocalModel, folder_fingerprint
from optimsyn.llm.local.rows import Row, StopTexts, finished
from optimsyn.llm.local.sampling import draw, truncated, uniforms
from optimsyn.llm.local.slots import Slots, fits
from optimsyn.llm.local.worker import shared_worker
from optimsyn.llm.replies import ReplyCache
from optimsyn.recipe.recipe import ModelSpec
from optimsyn.runs.outcomes import run_notes

TEXTS = [f"{'the old mill ' * (place % 5)}stands at {place}" for place in range(11)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_causal_lm(ModelSpec(name=str(folder), dtype="float32", device="cpu"))


def rows_of(tokenizer: Any, *, stop: tuple[str, ...] = ()) -> list[Row]:
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in TEXTS]
    return [Row(ids, 0.9, 3 + 4 * (i % 4), i, stop) for i, ids in enumerate(prompts)]


def splitmix(state: int) -> int:
    """SplitMix64's finaliser in plain integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return state ^ (state >> 31)


def test_noise_is_splitmix_of_seed_step_and_token() -> None:
    golden = 0x9E3779B97F4A7C15
    seeds, steps, tokens = [0, 5, 2**63 - 1], [0, 7, 300], [[0, 1], [262_143, 2], [9, 9]]
    expected = []
    for seed, step, ids in zip(seeds, steps, tokens, strict=True):
        row = splitmix((splitmix(((seed + 1) * golden) % 2**64) + step * golden) % 2**64)
        bits = [splitmix(splitmix((row + token * golden) % 2**64)) >> 11 for token in ids]
        expected.append([(value + 0.5) / 2**53 for value in bits])
    given = uniforms(torch.tensor(seeds), torch.tensor(steps), torch.tensor(tokens))
    assert given.tolist() == expected


@pytest.mark.parametrize("varied", ["seed", "step", "token", "random seed"])
def test_noise_is_uniform_and_independent_along_each_of_its_arguments(varied: str) -> None:
    count = 20_000
    line, same = torch.arange(count), torch.full((count,), 3)
    many = torch.randint(2**62, (count,), generator=torch.Generator().manual_seed(1))
    seeds = {"seed": line, "random seed": many}.get(varied, same)
    steps, tokens = line if varied == "step" else same, line if varied == "token" else same
    values = uniforms(seeds, steps, torch.stack([tokens, tokens + 1], dim=1)).numpy()
    assert stats.kstest(values[:, 0], "uniform").pvalue > 1e-4
    cells = np.histogram(values[:, 0], bins=100, range=(0, 1))[0]
    assert stats.chisquare(cells).pvalue > 1e-4
    # Neighbours along the argument, and neighbouring tokens: a grid of pairs is as full as chance makes it.
    for other in (np.roll(values[:, 0], 1), values[:, 1]) if varied != "token" else (np.roll(values[:, 0], 1),):
        pairs = np.histogram2d(values[:, 0], other, bins=10, range=((0, 1), (0, 1)))[0]
        assert stats.chisquare(pairs.ravel()).pvalue > 1e-4
        assert abs(np.corrcoef(values[:, 0], other)[0, 1]) < 4 / count**0.5


def test_draws_follow_each_rows_own_distribution() -> None:
    logits = torch.tensor([[2.0, 1.5, 1.0, 0.0, -1.0, -9.0], [0.3, 0.1, 0.0, 2.0, 1.9, 1.7]])
    count, temperatures = 4000, [0.7, 1.6]
    seeds, half = torch.arange(2 * count), torch.tensor([0, 1]).repeat(count)
    drawn = draw(logits[half], torch.tensor(temperatures, dtype=torch.float64)[half], seeds, torch.zeros_like(seeds))
    for row, temperature in enumerate(temperatures):
        expected = (truncated(logits[row]) / temperature).softmax(0).numpy()
        seen = np.bincount(drawn[half == row].numpy(), minlength=6)
        assert (seen[expected == 0] == 0).all()
        kept = expected > 0
        chances = expected[kept].astype(np.float64)
        assert stats.chisquare(seen[kept], count * chances / chances.sum()).pvalue > 1e-4


def test_a_draw_depends_on_nothing_but_its_row_and_greedy_rows_take_the_best() -> None:
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(4))
    temperatures = torch.tensor([0.0, 0.5, 1.0, 0.0, 2.0, 0.9], dtype=torch.float64)
    seeds, steps = torch.arange(6) + 100, torch.tensor([0, 9, 2, 5, 4, 3])
    together = draw(logits, temperatures, seeds, steps)
    alone = [draw(logits[[i]], temperatures[[i]], seeds[[i]], steps[[i]]) for i in range(6)]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together[[0, 3]].tolist() == logits.argmax(1)[[0, 3]].tolist()
    # Other seeds and other steps give other tokens.
    lots = torch.arange(200)
    flat = torch.zeros(200, 500)
    hot = torch.ones(200, dtype=torch.float64)
    assert len(set(draw(flat, hot, lots, torch.zeros_like(lots)).tolist())) > 30
    assert len(set(draw(flat, hot, torch.zeros_like(lots), lots).tolist())) > 30
    # Of equal logits the smaller id, and a token even where the model computes nothing.
    assert draw(torch.zeros(1, 5), hot[:1] * 0, lots[:1], lots[:1]).tolist() == [0]
    assert 0 <= draw(torch.full((1, 5), float("nan")), hot[:1], lots[:1], lots[:1]).item() < 5


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_slots_give_the_models_own_numbers_beyond_its_window(kind: str) -> None:
    model = tiny(kind, dtype=torch.float32, seed=1).eval()
    assert fits(model)
    rows = [Row(torch.randint(3, 250, (5 + 9 * i,)).tolist(), 0.0, 20 - 3 * i, i) for i in range(4)]
    batches = Batches(model, _Tokens(), most_rows=2)
    for row in rows:
        batches.add(row.seed, row)
    replies: dict[Any, list[int]] = {}
    while batches.busy:
        replies.update(batches.advance())
    for row in rows:
        ids = list(row.ids)
        while len(ids) < row.length and (len(ids) == len(row.ids) or ids[-1] not in batches.ends):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert replies[row.seed] == ids[len(row.ids) :]


class _Tokens:
    """A tokenizer for which a token is its own letter."""

    eos_token_id = None
    pad_token_id = 0

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(token) for token in ids)


def test_the_trial_refuses_slots_that_give_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("gemma", dtype=torch.bfloat16, seed=1).eval()
    assert fits(model)
    model.set_attn_implementation("sdpa")
    right = Slots.masks
    # Full attention where the model has a window.
    monkeypatch.setattr(Slots, "masks", lambda *args: dict.fromkeys(right(*args), right(*args)["full_attention"]))
    assert not fits(model)


def test_a_model_without_fitting_attention_is_generated_by_transformers(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=4, eos_token_id=2, initializer_range=0.4
    )
    model = BloomForCausalLM(config).eval()
    assert not fits(model)
    rows = rows_of(tokenizer)
    together = generate(model, tokenizer, rows)
    assert together == generate(model, tokenizer, rows, most_rows=3)
    assert [reply.tokens <= row.max_tokens for reply, row in zip(together, rows, strict=True)] == [True] * len(rows)
    assert len({reply.text for reply in together}) > len(rows) // 2


@pytest.mark.parametrize("most_rows", [1, 2, 5])
@pytest.mark.parametrize(("chunk", "ahead"), [(1, 0), (4, 0), (1, 2), (4, 1)])
def test_replies_do_not_depend_on_the_batch_or_on_how_often_the_host_looks(
    loaded: tuple[Any, Any], most_rows: int, chunk: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    free = generate(model, tokenizer, rows_of(tokenizer))
    # Stops that some rows reach in the middle of a reply.
    stop = tuple({text for reply in free[1::4] if "\ufffd" not in (text := reply.text[5:7]) and text})
    rows = rows_of(tokenizer, stop=stop)
    alone = [generate(model, tokenizer, [row])[0] for row in rows]
    monkeypatch.setattr(batches_module, "CHUNK", {"cpu": chunk})
    monkeypatch.setattr(batches_module, "AHEAD", {"cpu": ahead})
    assert generate(model, tokenizer, rows, most_rows=most_rows) == alone
    assert {reply.finish_reason for reply in alone} == {"stop", "length"}
    for reply, whole in zip(alone, free, strict=True):
        cut = min((whole.text.index(text) for text in stop if text in whole.text), default=None)
        assert reply.text == whole.text[:cut]
        assert reply.tokens <= whole.tokens


@pytest.mark.parametrize("ahead", [0, 1])
def test_prompts_enter_and_leave_a_running_batch(
    loaded: tuple[Any, Any], ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "AHEAD", {"cpu": ahead})
    model, tokenizer = loaded
    rows = rows_of(tokenizer)
    alone = {row.seed: generate(model, tokenizer, [row])[0] for row in rows}
    batches = Batches(model, tokenizer, most_rows=4)
    replies: dict[Any, list[int]] = {}
    late = list(rows)
    for row in late[:3]:
        batches.add(row.seed, row)
    late = late[3:]
    while batches.busy or late:
        replies.update(batches.advance())
        if late:  # one more at every turn, also prompts that are longer than any before
            batches.add(late[0].seed, late[0])
            late = late[1:]
        batches.drop({7})
    assert replies.keys() == {row.seed for row in rows} - {7}
    for row in rows:
        if row.seed != 7:
            assert finished(tokenizer, row, replies[row.seed], batches.ends) == alone[row.seed]


def test_slots_are_refilled_instead_of_waiting_for_the_longest_reply(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = rows_of(tokenizer)[0].ids
    batches = Batches(model, tokenizer, most_rows=2)
    batches.ends = []
    for key, tokens in enumerate((40, 10, 10, 10, 10)):
        batches.add(key, Row(ids, 1.0, tokens, key))
    order = []
    turns = 0
    while batches.busy:
        order += [key for key, _ in batches.advance()]
        turns += 1
    assert order[:3] == [1, 2, 3]
    assert turns == 40


def test_out_of_memory_halves_the_batch_and_loses_nothing(
    loaded: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    rows = rows_of(tokenizer)
    alone = [generate(model, tokenizer, [row])[0] for row in rows]
    run = Slots.run
    turns = iter(range(10**6))

    def short_of_memory(self: Slots, count: int, longest: int) -> Any:
        if self.count > 2 and next(turns) == 3:  # in the middle of replies
            raise torch.cuda.OutOfMemoryError("no memory")
        return run(self, count, longest)

    monkeypatch.setattr(Slots, "run", short_of_memory)
    told: list[int] = []
    batches = Batches(model, tokenizer, most_rows=4, shrunk=told.append)
    for index, row in enumerate(rows):
        batches.add(index, row)
    replies: dict[Any, list[int]] = {}
    while batches.busy:
        replies.update(batches.advance())
    assert told == [2]
    assert [finished(tokenizer, row, replies[i], batches.ends) for i, row in enumerate(rows)] == alone


async def test_a_run_notes_that_its_batches_were_halved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated: list[int] = []
    create = Slots.__init__

    def small(self: Slots, model: Any, count: int, *args: Any, **others: Any) -> None:
        if count > 2:
            allocated.append(count)
            raise torch.cuda.OutOfMemoryError("no memory")
        create(self, model, count, *args, **others)

    model = LocalModel(ModelSpec(name=str(folder), max_tokens=16), ReplyCache(tmp_path / "replies.sqlite"))
    monkeypatch.setattr(Slots, "__init__", small)
    replies = await asyncio.gather(*(model.complete(Call.of(text, seed=1, max_tokens=6)) for text in TEXTS))
    assert len(replies) == len(TEXTS)
    assert allocated == [8, 4]
    from optimsyn.llm.hosted.service_memory import read_services

    notes = run_notes(read_services(tmp_path / "services.json"), {})
    assert notes == [f"the GPU had too little memory for larger batches of {folder}; they have 2 prompts"]
    await model.aclose()
    again = LocalModel(ModelSpec(name=str(folder), max_tokens=16), ReplyCache(tmp_path / "replies.sqlite"))
    await again.complete(Call.of("another", seed=1, max_tokens=6))
    assert allocated == [8, 4]  # the next process begins with what fits


async def test_an_error_reaches_every_caller_and_the_next_call_is_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LocalModel(ModelSpec(name=str(folder), max_tokens=16))
    run = Slots.run

    def broken(self: Slots, count: int, longest: int) -> Any:
        raise torch.cuda.OutOfMemoryError("no memory") if self.count == 1 else ValueError("broken")

    monkeypatch.setattr(Slots, "run", broken)
    calls = [Call.of(text, seed=1, max_tokens=6) for text in TEXTS[:3]]
    failures = await asyncio.gather(*map(model.complete, calls), return_exceptions=True)
    assert [str(failure) for failure in failures] == ["broken"] * 3
    worker = model.worker
    assert worker is not None
    worker.batches.most_rows = 1
    with pytest.raises(ModelError, match="too little GPU memory for a batch of one"):
        await model.complete(calls[0])
    monkeypatch.setattr(Slots, "run", run)
    assert (await model.complete(calls[0])).output_tokens > 0


async def test_a_cancelled_call_leaves_its_batch_and_the_loop_is_never_blocked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = shared_worker("cancelled", ModelSpec(name=str(folder)), None, 8, None)
    worker.batches.ends = []
    held, go = threading.Event(), threading.Event()
    run = Slots.run

    def slow(self: Slots, count: int, longest: int) -> Any:
        held.set()
        assert go.wait(60)
        return run(self, count, longest)

    monkeypatch.setattr(Slots, "run", slow)
    given_up = asyncio.wrap_future(worker.ask(Row([5, 6], 1.0, 60, 1)))
    kept = asyncio.wrap_future(worker.ask(Row([5, 6], 1.0, 8, 2)))
    # The model computes in its thread; this loop goes on.
    await asyncio.to_thread(held.wait, 60)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    go.set()
    # Free again after its 8 tokens, long before the other one's 60.
    assert len(await kept) == 8
    assert not worker.batches.busy


async def test_models_of_the_same_weights_share_them(folder: Path) -> None:
    generator = LocalModel(ModelSpec(name=str(folder), temperature=0.3, max_tokens=16))
    rubric = LocalModel(ModelSpec(name=str(folder), temperature=0.9, max_tokens=32))
    other = LocalModel(ModelSpec(name=str(folder), dtype="bfloat16", max_tokens=16))
    call = Call.of("the mill", seed=1)
    await asyncio.gather(generator.complete(call), rubric.complete(call), other.complete(call))
    assert generator.worker is rubric.worker
    assert generator.worker is not other.worker
    await generator.aclose()
    assert (await rubric.complete(Call.of("still there", seed=1))).output_tokens > 0


async def test_an_adapter_is_merged_into_the_weights(folder: Path, tmp_path: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    adapted = get_peft_model(plain, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    model = LocalModel(ModelSpec(name=str(folder), dtype="float32", device="cpu", max_tokens=16), adapter=tmp_path)
    reply = await model.complete(Call.of("the mill", temperature=0.0, max_tokens=12))
    assert model.worker is not None
    assert not any("lora" in name for name, _ in model.worker.model.named_modules())
    tokenizer = model.worker.tokenizer
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "the mill"}])
    whole = adapted.eval().generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12)[0]
    assert reply.text == tokenizer.decode(whole, skip_special_tokens=True)[len("the mill") :]


def test_the_embedded_models_own_adapter_is_part_of_its_identity(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimsyn.llm.local.model.writer_adapter", lambda: None)
    bare = LocalModel(ModelSpec(name="embedded")).identity
    monkeypatch.setattr("optimsyn.llm.local.model.writer_adapter", lambda: folder)
    assert LocalModel(ModelSpec(name="embedded")).identity == f"{bare}+{folder_fingerprint(folder)}"
    assert LocalModel(ModelSpec(name=str(folder))).identity.endswith("/auto")


def test_the_embedded_model_goes_where_the_recipe_or_a_gpu_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(device: str) -> type:
        return type(load_language_model(ModelSpec(name="embedded", device=device)))

    monkeypatch.setattr("optimsyn.llm.local.loading.DRIVERS", ("/nowhere",))
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kind("auto") is EmbeddedModel  # without a driver PyTorch is not even asked
    monkeypatch.setattr("optimsyn.llm.local.loading.DRIVERS", ("/",))
    assert (kind("auto"), kind("cuda"), kind("cpu")) == (LocalModel, LocalModel, EmbeddedModel)
    assert load_language_model(ModelSpec(name="embedded")).concurrency == 512
    assert load_language_model(ModelSpec(name="embedded", concurrency=24)).concurrency == 24
    assert not load_language_model(ModelSpec(name="embedded")).chat
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kind("auto") is EmbeddedModel


@pytest.mark.parametrize(
    ("stop", "reply", "expected"),
    [
        ("\n\n", "one\n\n", True),
        ("\n\n", "one\ntwo", False),
        ("wo", "one\n\ntwo", True),
        ("é", "caf\u00e9", True),
        ("d: ", "end: ", True),
        ("one", "one and much more than a window of text after it", False),
    ],
)
def test_stop_texts_end_with_the_newest_token(loaded: tuple[Any, Any], stop: str, reply: str, expected: bool) -> None:
    tokenizer = loaded[1]
    ids = tokenizer(reply, add_special_tokens=False).input_ids
    assert StopTexts(tokenizer).reached(Row([1], 1.0, 99, 0, (stop,)), ids, 1) is expected
    whole = finished(tokenizer, Row([1], 1.0, 99, 0, (stop,)), ids, [2])
    if stop in reply:
        assert whole.text == reply[: reply.index(stop)]
        assert tokenizer.decode(ids[: whole.tokens]).endswith(stop)
