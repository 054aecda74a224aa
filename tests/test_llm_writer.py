"""The embedded model's adapter: converted for llama.cpp, served, and the same as under transformers and peft."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from optimsyn.base.errors import ModelError
from optimsyn.llm.embedded import writer
from optimsyn.llm.embedded.model import EmbeddedModel
from optimsyn.llm.embedded.server import EmbeddedServer, gguf_sha256
from optimsyn.recipe.recipe import ModelSpec

MODULES = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
SIZES = {
    "q_proj": (640, 1024), "k_proj": (640, 256), "v_proj": (640, 256), "o_proj": (1024, 640),
    "gate_proj": (640, 2048), "up_proj": (640, 2048), "down_proj": (2048, 640),
}  # fmt: skip
RANK = 4
PROMPT = "Passage: Vitamin C is found in citrus fruit, and a lack of it causes scurvy.\nPair:\n"


def make_adapter(folder: Path, **config: Any) -> Path:
    """A random LoRA of the embedded model, large enough to change what it says."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in range(18):
        for block, names in MODULES.items():
            for name in names:
                put, out = SIZES[name]
                stem = f"base_model.model.model.layers.{layer}.{block}.{name}"
                shapes = {"lora_A": (RANK, put, 0.04), "lora_B": (out, RANK, 0.01)}
                for matrix, (rows, columns, scale) in shapes.items():
                    value = torch.randn(rows, columns, generator=generator) * scale
                    tensors[f"{stem}.{matrix}.weight"] = value.to(torch.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "bias": "none",
        "target_modules": list(SIZES), **config,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("writer") / "adapter")


@pytest.fixture(scope="module")
def served(adapter: Path) -> Iterator[EmbeddedServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "adapter_dir", lambda: adapter)
        with EmbeddedServer(publish=False) as running:
            yield running


def test_it_comes_along_small_and_says_nothing_of_the_machine_that_trained_it() -> None:
    folder = writer.adapter_dir()
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "writer.json"}
    assert sum(files.values()) < 20e6
    for name in ("adapter_config.json", "writer.json"):
        assert not re.search(r"/(?:home|root|tmp|Users)\b", (folder / name).read_text())
    assert {value.dtype for value in load_file(folder / "adapter_model.safetensors").values()} == {torch.bfloat16}
    assert {"corpus", "scripts", "held_out"} <= set(json.loads((folder / "writer.json").read_text()))


def test_it_is_converted_once_and_its_numbers_stay(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    monkeypatch.setattr(writer, "adapter_dir", lambda: adapter)
    monkeypatch.setenv("OPTIMSYN_CACHE", str(tmp_path))
    file = writer.adapter_gguf()
    assert writer.adapter_fingerprint()[:12] in file.name
    assert [path.name for path in tmp_path.glob("*.gguf*") if path.suffix != ".lock"] == [file.name]
    made = file.stat().st_mtime_ns
    assert writer.adapter_gguf().stat().st_mtime_ns == made
    reader = gguf.GGUFReader(file)
    facts = {name: reader.fields[name].contents() for name in ("general.architecture", "general.type", "adapter.type")}
    assert facts == {"general.architecture": "gemma3", "general.type": "adapter", "adapter.type": "lora"}
    assert reader.fields["adapter.lora.alpha"].contents() == 8
    written = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    ours = load_file(adapter / "adapter_model.safetensors")
    assert len(written) == len(ours)
    for theirs, module in (
        ("attn_output", "self_attn.o_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("attn_q", "self_attn.q_proj"),
    ):
        for matrix in "AB":
            value = ours[f"base_model.model.model.layers.7.{module}.lora_{matrix}.weight"]
            assert torch.equal(written[f"blk.7.{theirs}.weight.lora_{matrix.lower()}"], value.float())


@pytest.mark.parametrize(
    ("config", "name", "reason"),
    [
        ({"use_dora": True}, "", "use_dora"),
        ({"bias": "all"}, "", "a bias"),
        ({}, "base_model.model.lm_head.modules.weight", "no LoRA matrix"),
    ],
)
def test_what_llama_cpp_cannot_read_is_refused(tmp_path: Path, config: dict[str, Any], name: str, reason: str) -> None:
    folder = make_adapter(tmp_path / "adapter", **config)
    if name:
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({**tensors, name: torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=reason):
        writer.convert(folder, tmp_path / "out.gguf")


def test_another_adapter_is_another_model(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identities = set()
    for folder in (adapter, make_adapter(tmp_path / "adapter", lora_alpha=9)):
        monkeypatch.setattr(writer, "adapter_dir", lambda folder=folder: folder)
        identities.add(EmbeddedModel(ModelSpec(name="embedded")).identity)
        assert all(identity.startswith(f"embedded:{gguf_sha256()}+") for identity in identities)
    assert len(identities) == 2


@pytest.mark.slow
def test_the_served_adapter_agrees_with_peft_and_changes_the_model(adapter: Path, served: EmbeddedServer) -> None:
    from optimsyn.llm.local.loading import load_causal_lm

    reply = httpx.post(
        served.url.removesuffix("/v1") + "/completion",
        headers={"Authorization": f"Bearer {served.key}"},
        json={"prompt": PROMPT, "n_predict": 1, "n_probs": 20, "temperature": 0},
        timeout=600,
        trust_env=False,
    )
    ranked = reply.json()["completion_probabilities"][0]["top_logprobs"]
    spec = ModelSpec(name="embedded", device="cpu", dtype="float32")
    means = []
    for folder in (adapter, None):
        model, tokenizer = load_causal_lm(spec, adapter=folder)
        with torch.no_grad():
            ours = model(**tokenizer(PROMPT, return_tensors="pt")).logits[0, -1].log_softmax(0)
        means.append(sum(abs(float(ours[token["id"]]) - token["logprob"]) for token in ranked[:10]) / 10)
    # llama.cpp rounds activations to eight bits, which alone makes 0.1 here.
    assert means[0] < 0.25
    assert means[1] > 0.5
