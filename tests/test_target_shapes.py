"""Every shape of checkpoint goes through warm-up, scoring, GRPO, fine-tuning and evaluation, or validate refuses it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from optimize_helpers import BASE_TEXT, WORTH, PairWriter, Shape, make_reward, passages, rubric
from runs_helpers import tiny_recipe
from shape_helpers import SHAPES, save_shape
from training_helpers import QUESTIONS, make_pairs, make_tokenizer

from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.influence.derivative.forward import ForwardScorer
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.gradients.slopes import NoForwardDerivativeError
from optimsyn.influence.reference.plain import plain_scores
from optimsyn.llm.control_tokens import end_ids, rendered, template_end
from optimsyn.llm.local.generation import Row, generate
from optimsyn.llm.local.loading import load_causal_lm
from optimsyn.machine.preflight import validate
from optimsyn.machine.shapes import shape_problems
from optimsyn.optimize.policy import PolicyResult, train_policy
from optimsyn.optimize.policy_task import PolicyTask
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Lora, ModelSpec, Recipe, TargetSpec
from optimsyn.recipe.sections.evaluation import Evaluation, FineTune
from optimsyn.recipe.sections.influence import Influence
from optimsyn.recipe.sections.optimizers import PolicyOptimizer
from optimsyn.target.adapter import add_lora, outside_text
from optimsyn.target.target import Target
from optimsyn.training.evaluation import evaluate, use_adapter
from optimsyn.training.fine_tuning import fine_tune

EXPERTS = ("qwen3-moe", "gpt-oss", "granite4")
# The quick suite takes one of each kind: beside a tower, with experts, with dropout.
QUICK = ("gemma3-multimodal", "qwen3-moe", "gpt2")
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SHAPES if name != "qwen3-wide"]
BITS = importlib.util.find_spec("bitsandbytes") is not None
LINEAR = Influence(estimator="adam_linear", normalization="dot")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a shape's model, saved once."""
    root = tmp_path_factory.mktemp("shapes")

    def folder(name: str) -> Path:
        return root / name if (root / name).is_dir() else save_shape(name, root / name)

    return folder


