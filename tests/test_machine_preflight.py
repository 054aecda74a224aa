"""What a recipe would meet on this machine, told before anything is spent."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
from data_helpers import recipe_of, text_of, write_lines
from safetensors.numpy import save_file

from optimsyn.base.environment import SERVICE_KEYS
from optimsyn.base.errors import RecipeError
from optimsyn.machine import availability as available
from optimsyn.machine import doctor, memory
from optimsyn.machine.availability import (
    Availability,
    availability,
    device_problems,
    memory_needed,
    memory_problems,
)
from optimsyn.machine.hub_lookup import cached_folder
from optimsyn.machine.memory import BYTES_A_WEIGHT, chosen_dtype, largest_model
from optimsyn.machine.preflight import checked, price_problems, validate
from optimsyn.machine.weights import parameters_in, tensor_shapes
from optimsyn.recipe.recipe import ModelSpec, Recipe, TargetSpec

RECIPES = Path(__file__).parent.parent / "recipes"
DOMAINS = ("medicine", "law", "finance", "humanities", "social_sciences")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in SERVICE_KEYS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)


def problems(recipe: Recipe, **options: Any) -> str:
    return "\n".join(validate(recipe, **options).problems)


def test_a_good_recipe_passes(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    found = validate(recipe)
    assert found.problems == []
    assert found.ok
    found.raise_if_refused()
    assert found.counts["documents"] == 12
    assert found.counts["validation"] == found.counts["test"] == 30


def test_the_preflight_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from optimsyn.recipe.recipe import Recipe; from optimsyn.machine.preflight import validate; "
        f"found = validate(Recipe.load({str(RECIPES / 'quickstart.yaml')!r})); assert found.ok, found; "
        "heavy = {'torch', 'transformers', 'trl', 'dspy', 'litellm', 'datasets', 'pandas'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600, cwd=RECIPES.parent)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "documents.jsonl", [{"id": "a", "text": text_of(60)}, {"id": "b", "text": " "}])
    write_lines(
        tmp_path / "questions.jsonl", [{"question": "When?", "answer": ""}, {"question": "Why?", "answer": "x"}]
    )
    recipe = recipe_of(
        tmp_path,
        models={"generator": "openai/gpt-5-mini", "target": "./nowhere"},
        checks={"disabled": ["grounded_"], "plugins": ["no.such.module:check"]},
        guiding_text="Ask a question.",
    )
    found = validate(recipe)
    text = "\n".join(found.problems)
    assert "documents.jsonl:2: document `text` is empty" in text
    assert "questions.jsonl:1: question has no answer" in text
    assert "set the environment variable OPENAI_API_KEY" in text
    assert "models.target: there is no folder ./nowhere" in text
    assert "checks.disabled: there is no check 'grounded_'; did you mean `grounded`?" in text
    assert "checks.plugins: 'no.such.module:check' cannot be imported" in text
    assert "guiding_text: 'Ask a question.' says too little" in text
    assert not found.ok
    with pytest.raises(RecipeError, match="OPENAI_API_KEY"):
        found.raise_if_refused()


def test_a_fault_in_every_row_fills_no_screens_and_hides_nothing_else(tmp_path: Path) -> None:
    write_lines(tmp_path / "questions.jsonl", [{"id": "a", "question": f"{i}?", "answer": "x"} for i in range(90)])
    write_lines(tmp_path / "documents.jsonl", [{"text": text_of(60)} for _ in range(90)])
    found = validate(recipe_of(tmp_path, models={"target": "./nowhere"}))
    assert len(found.problems) == 2 * 21 + 1
    assert "... and 69 more of documents" in found.problems
    assert "... and 69 more of questions" in found.problems
    assert "there is no folder ./nowhere" in found.problems[-1]
    rows = [{"id": f"{i}", "question": "Why so?", "answer": "x", "group": f"{i}"} for i in range(90)]
    write_lines(tmp_path / "questions.jsonl", rows)
    assert len(validate(recipe_of(tmp_path)).warnings) < 25


def test_missing_files(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, documents={"source": str(tmp_path / "documents.json")})
    for deep in (True, False):
        assert "documents.source:" in problems(recipe, deep=deep)
        assert "Did you mean" in problems(recipe, deep=deep)
    found = checked(recipe_of(tmp_path), tmp_path / "questions.jsonl" / "runs")
    assert [problem for problem in found.problems if "questions.jsonl: is a file, so no run folder" in problem]
    (tmp_path / "questions.jsonl").write_text("\n")
    assert "questions.validation: questions.jsonl: there are no rows in it" in problems(recipe_of(tmp_path))


def test_open_book_questions_about_unknown_documents(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}?", "answer": "x", "document_id": f"d{i}", "open_book": True} for i in range(14)]
    write_lines(tmp_path / "questions.jsonl", rows)
    found = validate(recipe_of(tmp_path))
    assert not any("not among the documents" in problem for problem in found.problems)
    assert any("2 of 14 questions" in warning and "questions.jsonl:13" in warning for warning in found.warnings)
    # With documents from the hub nobody can tell yet.
    recipe = recipe_of(tmp_path, documents={"source": {"hub": "no-such/data-set"}})
    assert "not among the documents" not in problems(recipe)


def test_questions_that_never_fit_the_target(tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "question": f"Q{i}? " + "word " * (60 if i else 0), "answer": "x"} for i in range(4)]
    write_lines(tmp_path / "questions.jsonl", rows)
    recipe = recipe_of(tmp_path, models={"target": {"name": "embedded", "max_length": 40}})
    text = problems(recipe)
    assert "question 'q1' takes at least" in text
    assert "models.target.max_length = 40" in text
    assert "'q0'" not in text


def test_too_few_passages_and_questions_are_warned_of(tmp_path: Path) -> None:
    write_lines(tmp_path / "documents.jsonl", [{"text": text_of(60)}])
    write_lines(tmp_path / "questions.jsonl", [{"question": f"Q{i}?", "answer": "x"} for i in range(4)])
    warnings = "\n".join(validate(recipe_of(tmp_path)).warnings)
    assert "optimizers.prompt.passages" in warnings
    assert "synthesis.pairs" in warnings
    assert "2 questions give the influence a noisy direction" in warnings
    assert "2 test questions" in warnings
    write_lines(tmp_path / "documents.jsonl", [{"text": "Six words are not a passage."}])
    assert "documents.min_words = 20" in problems(recipe_of(tmp_path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec(name="openai/gpt-5-mini"), "OPENAI_API_KEY"),
        (ModelSpec(name="claude-sonnet-4-5"), "ANTHROPIC_API_KEY"),
        (ModelSpec(name="gemini/gemini-2.5-flash"), "GEMINI_API_KEY or GOOGLE_API_KEY"),
        (ModelSpec(name="openai/x", api_base="http://h/v1", api_key_env="MY_KEY"), "MY_KEY (api_key_env) is not set"),
        (ModelSpec(name="openai/x", api_base="localhost:8000"), "must be an address"),
        (ModelSpec(name="openai/x", api_base="http://h:99999/v1"), "impossible host or port"),
        (ModelSpec(name="openai/x", api_base="http://h:80a/v1"), "impossible host or port"),
        (ModelSpec(name="openai/x", api_base="http://[::1/v1"), "an impossible host or port"),
        (ModelSpec(name="openai/x", api_base="http://me:secret/word@h/v1"), "impossible host or port"),
        (ModelSpec(name="openai/x", api_base="http://me:secret@h/v1"), "holds a user name or password"),
        (ModelSpec(name="no-such-model"), "names no provider"),
    ],
)
def test_services(spec: ModelSpec, message: str) -> None:
    found = availability("generator", spec, network=False)
    assert message in "\n".join(found.problems)
    assert "secret" not in "\n".join(found.problems).replace("put the secret", "")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("opnai/gpt-5-mini", "openai/gpt-5-mini"),
        ("openia/gpt5-mini", "openai/gpt-5-mini"),
        ("OpenAI/gpt-5-mini", "openai/gpt-5-mini"),
        ("anthropi/claude-haiku-4-5", "anthropic/claude-haiku-4-5"),
        ("gemni/gemini-2.5-pro", "gemini/gemini-2.5-pro"),
        ("opnrouter/openai/gpt-4o", "openrouter/openai/gpt-4o"),
        ("ollma/some-model-of-mine", "ollama/some-model-of-mine"),
        ("gpt5-mini", "openai/gpt-5-mini"),
    ],
)
def test_a_misspelled_provider_is_told_apart_from_an_organisation_of_the_hub(name: str, meant: str) -> None:
    assert f"did you mean `{meant}`?" in "\n".join(availability("generator", ModelSpec(name=name)).problems)


@pytest.mark.parametrize("role", ["generator", "rubric", "target", "reflection", "judge", "author"])
def test_a_misspelled_embedded_is_named_in_every_role(role: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"models.{role}: there is no model 'embeded'; did you mean `embedded`"):
        recipe_of(tmp_path, models={role: "embeded"})


def test_lessons_that_nobody_learns_are_noted(tmp_path: Path) -> None:
    write_lines(tmp_path / "questions.jsonl", [{"question": "Why so?", "answer": "x"}])
    write_lines(tmp_path / "documents.jsonl", [{"text": text_of(60)}])
    idle = validate(recipe_of(tmp_path, author={"lessons": 16}), deep=False).warnings
    assert sum("author.lessons: 16 has no effect" in note for note in idle) == 1
    learns = {"policy": {"method": "expert", "learn_from": ["author"]}}
    for used in ({"author": {"lessons": 16}, "optimizers": learns}, {}):
        assert not any("author.lessons" in note for note in validate(recipe_of(tmp_path, **used), deep=False).warnings)


def test_organisations_of_the_hub_are_no_misspelled_providers() -> None:
    names = "mistralai/Mistral-7B-v0.3 meta-llama/Llama-3.2-1B deepseek-ai/DeepSeek-V3 google/gemma-3-1b"
    more = "Qwen/Qwen3-0.6B openai-community/gpt2 Groq/Llama-3-Groq-8B nvidia/Minitron-4B xai-org/grok-1"
    for name in f"{names} {more} hub:opnai/gpt-5-mini".split():
        found = availability("generator", ModelSpec(name=name), network=False)
        assert found.problems == []
        assert len(found.unchecked) == 1
    assert availability("target", TargetSpec(name="opnai/gpt-5-mini"), network=False).problems == []


def test_a_key_that_is_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "x" * 20)
    assert availability("generator", ModelSpec(name="gemini/gemini-2.5-flash"), network=False).problems == []


def test_a_model_that_has_ended_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-used-here")
    told = availability("generator", ModelSpec(name="openai/o1"), network=False).warnings
    assert any("shut down on 2026-10-23" in text for text in told)
    assert not availability("generator", ModelSpec(name="openai/gpt-6-luna"), network=False).warnings


def test_a_cap_on_money_beside_an_unknown_price_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "not-used-here")
    unknown = {"name": "openai/nobody-knows", "api_base": "http://127.0.0.1:9/v1"}
    found = validate(recipe_of(tmp_path, models={"generator": unknown}, limits={"cost_usd": 5}), offline=True)
    (problem,) = [text for text in found.problems if "cost_usd" in text]
    assert "models.generator.prices" in problem and "models.generator.base_model" in problem
    for cure in ({"prices": {"input": 0, "output": 0}}, {"base_model": "gpt-6-luna"}):
        mended = recipe_of(tmp_path, models={"generator": {**unknown, **cure}}, limits={"cost_usd": 5})
        assert validate(mended, offline=True).ok
    assert validate(recipe_of(tmp_path, models={"generator": unknown}, limits={"tokens": 5}), offline=True).ok
    assert price_problems(recipe_of(tmp_path, models={"reflection": unknown}), "--cost-usd") == [
        problem.replace("limits.cost_usd", "--cost-usd").replace("models.generator", "models.reflection")
    ]


def test_a_dead_port_is_warned_of() -> None:
    found = availability("generator", ModelSpec(name="openai/x", api_base="http://127.0.0.1:9/v1"))
    assert found.problems == []
    assert "nothing answers at 127.0.0.1:9" in found.warnings[0]
    found = availability("generator", ModelSpec(name="openai/x", api_base=f"http://{'h' * 70}.example/v1"))
    assert "nothing answers at" in found.warnings[0]


def safetensors(path: Path, names: dict[str, list[int]]) -> None:
    save_file({name: np.zeros(shape, np.float32) for name, shape in names.items()}, path)


def test_local_folders(tmp_path: Path) -> None:
    spec = TargetSpec(name=str(tmp_path))

    def found() -> str:
        return "\n".join(availability("target", spec).problems)

    assert "has no config.json" in found()
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "is a LoRA adapter" in found()
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    assert "has no weights" in found()
    safetensors(tmp_path / "model.safetensors", {"model.layers.0.attn.c_attn.weight": [4, 5], "model.norm.weight": [3]})
    assert "has no tokenizer" in found()
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "is a BertForMaskedLM, not a causal language model" in found()
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    assert "has no layer called q_proj, k_proj, v_proj, o_proj; it has" in found()
    assert parameters_in(tmp_path, tensor_shapes(tmp_path)) == 23
    good = TargetSpec.model_validate({"name": str(tmp_path), "lora": {"target_modules": ["c_attn"]}, "device": "cpu"})
    assert availability("target", good).problems == []
    assert availability("target", good).weight_bytes == 92
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-1])
    (problem,) = availability("target", good).problems
    assert f"{tmp_path / 'model.safetensors'}: is damaged or cut off" in problem


def test_a_device_that_is_not_here_is_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, models={"target": {"name": "embedded", "device": "cuda:77"}})
    problems = validate(recipe).problems
    assert any("models.target.device: cuda:77 is not on this machine" in problem for problem in problems)
    assert all("cuda:77" not in problem for problem in validate(recipe, here=False).problems)
    service = ModelSpec(name="openai/x", api_base="http://h/v1", device="cuda:77")
    assert device_problems([availability("generator", service, network=False)]) == []
    with pytest.raises(RecipeError, match="device is 'gpu'; it must be auto, cpu, mps, cuda"):
        recipe_of(tmp_path, models={"target": {"name": "embedded", "device": "gpu"}})


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [Availability("target", "big", [], [], 30 * 10**9), Availability("generator", "service", [], [], 0)]
    monkeypatch.setattr(available, "main_memory", lambda: (16 * 10**9, 8 * 10**9))
    stop, _ = memory_problems(models)
    assert "39.0 GB of memory are needed (target big 30.0 GB" in stop[0]
    monkeypatch.setattr(available, "main_memory", lambda: (64 * 10**9, 8 * 10**9))
    stop, warn = memory_problems(models)
    assert stop == []
    assert "8.0 GB free of 64.0 GB" in warn[0]
    assert memory_problems(models[1:]) == ([], [])


@pytest.mark.parametrize("gpu", [False, True])
def test_doctor_and_preflight_agree_on_the_largest_model(gpu: bool) -> None:
    for room in (2 * 10**9, 16 * 10**9, 80 * 10**9):
        fits = largest_model(room, gpu=gpu)
        weights = [
            fits * BYTES_A_WEIGHT[chosen_dtype("auto", gpu=gpu)],
            (fits + 2) * BYTES_A_WEIGHT["bfloat16" if gpu else "float32"],
        ]
        small, large = (memory_needed([Availability("target", "m", [], [], w, gpu)], gpu=gpu) for w in weights)
        assert small <= room + 1 < large + 1
    assert largest_model(10**9, gpu=False) == 0


def test_doctor_keeps_to_the_limit_of_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {"max": "4000000000\n", "current": "3500000000\n", "stat": "anon 1000000000\ninactive_file 2500000000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "CONTAINER", [tuple(str(tmp_path / name) for name in files)])
    total, free = memory.main_memory()
    # The page cache that gives way is room.
    assert total == 4 * 10**9
    assert free == 3 * 10**9 or (free < 3 * 10**9 and psutil.virtual_memory().available < 3.5 * 10**9)
    found = doctor.notebook_findings()[3]
    assert (found.what, found.status) == ("memory", "fail")
    assert found.detail.startswith("4.0 GB")


class _Hub(BaseHTTPRequestHandler):
    """A few repositories as the hub shows them."""

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/api/models/").removeprefix("/api/datasets/")
        files = [("config.json", 10), ("model.safetensors", 2_000_000_000)]
        body: dict[str, Any] = {"id": name, "siblings": [{"rfilename": f, "size": s} for f, s in files], "gated": False}
        status, header = 200, ""
        if name.startswith("org/good"):
            body["safetensors"] = {"parameters": {"BF16": 10**9}, "total": 10**9}
        elif name.startswith("org/lora"):
            body["siblings"] = [{"rfilename": "adapter_config.json", "size": 1}]
        elif name.startswith("org/gated"):
            body["gated"] = "auto"
            status, header = (403, "GatedRepo") if name.endswith("auth-check") else (200, "")
        elif name.startswith("org/data"):
            status, header = (404, "RevisionNotFound") if name.endswith("revision/v9") else (200, "")
        else:
            status, header = 401, "RepoNotFound"
        content = json.dumps(body if status == 200 else {"error": header}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if header:
            self.send_header("X-Error-Code", header)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from huggingface_hub import constants

    server = HTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield
    server.shutdown()
    server.server_close()


def test_hub_models_and_datasets(hub: None, tmp_path: Path) -> None:
    def told(name: str) -> Availability:
        return availability("target", TargetSpec(name=name, device="cpu", dtype="bfloat16"))

    assert told("org/good").problems == []
    assert told("org/good").weight_bytes == 2 * 10**9
    assert "the hub has no model 'org/wrong' that you may see" in told("org/wrong").problems[0]
    assert "is a LoRA adapter" in told("org/lora").problems[0]
    assert "is gated: accept its terms" in told("org/gated").problems[0]
    source = {"hub": "org/data", "revision": "v9"}
    assert "documents.source: org/data has no revision 'v9'" in problems(
        recipe_of(tmp_path, documents={"source": source})
    )
    assert problems(recipe_of(tmp_path, documents={"source": {"hub": "org/data"}})) == ""


def test_offline_is_told_apart_from_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    spec = ModelSpec(name="org/model", device="cpu")
    assert "the hub cannot be reached" in availability("rubric", spec).problems[0]
    snapshot = tmp_path / "models--org--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--model" / "refs").mkdir()
    (tmp_path / "models--org--model" / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text('{"architectures": ["QwenForCausalLM"]}')
    (snapshot / "tokenizer.json").write_text("{}")
    safetensors(snapshot / "model.safetensors", {"lm_head.weight": [10, 10]})
    assert availability("rubric", spec).problems == []
    assert availability("rubric", spec).weight_bytes == 400


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_the_cache_is_searched_by_branch_and_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["model", "dataset"]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert cached_folder(kind, "org/name") is None
    repo = tmp_path / "hub" / f"{kind}s--org--name"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    (repo / "refs" / "v1").write_text("f" * 40)
    # Of a dataset any snapshot will do, a model needs its configuration and weights.
    assert cached_folder(kind, "org/name") == (snapshot if kind == "dataset" else None)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "pytorch_model.bin").touch()
    assert cached_folder(kind, "org/name") == cached_folder(kind, "org/name", commit) == snapshot
    assert cached_folder(kind, "org/name", "v1") is None
    assert cached_folder(kind, "org/name", "v2") is None
    assert cached_folder(kind, "no name of the hub") is None


@pytest.mark.parametrize("name", DOMAINS)
def test_domain_recipes_are_valid_and_name_hub_models_and_datasets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    assert recipe.name == name
    assert recipe.documents.source.hub is not None
    assert recipe.questions.validation.hub is not None
    assert recipe.models.target.provider == recipe.models.rubric.provider == "local"
    assert recipe.models.generator.provider == "litellm"
    for names in SERVICE_KEYS.values():
        monkeypatch.setenv(names[0], "k" * 20)
    found = validate(recipe, deep=False)
    assert found.problems == []


def test_questions_that_may_not_fit_are_one_warning(tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "question": f"Q{i}? " + "consequently " * 20, "answer": "x"} for i in range(6)]
    write_lines(tmp_path / "questions.jsonl", rows)
    found = validate(recipe_of(tmp_path, models={"target": {"name": "embedded", "max_length": 64}}))
    assert found.problems == []
    told = [line for line in found.warnings if "without any context" in line]
    assert len(told) == 1
    assert "6 questions may be longer than 64 tokens" in told[0]
