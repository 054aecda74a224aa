"""A policy optimiser from outside of optimsyn: the page's example in a real run, and what holds for every method."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optimize_helpers import BASE_TEXT, PairWriter, Shape, make_reward, passages, tiny_policy

import optimsyn
from optimsyn.base.errors import ModelError, StageError
from optimsyn.base.extensions import POLICY_OPTIMIZERS
from optimsyn.optimize.history import read_history
from optimsyn.optimize.methods import method_problems
from optimsyn.optimize.policy import PolicyResult, train_policy
from optimsyn.optimize.policy_task import PolicyTask
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Lora, ModelSpec, Recipe
from optimsyn.recipe.sections.optimizers import PolicyOptimizer
from optimsyn.runs.folder import Run
from tests.docs_helpers import ROOT, blocks
from tests.stages_helpers import run_stage

[EXAMPLE] = blocks("python", ROOT / "docs" / "extend" / "policy_optimizer.md")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Writes `my_training`, a module outside of optimsyn."""

    def write(source: str) -> None:
        (tmp_path / "my_training.py").write_text(source, "utf-8")
        sys.modules.pop("my_training", None)

    monkeypatch.syspath_prepend(str(tmp_path))
    # Modules of one name, written twice within a second, are two all the same.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    sys.modules.pop("my_training", None)


@pytest.fixture
def registered() -> Iterator[Callable[[Any], str]]:
    names = []

    def register(method: Any) -> str:
        optimsyn.register("policy_optimizer", method)
        names.append(method.__name__)
        return names[-1]

    yield register
    for name in names:
        POLICY_OPTIMIZERS.forget(name)


