"""Exported twins: read by peft, scored through a small server that speaks vLLM's protocol, and servers that fail."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from influence_helpers import byte_tokenizer, samples, tiny, tiny_target
from peft import PeftModel
from safetensors.torch import load_file

from optimsyn.base.errors import ModelError, ServiceError
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.derivative.twin_adapters import Twins, step_directions
from optimsyn.influence.derivative.twin_export import RECORD, TwinRecord, export_twins
from optimsyn.influence.derivative.twin_served import ServedTwinScorer
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.llm.hosted.prompt_logprobs import PromptLogprobs
from optimsyn.recipe.recipe import CountedTokens
from optimsyn.target.target import Target

Answer = Callable[[str, dict[str, Any], dict[str, str]], tuple[int, Any, dict[str, str]]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server on a free port; `answer` takes path, body and headers and gives status, JSON (or text) and headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, reply, headers = answer(self.path, body, dict(self.headers))
            data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class TinyVllm:
    """vLLM's two endpoints over a peft model: adapters by name, log-probabilities of prompts."""

    def __init__(self, base: Any, dtype: torch.dtype = torch.float64) -> None:
        self.base = base
        self.dtype = dtype
        self.model: Any = None
        self.names: set[str] = set()
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        with self._lock:
            self.calls.append(path)
            if path == "/v1/load_lora_adapter":
                return self._load(body["lora_name"], body["lora_path"])
            return self._complete(body)

    def _load(self, name: str, folder: str) -> tuple[int, Any, dict[str, str]]:
        if name in self.names:
            message = f"The lora adapter '{name}' has already been loaded."
            return 400, {"error": {"message": message, "type": "InvalidUserInput", "code": 400}}, {}
        if not Path(folder, "adapter_config.json").is_file():
            return 404, {"error": {"message": f"No adapter found for {folder}", "code": 404}}, {}
        if self.model is None:
            self.model = PeftModel.from_pretrained(self.base, folder, adapter_name=name)
        else:
            self.model.load_adapter(folder, adapter_name=name)
        self.names.add(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully.", {}

    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        if body["model"] not in self.names:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}, {}
        assert body["max_tokens"] >= 1
        assert body["prompt_logprobs"] >= 1
        self.model.set_adapter(body["model"])
        ids = body["prompt"]
        table = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1).to(self.dtype)
        rows: list[dict[str, Any] | None] = [None]
        for place, token in enumerate(ids[1:]):
            best = int(table[place].argmax())
            rank = int((table[place] >= table[place, token]).sum())
            rows.append({str(best): {"logprob": float(table[place, best]), "rank": 1, "decoded_token": "?"}})
            row = {"logprob": float(table[place, token]), "rank": rank, "decoded_token": "?"}
            rows[-1] = {**(rows[-1] or {}), str(token): row}
        choice = {"index": 0, "text": "?", "logprobs": None, "finish_reason": "length", "prompt_logprobs": rows}
        return 200, {"id": "cmpl-1", "object": "text_completion", "choices": [choice]}, {}


