"""Large batches of a local model: sampling on the device, stops, memory, turns on a GPU, and who asks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from influence_helpers import samples, tiny, tiny_target
from llm_helpers import save_tiny_model
from runs_helpers import tiny_recipe
from scipy import stats

from optimsyn.base.errors import ModelError
from optimsyn.execution.runner import embedded_server
from optimsyn.influence.derivative.forward import ForwardScorer
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.llm.embedded.model import EmbeddedModel
from optimsyn.llm.embedded.server import EmbeddedServer
from optimsyn.llm.embedded.writer import adapter_dir
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.hosted.service_memory import read_services
from optimsyn.llm.language_model import Call
from optimsyn.llm.local import generation, turns
from optimsyn.llm.local.generation import Row, generate, prompt_ids, row_bytes
from optimsyn.llm.local.loading import at_once, load_causal_lm
from optimsyn.llm.local.model import LocalModel, folder_fingerprint
from optimsyn.llm.local.sampling import draw, truncated, uniforms
from optimsyn.llm.local.turns import others_turn, turn
from optimsyn.llm.replies import ReplyCache
from optimsyn.programs.prompts.writer_prompts import rubric_prompt
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replies_do_not_depend_on_who_shares_the_batch(folder: Path, dtype: str) -> None:
    model, tokenizer = load_causal_lm(ModelSpec(name=str(folder), dtype=dtype, device="cpu"))
    free = generate(model, tokenizer, rows_of(tokenizer))
    # Stops that some rows reach in the middle of a reply.
    stop = tuple({text for reply in free[1::4] if "\ufffd" not in (text := reply.text[5:7]) and text})
    rows = rows_of(tokenizer, stop=stop)
    together = generate(model, tokenizer, rows)
    assert {reply.finish_reason for reply in together} == {"stop", "length"}
    assert all(reply.tokens <= row.max_tokens for reply, row in zip(together, rows, strict=True))
    for reply, whole in zip(together, free, strict=True):
        cut = min((whole.text.index(text) for text in stop if text in whole.text), default=None)
        assert reply.text == whole.text[:cut]
    if dtype == "float32":  # in 16 bits another width may round a token to another one
        for size in (1, 2, 5):
            parts = [generate(model, tokenizer, rows[at : at + size]) for at in range(0, len(rows), size)]
            assert [reply for part in parts for reply in part] == together


def test_a_given_up_row_ends_and_the_others_do_not_notice(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    rows = rows_of(tokenizer)
    alone = generate(model, tokenizer, rows)
    looks = [0]

    def gone() -> bool:
        looks[0] += 1
        return looks[0] > 2

    replies = generate(model, tokenizer, rows, [gone if index == 3 else lambda: False for index in range(len(rows))])
    assert replies[:3] + replies[4:] == alone[:3] + alone[4:]
    assert alone[3].text.startswith(replies[3].text)
    assert replies[3].tokens < alone[3].tokens


@pytest.mark.parametrize(
    ("stop", "reply", "stops"),
    [
        ("\n\n", "one\n\n", True),
        ("\n\n", "one\ntwo", False),
        ("é", "caf\u00e9", True),
        ("d: ", "end: ", True),
        ("one", "one and much more than a window of text after it", False),
    ],
)
def test_a_row_stops_at_the_token_that_completes_its_stop_text(
    loaded: tuple[Any, Any], stop: str, reply: str, stops: bool
) -> None:
    ids = loaded[1](reply, add_special_tokens=False).input_ids
    limits = generation.RowLimits([Row([1], 1.0, 99, 0, (stop,))], loaded[1], 1, [])
    assert limits(torch.tensor([[1, *ids]]), torch.zeros(1, 1)).tolist() == [stops]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_the_memory_of_a_row_is_that_of_its_keys_values_and_logits(kind: str) -> None:
    model = tiny(kind, dtype=torch.float32, seed=1).eval()
    cache = model(torch.randint(3, 250, (1, 6)), use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert row_bytes(model, 6) - row_bytes(model, 0) == kept
    assert row_bytes(model, 0) == 16 * model.config.vocab_size


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Lets `generate` run out of memory for more than `most` rows; the sizes of batches that were tried."""
    tried: list[int] = []

    def generate_if_it_fits(model: Any, tokenizer: Any, rows: Any, given_up: Any = ()) -> Any:
        tried.append(len(rows))
        if len(rows) > most:
            raise torch.cuda.OutOfMemoryError("no memory")
        return generate(model, tokenizer, rows, given_up)

    monkeypatch.setattr(generation, "generate", generate_if_it_fits)
    return tried