@pytest.fixture
def any_text_is_a_rubric(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models write no rubric, and without one no step of a policy has anything to learn."""
    kinds = list(WORTH)
    monkeypatch.setattr(
        "optimsyn.programs.rubric.complete_rubric", lambda text: rubric(kinds[sum(map(ord, text)) % len(kinds)])
    )


def spec_of(folder: Path, name: str, **more: Any) -> TargetSpec:
    lora = more.pop("lora", Lora(r=2, target_modules=SHAPES[name][1]))
    return TargetSpec(name=str(folder), max_length=200, device=more.pop("device", "cpu"), lora=lora, **more)


def warmed(spec: TargetSpec) -> Target:
    target = Target.load(spec)
    target.warm_up(make_pairs(6), steps=3, batch_size=2, lr=1e-2)
    return target


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def trained_policy(spec: ModelSpec, folder: Path, lora: Lora, method: str = "grpo") -> PolicyResult:
    config = PolicyOptimizer(
        method=method, steps=1, group_size=4, passages_per_step=2, temperature=1.5, lr=1e-2, max_tokens=16,
        held_passages=0, rounds=1, epochs=1, lora=lora,
    )  # fmt: skip
    reward = make_reward(source="train_policy", writer=PairWriter())
    return train_policy(PolicyTask(spec, config, reward, passages(2), BASE_TEXT, Shape(), folder, 11))


def goes_through(spec: TargetSpec, name: str, folder: Path) -> None:
    """Warm-up, scores against plain autograd, fine-tuning, evaluation against plain losses, generation, GRPO."""
    target, pairs, questions = warmed(spec), make_pairs(4), QUESTIONS[:3]
    assert all(float(moment.abs().sum()) > 0 for moment in target.checkpoints[-1].exp_avg_sq.values())
    scorer = build_scorer(target, questions, LINEAR)
    found, wanted = scorer.score(pairs).total, plain_scores(target, pairs, questions, LINEAR).total
    tolerance = 1e-4 if spec.quantization is None else 0.02
    assert off(found, wanted) < tolerance
    assert torch.equal(found, scorer.score(pairs).total)
    # Two rows of unlike length in a batch, with the model's own loss.
    rows = evaluate(target, QUESTIONS, Evaluation(batch_size=4, max_new_tokens=4))
    with use_adapter(target, None), torch.no_grad():
        for question, row in zip(QUESTIONS[:2], rows, strict=False):
            encoded = target.encode(question)
            ids = torch.tensor([encoded.input_ids])
            logits = target.model(input_ids=ids).logits[0, :-1].float()
            own = torch.nn.functional.cross_entropy(logits, torch.tensor(encoded.labels[1:]), reduction="none")
            kept = own[torch.tensor(encoded.labels[1:]) != -100][: -encoded.end_tokens]
            assert row["loss"] == pytest.approx(float(kept.mean()), abs=1e-4 if spec.quantization is None else 0.05)
    adapter = fine_tune(spec, make_pairs(6), FineTune(steps=2, batch_size=2, lr=1e-2), folder / "tuned", 3)
    after = evaluate(target, QUESTIONS, Evaluation(batch_size=4, max_new_tokens=4), adapter=adapter)
    assert [row["loss"] for row in after] != [row["loss"] for row in rows]
    model, tokenizer = load_causal_lm(spec)
    prompts = [Row(ids=list(range(3, 3 + n)), temperature=0.8, max_tokens=6, seed=n) for n in (4, 9)]
    assert generate(model, tokenizer, prompts) == [generate(model, tokenizer, [row])[0] for row in prompts]
    plain = ModelSpec(name=spec.name, device=spec.device, quantization=spec.quantization, device_map=spec.device_map)
    policy = trained_policy(plain, folder / "policy", spec.lora)
    assert policy.history[0]["valid"] == 1.0
    # The reference is the policy itself at its first step.
    assert policy.history[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert load_causal_lm(plain, adapter=policy.adapter)[0] is not None


@pytest.mark.usefixtures("any_text_is_a_rubric")
@pytest.mark.parametrize("name", NAMES)
def test_a_shape_goes_through(name: str, folder_of: Any, tmp_path: Path) -> None:
    spec = spec_of(folder_of(name), name)
    recipe = recipe_with(spec, rubric=ModelSpec(name=spec.name), lora=spec.lora)
    assert shape_problems(recipe, "target", spec) == []
    assert shape_problems(recipe, "rubric", recipe.models.rubric) == []
    goes_through(spec, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_fast_ways_are_right_or_refuse(name: str, folder_of: Any) -> None:
    target, pairs, questions = warmed(spec_of(folder_of(name), name)), make_pairs(4), QUESTIONS[:3]
    wanted = plain_scores(target, pairs, questions, LINEAR).total
    for scorer, tolerance in ((TwinScorer, 0.02), (ForwardScorer, 1e-4)):
        if name in EXPERTS:
            with pytest.raises((ModelError, NoForwardDerivativeError), match="influence.method to exact"):
                scorer(target, questions)
        else:
            assert off(scorer(target, questions).score(pairs).total, wanted) < tolerance


@pytest.mark.slow
@pytest.mark.usefixtures("any_text_is_a_rubric")
@pytest.mark.parametrize("method", ["expert", "dpo"])
def test_other_methods_train_a_multimodal_policy_with_dora(method: str, folder_of: Any, tmp_path: Path) -> None:
    lora = Lora(r=2, dora=True, rslora=True)
    found = trained_policy(ModelSpec(name=str(folder_of("gemma3-multimodal")), device="cpu"), tmp_path, lora, method)
    settings = json.loads((found.adapter / "adapter_config.json").read_text("utf-8"))
    assert (settings["use_dora"], settings["use_rslora"]) == (True, True)
    assert found.history


@pytest.mark.slow
@pytest.mark.usefixtures("any_text_is_a_rubric")
@pytest.mark.skipif(not BITS, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_goes_through(bits: Any, folder_of: Any, tmp_path: Path) -> None:
    spec = spec_of(folder_of("qwen3-wide"), "qwen3-wide", quantization=bits)
    goes_through(spec, "qwen3-wide", tmp_path)
    target = Target.load(spec)
    assert {parameter.dtype for parameter in target.parameters.values()} == {torch.float32}
    assert target.fingerprint() != Target.load(spec_of(folder_of("qwen3-wide"), "qwen3-wide")).fingerprint()


@pytest.mark.slow
@pytest.mark.usefixtures("any_text_is_a_rubric")
def test_a_device_map_without_a_gpu_is_the_cpu(folder_of: Any, tmp_path: Path) -> None:
    goes_through(spec_of(folder_of("qwen3"), "qwen3", device="auto", device_map="auto"), "qwen3", tmp_path)


def recipe_with(target: TargetSpec, rubric: ModelSpec | None = None, lora: Lora | None = None) -> Recipe:
    changes: dict[str, Any] = {"models.target": target.model_dump(mode="json")}
    if rubric is not None:
        changes["models.rubric"] = {**rubric.model_dump(mode="json"), "max_tokens": 160}
        changes["optimizers.policy.enabled"] = True
    if lora is not None:
        changes["optimizers.policy.lora"] = lora.model_dump(mode="json")
    return changed(tiny_recipe(), changes)


def refusal(folder: Path, name: str, **more: Any) -> str:
    spec = spec_of(folder, name, **more)
    return "\n".join(shape_problems(recipe_with(spec), "target", spec))


def test_an_adapter_goes_where_text_passes(folder_of: Any) -> None:
    for name in ("gemma3-multimodal", "gemma4-multimodal", "mistral3-multimodal"):
        target = Target.load(spec_of(folder_of(name), name))
        assert target.parameters
        assert all("language_model" in key for key in target.parameters)
        assert outside_text(Target.load(spec_of(folder_of(name), name)).causal)
    folder = folder_of("gemma3-multimodal")
    expression = r".*vision_tower.*\.q_proj"
    assert "no layer of this Gemma3ForConditionalGeneration is left" in refusal(
        folder, "gemma3-multimodal", lora=Lora(target_modules=expression)
    )
    assert "only images and sound pass out_proj" in refusal(
        folder, "gemma3-multimodal", lora=Lora(target_modules=("q_proj", "out_proj"))
    )


def test_layers_are_named_as_peft_names_them(folder_of: Any) -> None:
    folder = folder_of("qwen3")

    def adapted(lora: Lora) -> set[str]:
        target = Target.load(spec_of(folder, "qwen3", lora=lora))
        return {name.split(".layers.")[1].split(".lora_")[0] for name in target.parameters}

    assert adapted(Lora(r=2, target_modules=r".*\.1\.self_attn\.(q|v)_proj")) == {
        "1.self_attn.q_proj",
        "1.self_attn.v_proj",
    }
    assert adapted(Lora(r=2, target_modules=("q_proj", "v_proj"), exclude_modules=("v_proj",))) == {
        "0.self_attn.q_proj",
        "1.self_attn.q_proj",
    }
    assert adapted(Lora(r=2, target_modules=("q_proj",), exclude_modules=r".*\.0\..*")) == {"1.self_attn.q_proj"}
    assert len(adapted(Lora(r=2, target_modules="all-linear"))) == 14
    target = Target.load(spec_of(folder, "qwen3", lora=Lora(r=4, alpha=8, rslora=True)))
    layer = next(m for m in target.model.modules() if isinstance(getattr(m, "scaling", None), dict) and m.scaling)
    assert layer.scaling["default"] == pytest.approx(8 / 2)


def test_what_cannot_work_is_refused_before_anything_is_bought(folder_of: Any, tmp_path: Path) -> None:
    assert "has no layer called o_proj (did you mean out_proj?); it has fc1, fc2, k_proj" in refusal(
        folder_of("opt"), "opt", lora=Lora()
    )
    assert "a tensor of weights and no layer (as for the experts of a mixture)" in refusal(
        folder_of("gpt-oss"), "gpt-oss", lora=Lora(target_modules=("gate_up_proj",))
    )
    assert "is left for the adapter; a string is a regular expression for a layer's whole name" in refusal(
        folder_of("qwen3"), "qwen3", lora=Lora(target_modules="q_proj")
    )
    assert "sees the tokens of all pairs joined" in refusal(folder_of("opt"), "opt", lora=Lora(target_modules=("fc1",)))
    assert "is a Qwen3MLP, and an adapter goes to linear layers; its inner layer is model.layers.0.mlp." in (
        refusal(folder_of("qwen3"), "qwen3", lora=Lora(target_modules=("mlp",))).replace("\n", " ")
    )
    assert "Mamba-based models" in refusal(folder_of("falcon-h1"), "falcon-h1", lora=Lora(target_modules=("out_proj",)))
    assert "the experts of a mixture" in refusal(
        folder_of("qwen3-moe"), "qwen3-moe", lora=Lora(target_modules="all-linear")
    )
    for method in ("twin", "forward"):
        spec = spec_of(folder_of("qwen3-moe"), "qwen3-moe")
        (problem,) = shape_problems(
            changed(recipe_with(spec), {"influence": {"method": method, "estimator": "adam_linear"}}), "target", spec
        )
        assert f"influence.method: {method} needs a smooth model" in problem
    stored = tmp_path / "stored"
    stored.mkdir()
    config = json.loads((folder_of("qwen3") / "config.json").read_text("utf-8"))
    (stored / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    assert "stored quantised (awq), and no gradient goes through them" in refusal(stored, "qwen3")
    (stored / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "a model of the type t5 does not continue texts" in refusal(stored, "qwen3")


def test_recipes_refuse_what_no_shape_can() -> None:
    def problem(changes: dict[str, Any]) -> str:
        with pytest.raises(RecipeError) as caught:
            changed(tiny_recipe(), changes)
        return str(caught.value)

    local = {"name": "org/model"}
    assert "DoRA's rows is no linear layer" in problem({"models.target": {**local, "lora": {"dora": True}}})
    assert "so they cannot be trained" in problem(
        {"models.target": {**local, "quantization": "4bit", "full_weights": ["o_proj"]}}
    )
    assert "quantization is for local models" in problem(
        {"models.generator": {"name": "embedded", "quantization": "8bit"}}
    )
    assert "device names one (cpu)" in problem({"models.target": {**local, "device_map": "auto", "device": "cpu"}})
    assert "is not a regular expression" in problem({"models.target": {**local, "lora": {"target_modules": "("}}})
    assert "twin does not work on a target in 4bit" in problem(
        {
            "models.target": {**local, "quantization": "4bit"},
            "influence": {"method": "twin", "estimator": "adam_linear"},
        }
    )
    if not BITS:
        spec = TargetSpec(name="/absent", quantization="4bit")
        assert 'pip install "optimsyn[quantized]"' in shape_problems(recipe_with(spec), "target", spec)[0]


def test_new_fields_leave_old_recipes_as_they_are() -> None:
    written = Lora().model_dump(mode="json")
    assert set(written) == {"r", "alpha", "dropout", "target_modules"}
    assert {"quantization", "device_map"}.isdisjoint(ModelSpec(name="org/model").model_dump())
    spec = ModelSpec(name="org/model", quantization="4bit")
    assert ModelSpec.model_validate(spec.model_dump()) == spec


def test_an_error_of_peft_names_the_field(folder_of: Any) -> None:
    model, _ = load_causal_lm(ModelSpec(name=str(folder_of("falcon-h1")), device="cpu"))
    with pytest.raises(ModelError, match=r"optimizers\.policy\.lora: peft cannot put the adapter on this FalconH1"):
        add_lora(model, Lora(target_modules=("out_proj",)), field="optimizers.policy.lora")


def test_a_base_model_stops_at_the_end_token_of_its_template(folder_of: Any) -> None:
    """Its own end token is another, as with the Qwen base models."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert template_end(tokenizer) == end
    model, _ = load_causal_lm(ModelSpec(name=str(folder_of("qwen3")), device="cpu"))
    assert end_ids(model, tokenizer) == sorted({end, tokenizer.eos_token_id})
    model.resize_token_embeddings(len(tokenizer))
    target = Target.from_model(model, tokenizer, lora=Lora(r=2), max_length=200)
    encoded = target.encode(make_pairs(1)[0])
    # It learns this end, and its replies end there.
    assert [label for label in encoded.labels if label != -100][-1] == end
    assert encoded.end_tokens == 1
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.get_output_embeddings().weight[end] = 0.0
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: output.index_fill(-1, torch.tensor([end]), 50.0))
    try:
        (reply,) = generate(model, tokenizer, [Row(encoded.prompt_ids, 0.0, 8, 1)])
        rows = evaluate(target, QUESTIONS[:1], Evaluation(batch_size=1, max_new_tokens=8))
    finally:
        hook.remove()
    assert (reply.tokens, reply.finish_reason, reply.text) == (1, "stop", "")
    assert rows[0]["prediction"] == ""