def train(policy: Path, folder: Path, method: str, reward: Any = None, **more: Any) -> PolicyResult:
    settings = {
        "method": method, "steps": 3, "group_size": 4, "passages_per_step": 2, "temperature": 1.0, "lr": 1e-2,
        "max_tokens": 16, "lora": Lora(r=4), **more,
    }  # fmt: skip
    spec = ModelSpec(name=str(policy), device="cpu")
    config = PolicyOptimizer.model_validate(settings)
    return train_policy(PolicyTask(spec, config, reward or make_reward(), passages(3), BASE_TEXT, Shape(), folder, 11))


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_pages_example_trains_in_a_real_run(
    recipe: Recipe, policy: Path, tmp_path: Path, package: Callable[[str], None]
) -> None:
    assert len(EXAMPLE.code.splitlines()) <= 30
    package(EXAMPLE.code)
    changes = {
        "models.rubric": {"name": str(policy), "device": "cpu", "max_tokens": 16},
        "optimizers.prompt.enabled": False,
        "optimizers.policy": {
            "enabled": True, "method": "my_training:best_of_group", "steps": 2, "group_size": 3, "passages_per_step": 2,
            "max_tokens": 16, "lora": {"r": 4},
        },
    }  # fmt: skip
    recipe = changed(recipe, changes)
    assert method_problems(recipe) == []
    run = Run.open(recipe, tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy"):
        result = run_stage(run, stage)
    assert [row["step"] for row in read_history(run.path("train_policy", "history.jsonl"))] == [1, 2]
    assert result.title == "my_training:best_of_group on the rubric model"
    assert result.steps == 2
    adapter = json.loads(run.path("train_policy", "adapter", "adapter_config.json").read_text("utf-8"))
    assert (adapter["peft_type"], adapter["r"]) == ("LORA", 4)
    noted = run.manifest.stage("train_policy").notes["optimizer"]
    assert noted["method"] == "my_training:best_of_group"
    assert len(noted["source"]) == 32


@pytest.mark.slow
def test_the_pages_example_learns_and_is_not_repeated(
    policy: Path, tmp_path: Path, package: Callable[[str], None]
) -> None:
    package(EXAMPLE.code)
    settings: dict[str, Any] = {"steps": 12, "group_size": 8, "lr": 3e-2}
    found = train(policy, tmp_path / "a", "my_training:best_of_group", **settings)
    earned = [row["reward"] for row in found.history]
    assert sum(earned[-4:]) > sum(earned[:4]) + 4 * 0.05
    idle = make_reward()
    assert train(policy, tmp_path / "a", "my_training:best_of_group", idle, **settings) == found
    assert idle.answered == []
    # Drawn from the seed alone.
    train(policy, tmp_path / "b", "my_training:best_of_group", **settings)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    # Another version of the method is another training.
    package(EXAMPLE.code.replace("task.seed + step", "task.seed - step"))
    other = train(policy, tmp_path / "a", "my_training:best_of_group", **settings)
    assert [row["step"] for row in other.history] == list(range(1, 13))
    assert weights(tmp_path / "a") != weights(tmp_path / "b")


def test_not_one_rubric_more_than_the_budget_is_judged(
    policy: Path, tmp_path: Path, registered: Callable[[Any], str]
) -> None:
    def greedy(task: PolicyTask) -> Path:
        model, tokenizer = task.load_model()
        model, row = task.with_lora(model), task.rows(tokenizer)[0]
        while True:
            texts = [rubric.text for rubric in task.sample(model, tokenizer, row)]
            task.judge([row] * len(texts), texts)

    with pytest.raises(StageError, match=r"'greedy' asked for more than the 24 judged rubrics.*steps"):
        train(policy, tmp_path, registered(greedy))


def test_what_is_left_in_the_checkpoints_is_there_after_a_failure(
    policy: Path, tmp_path: Path, registered: Callable[[Any], str]
) -> None:
    seen = []

    def careful(task: PolicyTask) -> Path:
        mark = task.checkpoints / "begun"
        history = task.history(keep=lambda row: row["step"] <= 1)
        seen.append((mark.is_file(), len(history.rows)))
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        if not history.rows:
            history.add({"step": 1, "reward": 0.5})
            history.add({"step": 2, "reward": 0.7})
            raise StageError("the machine went away")
        return task.save(task.with_lora(task.load_model()[0]))

    name = registered(careful)
    with pytest.raises(StageError, match="went away"):
        train(policy, tmp_path, name)
    found = train(policy, tmp_path, name)
    assert seen == [(False, 0), (True, 1)]
    assert found.history == [{"step": 1, "reward": 0.5}]
    assert not (tmp_path / "checkpoints").exists()


def test_an_adapter_that_a_trainer_wrote_elsewhere_is_taken_over_and_nothing_else_is(
    policy: Path, tmp_path: Path, registered: Callable[[Any], str]
) -> None:
    def elsewhere(task: PolicyTask) -> Path:
        task.with_lora(task.load_model()[0]).save_pretrained(str(tmp_path / "mine"))
        return tmp_path / "mine"

    def nowhere(task: PolicyTask) -> Any:
        return None

    found = train(policy, tmp_path / "a", registered(elsewhere))
    assert (found.adapter / "adapter_config.json").is_file()
    with pytest.raises(ModelError, match=r"'nowhere' returned None, .*task.save\(model\)"):
        train(policy, tmp_path / "b", registered(nowhere))


def test_a_trainer_of_trl_takes_the_reward_as_it_is(
    policy: Path, tmp_path: Path, registered: Callable[[Any], str]
) -> None:
    told = {}

    def asks(task: PolicyTask) -> Path:
        model, tokenizer = task.load_model()
        row = task.rows(tokenizer)[0]
        assert task.trl_reward.__name__ == "influence"
        columns = {name: [value] for name, value in row.items() if name != "prompt"}
        text = " mechanism\nQuestion quality: a\nAnswer quality: b\nAlignment: c\nTrainability: d\n"
        told["trl"] = task.trl_reward([row["prompt"]], [text], **columns, log_metric=lambda name, value: None)
        told["own"] = task.judge([row], [text])
        return task.save(task.with_lora(model))

    writer = PairWriter()
    train(policy, tmp_path, registered(asks), make_reward(writer=writer))
    assert told["trl"] == told["own"] == [pytest.approx(0.3, abs=0.02)]
    assert len(writer.written) == 1


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("grop", "optimizers.policy.method: there is no policy optimiser 'grop'; did you mean `grpo`?"),
        ("my_training:nothing", "optimizers.policy.method: 'my_training:nothing': module my_training has no nothing"),
        ("math:pi", "is no policy optimiser: it cannot be called"),
    ],
)
def test_validate_refuses_a_wrong_method(
    recipe: Recipe, policy: Path, package: Callable[[str], None], method: str, told: str
) -> None:
    from optimsyn.machine.preflight import validate

    package("")
    changes = {
        "models.rubric": str(policy),
        "optimizers.policy.enabled": True,
        "optimizers.policy.method": method,
    }
    wrong = changed(recipe, changes)
    assert any(told in problem for problem in validate(wrong, deep=False, offline=True).problems)