async def test_out_of_memory_halves_the_batch_for_the_run_and_changes_no_reply(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = ModelSpec(name=str(folder), max_tokens=16, dtype="float32")
    calls = [Call.of(text, seed=1, max_tokens=6) for text in TEXTS[:8]]
    usual = [(await LocalModel(spec).complete(call)).text for call in calls]
    tried = short_of_memory(monkeypatch, 2)
    model = LocalModel(spec, ReplyCache(tmp_path / "replies.sqlite"))
    with caplog.at_level(logging.WARNING):
        replies = await asyncio.gather(*map(model.complete, calls))
    assert [reply.text for reply in replies] == usual
    assert tried == [8, 4, 2, 2, 2, 2]
    assert "too little GPU memory for 8 prompts at once; going on with 4" in caplog.text
    notes = run_notes(read_services(tmp_path / "services.json"), {})
    assert notes == [f"the GPU had too little memory for larger batches of {folder}; they have 2 prompts"]
    # The run's next process begins with what fits.
    tried.clear()
    again = LocalModel(spec, ReplyCache(tmp_path / "replies.sqlite"))
    await asyncio.gather(*(again.complete(Call.of(text, seed=2, max_tokens=6)) for text in TEXTS[:4]))
    assert max(tried) == 2


async def test_an_error_reaches_every_caller_and_the_next_call_is_answered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LocalModel(ModelSpec(name=str(folder), max_tokens=16))
    calls = [Call.of(text, seed=1, max_tokens=6) for text in TEXTS[:3]]
    short_of_memory(monkeypatch, 0)
    failures = await asyncio.gather(*map(model.complete, calls), return_exceptions=True)
    assert all(isinstance(failure, ModelError) for failure in failures)
    assert "too little GPU memory for a batch of one reply" in str(failures[2])

    def broken(*_: Any) -> Any:
        raise ValueError("broken")

    monkeypatch.setattr(generation, "generate", broken)
    failures = await asyncio.gather(*map(model.complete, calls), return_exceptions=True)
    assert [str(failure) for failure in failures] == ["broken"] * 3
    monkeypatch.setattr(generation, "generate", generate)
    assert (await model.complete(calls[0])).output_tokens > 0


class Asked(LocalModel):
    """A model that tells how many calls wait; unlike `complete`, `ask` ends with its caller."""

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def ask(self, text: str) -> Any:
        return await self._request(Call.of(text, seed=1, max_tokens=6))


async def test_a_call_that_is_given_up_leaves_its_batch_and_the_queue(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Asked(ModelSpec(name=str(folder), max_tokens=16))
    entered, go = threading.Event(), threading.Event()
    batches: list[tuple[int, list[bool]]] = []

    def held(loaded: Any, tokenizer: Any, rows: Any, given_up: Any = ()) -> Any:
        entered.set()
        assert go.wait(60)
        batches.append((len(rows), [gone() for gone in given_up]))
        return generate(loaded, tokenizer, rows, given_up)

    monkeypatch.setattr(generation, "generate", held)

    def asked(text: str) -> asyncio.Task[Any]:
        return asyncio.ensure_future(model.ask(text))

    first = [asked(text) for text in TEXTS[:2]]
    # The model computes in its thread; this loop goes on.
    assert await asyncio.to_thread(entered.wait, 60)
    later = [asked(text) for text in TEXTS[2:4]]
    await asyncio.to_thread(lambda: None)
    while model.waiting < 2:
        await asyncio.sleep(0.001)
    first[0].cancel()
    later[0].cancel()
    await asyncio.sleep(0)
    go.set()
    answers = await asyncio.gather(*first, *later, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, False, True, False]
    assert batches == [(2, [True, False]), (1, [False])]


def test_turns_go_round_in_the_order_of_asking_and_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    with turn(device), turn(device), others_turn(device):
        pass  # on a CPU nobody waits
    monkeypatch.setattr(turns, "SHARED_DEVICES", ())
    order: list[int] = []

    def work(number: int) -> None:
        with turn(device):
            order.append(number)

    threads = []
    with turn(device), turn(device):
        for number in range(4):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while len(turns.turns_of(device).waiting) <= number:  # type: ignore[union-attr]
                pass
        assert not order
        with others_turn(device):
            for thread in threads:
                thread.join(60)
        assert order == [0, 1, 2, 3]
    with others_turn(device), turn(device):
        pass  # nobody's turn, so there is none to give up
    work(4)
    assert order[-1] == 4


def waits_for_its_turn(work: Callable[[], Any]) -> bool:
    """Whether `work` waits while another thread has a turn, and then ends."""
    device = torch.device("cpu")
    waits = threading.Thread(target=work)
    with turn(device):
        waits.start()
        while waits.is_alive() and not turns.turns_of(device).waiting:  # type: ignore[union-attr]
            pass
        waited = waits.is_alive()
    waits.join(60)
    return waited and not waits.is_alive()


def test_generator_and_scorers_take_turns_on_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalModel(ModelSpec(name=str(folder), max_tokens=16, device="cpu"))
    target, questions, pairs = tiny_target(), samples(2, seed=1), samples(2, seed=2)
    exact, forward = InfluenceScorer(target, questions), ForwardScorer(target, questions)
    monkeypatch.setattr(turns, "SHARED_DEVICES", ())
    assert waits_for_its_turn(lambda: model.complete_sync(Call.of("the mill", seed=1, max_tokens=6)))
    assert waits_for_its_turn(lambda: exact.score(pairs))
    assert waits_for_its_turn(lambda: forward.score(pairs))


def test_a_model_is_loaded_when_no_other_thread_has_the_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Loading changes torch's default dtype for all threads.
    monkeypatch.setattr(turns, "SHARED_DEVICES", ())
    assert waits_for_its_turn(lambda: load_causal_lm(ModelSpec(name=str(folder), device="cpu")))


def test_models_load_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    inside, most = 0, 0
    load = AutoModelForCausalLM.from_pretrained

    def counted(*given: Any, **more: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return load(*given, **more)
        finally:
            inside -= 1

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    spec = ModelSpec(name=str(folder), device="cpu", dtype="bfloat16")
    with ThreadPoolExecutor(6) as threads:
        models = [model for model, _ in threads.map(load_causal_lm, [spec] * 12)]
    assert most == 1
    assert torch.get_default_dtype() == torch.float32
    first = models[0].state_dict()
    assert all(torch.equal(tensor, model.state_dict()[name]) for model in models for name, tensor in first.items())


def test_no_server_is_started_for_an_embedded_model_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = SimpleNamespace(recipe=tiny_recipe())
    monkeypatch.setattr("optimsyn.llm.embedded.server.published_server", lambda: None)
    monkeypatch.setattr("optimsyn.execution.runner.on_gpu", lambda spec: False)
    assert isinstance(embedded_server(run), EmbeddedServer)
    monkeypatch.setattr("optimsyn.execution.runner.on_gpu", lambda spec: True)
    assert not isinstance(embedded_server(run), EmbeddedServer)


def test_the_embedded_model_goes_where_the_recipe_or_a_gpu_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(device: str) -> type:
        return type(load_language_model(ModelSpec(name="embedded", device=device)))

    monkeypatch.setattr("optimsyn.llm.local.loading.DRIVERS", ("/nowhere",))
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kind("auto") is EmbeddedModel  # without a driver PyTorch is not even asked
    monkeypatch.setattr("optimsyn.llm.local.loading.DRIVERS", ("/",))
    assert (kind("auto"), kind("cuda"), kind("cpu")) == (LocalModel, LocalModel, EmbeddedModel)
    writer = load_language_model(ModelSpec(name="embedded"))
    assert writer.writer
    assert writer.identity.endswith(f"+{folder_fingerprint(adapter_dir())}")
    assert isinstance(writer, LocalModel)
    assert (writer.concurrency, writer.most_rows) == (1024, 512)
    few = load_language_model(ModelSpec(name="embedded", concurrency=24))
    assert isinstance(few, LocalModel)
    assert (few.concurrency, few.most_rows) == (24, 24)
    assert at_once(ModelSpec(name="openai/gpt-6-luna")) == 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kind("auto") is EmbeddedModel
    assert at_once(ModelSpec(name="embedded")) == 4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_the_embedded_writer_is_generated_by_transformers_as_on_a_gpu(
    dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, which the factory takes for a GPU."""
    monkeypatch.setattr("optimsyn.llm.factory.on_gpu", lambda spec: True)
    model = load_language_model(ModelSpec(name="embedded", device="cpu", dtype=dtype, max_tokens=40))
    assert model.manner == "writer"
    texts = [
        "Vitamin C prevents scurvy. Sailors of the eighteenth century ate lemons and limes against it.",
        "The bridge was built in 1887 from iron. It is 320 metres long and carries two railway lines.",
    ]
    prompts = [rubric_prompt(text, "Ask for one fact.", "short answer") for text in texts]
    calls = [Call.of(prompt, seed=seed, temperature=0.7, stop=("\n\n",)) for seed, prompt in enumerate(prompts)]
    together = await asyncio.gather(*map(model.complete, calls))
    assert all(reply.text.strip() and reply.output_tokens <= 40 for reply in together)
    if dtype == "float32":
        assert [(await model.complete(call)).text for call in calls] == [reply.text for reply in together]
    await model.aclose()