@pytest.mark.parametrize(
    "stated",
    [
        "{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}"
        "{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}Today: {{ date_string }}\n",
        "{% set today = strftime_now('%d %B %Y') %}Today: {{ today }}\n",
        "{% macro head() %}Date: {{ strftime_now('%Y-%m-%d') }}\n{% endmacro %}{{ head() }}",
    ],
)
def test_a_template_that_prints_the_date_prints_one_day(stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = stated + "{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}"

    def texts() -> str:
        return rendered(tokenizer, [{"role": "user", "content": "a"}])

    first = texts()
    assert "2024" in first

    class Later(__import__("datetime").datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2031, 1, 2)

    import transformers.utils.chat_template_utils as utils

    monkeypatch.setattr(utils, "datetime", Later)
    assert texts() == first


def test_validate_looks_at_the_shape(folder_of: Any) -> None:
    good = validate(recipe_with(spec_of(folder_of("gemma3-multimodal"), "gemma3-multimodal")), offline=True)
    assert good.problems == []
    wrong = recipe_with(TargetSpec(name="embedded"), ModelSpec(name=str(folder_of("phi3")), device="cpu"), Lora())
    (problem,) = validate(wrong, offline=True).problems
    assert problem.startswith("optimizers.policy.lora.target_modules: this Phi3ForCausalLM has no layer called q_proj")