def _base(kind: str, dtype: torch.dtype = torch.float64) -> Any:
    return tiny(kind, dtype=dtype)


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_reads_the_folders_and_finds_the_losses_of_the_twins(kind: str, stacked: bool, tmp_path: Path) -> None:
    target = tiny_target(kind)
    scorer = TwinScorer(target, samples(4, seed=1))
    folders = export_twins(scorer, tmp_path / "twins", stacked=stacked)
    (batch,) = target.batches(samples(3, seed=2), 4096)
    (plan,) = scorer.plans
    step = step_directions(target, target.checkpoints[-1], scorer.directions[0], scorer.estimator)
    points = [{name: value[0] * epsilon for name, value in step.items()} for _, epsilon in plan.points]
    twins = Twins(target)
    wanted, _ = twins.token_losses(batch, twins.moved(points))
    for i, folder in enumerate(folders):
        assert {f.name for f in folder.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
        model = PeftModel.from_pretrained(_base(kind), str(folder)).eval()
        logits = model(input_ids=batch.input_ids).logits[:, :-1].log_softmax(-1)
        kept = batch.labels[:, 1:] != -100
        chosen = logits[kept].gather(-1, batch.labels[:, 1:][kept].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(-chosen.detach(), wanted[i], rtol=1e-6, atol=1e-6)
    facts = json.loads((tmp_path / "twins" / RECORD).read_text())
    assert facts["target"] == target.fingerprint() and facts["estimator"] == "adam_linear"
    assert [point["epsilon"] for point in facts["points"][0]] == [e for _, e in plan.points]
    assert TwinRecord.load(tmp_path / "twins").plans == tuple(scorer.plans)


def test_stacked_twins_survive_rounding_to_sixteen_bits(tmp_path: Path) -> None:
    """What vLLM does to adapters by default: the step must not drown in the rounding of the weights it is added to."""
    target = tiny_target("gpt2")
    scorer = TwinScorer(target, samples(4, seed=1))
    step = step_directions(target, target.checkpoints[-1], scorer.directions[0], scorer.estimator)
    epsilon = scorer.epsilon["all"][0]

    def slope(stacked: bool) -> tuple[float, float]:
        folders = export_twins(scorer, tmp_path / str(stacked), stacked=stacked)
        off = size = 0.0
        halves = [load_file(folder / "adapter_model.safetensors") for folder in folders]
        for name in step:
            if ".lora_A." not in name:
                continue
            a_name, b_name = (n.replace(".default", "") for n in (name, name.replace(".lora_A.", ".lora_B.")))
            plus, minus = (h[b_name].bfloat16().double() @ h[a_name].bfloat16().double() for h in halves)
            a, b = target.parameters[name].detach(), target.parameters[name.replace(".lora_A.", ".lora_B.")].detach()
            move_a, move_b = step[name][0], step[name.replace(".lora_A.", ".lora_B.")][0]
            wanted = move_b @ a + b @ move_a
            off += float(((plus - minus) / (2 * epsilon) - wanted).square().sum())
            size += float(wanted.square().sum())
        return off**0.5, size**0.5

    off, size = slope(True)
    assert off < 0.01 * size
    off, size = slope(False)
    assert off > size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sides", "tokens"),
    [
        ("central", CountedTokens()),
        ("one-sided", CountedTokens(end_of_questions=1.0, end_of_pairs=0.3, reduction="root")),
    ],
)
def test_scores_through_a_server_are_those_in_process(
    sides: Literal["central", "one-sided"], tokens: CountedTokens, tmp_path: Path
) -> None:
    target = tiny_target("gpt2", warm=False)
    target.warm_up(samples(6, seed=9), steps=4, batch_size=2, lr=1e-2, checkpoints=2)
    questions, pairs = samples(6, seed=1, subtasks=("a", "b")), samples(4, seed=2)
    scorer = TwinScorer(target, questions, sides=sides, tokens=tokens)
    folders = export_twins(scorer, tmp_path)
    assert len(folders) == 2 * (4 if sides == "central" else 3)
    wanted = scorer.score(pairs, token_shares=True)
    server = TinyVllm(_base("gpt2"))
    with serving(server) as address:
        served = ServedTwinScorer(tmp_path, byte_tokenizer(), address)
        found = served.score(pairs, token_shares=True)
        assert served.score(pairs[:1]).ids == (pairs[0].id,)
        # A second scorer on the same server finds its adapters loaded.
        ServedTwinScorer(tmp_path, byte_tokenizer(), address, concurrency=1).score(pairs[:1])
    scale = float(wanted.by_subtask.abs().max())
    torch.testing.assert_close(found.by_subtask, wanted.by_subtask, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-6, atol=1e-6)
    assert wanted.token_shares is not None and found.token_shares is not None
    for one, other in zip(found.token_shares, wanted.token_shares, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale)
    assert served.subtasks == scorer.subtasks and scorer.fingerprint in served.fingerprint != scorer.fingerprint
    assert server.calls.count("/v1/load_lora_adapter") == 2 * len(set(folders))
    assert len(served.score([])) == 0
    assert served.zero_gradient_baseline() == scorer.zero_gradient_baseline()


@pytest.mark.slow
def test_a_server_that_rounds_log_probabilities_is_refused(tmp_path: Path) -> None:
    target = tiny_target("gpt2")
    scorer = TwinScorer(target, samples(6, seed=1))
    export_twins(scorer, tmp_path)
    record = TwinRecord.load(tmp_path)
    assert 4 <= len(record.probes) <= 8 and all(len(probe.scores) == 1 for probe in record.probes)
    exact = InfluenceScorer(target, samples(6, seed=1))
    assert sorted(p.scores[0] for p in record.probes) == pytest.approx(sorted(exact.reference.flatten().tolist()))
    pairs = samples(3, seed=2)
    with serving(TinyVllm(_base("gpt2"), torch.bfloat16)) as address:
        served = ServedTwinScorer(tmp_path, byte_tokenizer(), address)
        with pytest.raises(ModelError, match=r"server's scores are off by .* serve the model with --dtype float32"):
            served.score(pairs)
        assert served.numerical_error > 0.5 and served.method == "twin"
        noise = ServedTwinScorer(tmp_path, byte_tokenizer(), address, most_error=1e9).score(pairs)
        assert float((noise.total - scorer.score(pairs).total).norm()) > 0.5 * float(scorer.score(pairs).total.norm())
    with serving(TinyVllm(_base("gpt2"))) as address:
        assert ServedTwinScorer(tmp_path, byte_tokenizer(), address).numerical_error < 1e-3


def test_wrong_folders_tokenizers_and_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"twins\.json: not readable.*export"):
        ServedTwinScorer(tmp_path, byte_tokenizer(), "http://127.0.0.1:1/v1")
    target = tiny_target("gpt2")
    export_twins(TwinScorer(target, samples(2, seed=1)), tmp_path)
    other = byte_tokenizer()
    other.add_tokens(["Naïve"])
    with pytest.raises(ModelError, match="tokenizer"):
        ServedTwinScorer(tmp_path, other, "http://127.0.0.1:1/v1")
    model = tiny("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "down_proj" in name
    whole = Target.from_model(model, byte_tokenizer(), lora=None, max_length=200)
    whole.warm_up(samples(2, seed=3), steps=2, batch_size=2, lr=1e-3)
    with pytest.raises(ModelError, match="plain LoRA"):
        export_twins(TwinScorer(whole, samples(2, seed=1)), tmp_path / "whole")


def _ask(address: str, **options: Any) -> list[float]:
    async def main() -> list[float]:
        async with PromptLogprobs(address, **options) as client:
            return await client.logprobs("twin-1", [5, 6, 7])

    return asyncio.run(main())


def _good() -> dict[str, Any]:
    rows = [None, {"6": {"logprob": -1.5}, "9": {"logprob": -0.5}}, {"7": {"logprob": -2.25}}]
    return {"choices": [{"prompt_logprobs": rows}]}


def test_a_rate_limit_passes_and_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER_KEY", "sk-very-secret-1")
    seen: list[str] = []

    def answer(path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        seen.append(headers["Authorization"])
        if len(seen) < 3:
            return 429 if len(seen) == 1 else 503, {"error": {"message": "wait"}}, {"Retry-After": "0"}
        return 200, _good(), {}

    with serving(answer) as address:
        assert _ask(address, api_key_env="MY_SERVER_KEY") == [-1.5, -2.25]
    assert seen == ["Bearer sk-very-secret-1"] * 3


def test_a_refused_key_is_named_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVER_KEY", "sk-very-secret-1")
    refuse = (401, {"error": "no such key: sk-very-secret-1"}, {})
    refused = pytest.raises(ServiceError, match=r"key was refused \(HTTP 401\)")
    with serving(lambda *_: refuse) as address, refused as caught:
        _ask(address, api_key_env="MY_SERVER_KEY")
    assert "secret" not in str(caught.value)
    with pytest.raises(ServiceError, match="MY_OTHER_KEY.*not set"):
        _ask("http://127.0.0.1:1/v1", api_key_env="MY_OTHER_KEY")


@pytest.mark.parametrize(
    ("status", "reply", "words"),
    [
        (404, {"error": {"message": "The model `twin-1` does not exist."}}, r"HTTP 404.*does not exist"),
        (400, {"error": {"message": "maximum context length is 8"}}, r"HTTP 400.*maximum context length"),
        (200, {"choices": [{"text": "x"}]}, r"no choices\[0\]\.prompt_logprobs.*vLLM"),
        (200, "gone fishing", r"no choices\[0\]\.prompt_logprobs"),
        (200, {"choices": [{"prompt_logprobs": [None, {"6": {"logprob": -1.0}}]}]}, r"2 tokens.*3"),
        (200, {"choices": [{"prompt_logprobs": [None, {"8": {"logprob": -1.0}}, None]}]}, r"token 6 at place 1"),
    ],
)
def test_wrong_replies_say_what_is_wrong(status: int, reply: Any, words: str) -> None:
    with serving(lambda *_: (status, reply, {})) as address, pytest.raises(ServiceError, match=words):
        _ask(address)


def test_a_dead_port_and_an_adapter_that_is_not_there() -> None:
    with serving(lambda *_: (200, {}, {})) as address:
        pass
    with pytest.raises(ServiceError, match=r"connection failed.*api_base"):
        _ask(address, retries=0)

    async def load(address: str) -> None:
        async with PromptLogprobs(address) as client:
            await client.load_adapter("twin-1", "/nowhere")

    with serving(TinyVllm(None)) as address, pytest.raises(ServiceError, match=r"not loaded.*ALLOW_RUNTIME_LORA"):
        asyncio.run(load(address))
