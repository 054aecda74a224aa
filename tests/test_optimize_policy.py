"""GRPO on a tiny random model: it learns, keeps its history, resumes bit-identically, and never hides a failure."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from optimize_helpers import BASE_TEXT, PairWriter, Scorer, Shape, make_reward, passages, tiny_policy
from optimize_run import run_policy
from runs_helpers import tiny_recipe
from safetensors.torch import load_file

from optimsyn.base.errors import DataError, ModelError, RecipeError, ServiceError
from optimsyn.base.files import iter_json
from optimsyn.data.forms.multiple_choice import MultipleChoice
from optimsyn.llm.local import turns
from optimsyn.optimize.history import read_history
from optimsyn.optimize.methods import method_problems
from optimsyn.optimize.policy import PolicyResult, train_policy
from optimsyn.optimize.policy_task import PolicyTask, TrlReward, blank_line_tokens
from optimsyn.optimize.shared_prompt import FinishedRows, SharedPromptTrainer
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Lora, ModelSpec
from optimsyn.recipe.sections.optimizers import PolicyOptimizer

SCRIPT = Path(__file__).with_name("optimize_run.py")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model")


def train(policy: Path, folder: Path, reward: Any = None, **more: Any) -> PolicyResult:
    settings = {
        "steps": 3, "group_size": 4, "passages_per_step": 2, "temperature": 1.0, "lr": 1e-2, "max_tokens": 16,
        "lora": Lora(r=4), **more,
    }  # fmt: skip
    spec, reward = ModelSpec(name=str(policy), device="cpu"), reward or make_reward(source="train_policy")
    return train_policy(
        PolicyTask(spec, PolicyOptimizer(**settings), reward, passages(3), BASE_TEXT, Shape(), folder, 11)
    )


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_it_learns_what_the_reward_rewards_and_keeps_its_history(policy: Path, tmp_path: Path) -> None:
    reward = make_reward(source="train_policy")
    found = train(policy, tmp_path, reward, steps=12, group_size=8, lr=1e-2, kl=0.0, save_every=12)
    assert [row["step"] for row in found.history] == list(range(1, 13))
    assert found.history == read_history(tmp_path / "history.jsonl")
    earned = [row["reward"] for row in found.history]
    assert sum(earned[-4:]) > sum(earned[:4]) + 4 * 0.1
    assert {"reward_std", "valid", "influence", "completion_length", "entropy"} <= set(found.history[0])
    assert "kl" not in found.history[0]
    assert 0 <= found.history[0]["valid"] <= 1
    assert found.adapter == tmp_path / "adapter"
    assert not (tmp_path / "checkpoints").exists()
    # A blank line ends a completion.
    assert min(row["completion_length"] for row in found.history) < 16


def test_on_a_gpu_the_policy_lets_generator_and_scorer_work_for_its_rewards(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With turns on the CPU as on a GPU; a turn that is not handed over would wait for ever."""
    monkeypatch.setattr(turns, "SHARED_DEVICES", ())
    held: list[bool] = []

    class OnTheDevice(Scorer):
        def score(self, pairs: Any) -> Any:
            with turns.turn(torch.device("cpu")):  # in a thread of its own
                held.append(True)
                return super().score(pairs)

    steps: list[bool] = []
    forward = SharedPromptTrainer._get_per_token_logps_and_entropies

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        steps.append(turns.turns_of(torch.device("cpu")).mine)  # type: ignore[union-attr]
        return forward(self, *args, **more)

    monkeypatch.setattr(SharedPromptTrainer, "_get_per_token_logps_and_entropies", watched)
    trained = train(policy, tmp_path, make_reward(source="train_policy", scorer=OnTheDevice()), steps=2)
    assert [row["step"] for row in trained.history] == [1, 2]
    assert held
    assert steps
    assert all(steps)


@pytest.mark.slow
def test_a_finished_training_is_not_repeated_and_other_settings_start_anew(policy: Path, tmp_path: Path) -> None:
    first = train(policy, tmp_path)
    before = weights(tmp_path)
    idle = make_reward()
    assert train(policy, tmp_path, idle) == first
    assert idle.answered == []
    other = train(policy, tmp_path, lr=1e-3, steps=2)
    assert len(other.history) == 2
    assert weights(tmp_path) != before


@pytest.mark.slow
def test_a_service_failure_stops_it_and_the_next_call_ends_like_an_undisturbed_one(
    policy: Path, tmp_path: Path
) -> None:
    expected = train(policy, tmp_path / "whole", make_reward(tmp_path / "whole.jsonl"), steps=5)
    writer = PairWriter(fail_at=12)
    writer.fails = ServiceError("connection refused")
    ledger = tmp_path / "rewards.jsonl"
    with pytest.raises(ServiceError, match="connection refused"):
        train(policy, tmp_path / "broken", make_reward(ledger, writer=writer), steps=5)
    done = read_history(tmp_path / "broken" / "history.jsonl")
    assert 0 < len(done) < 5
    # A row of a step whose checkpoint was never finished is made again.
    torn = tmp_path / "broken" / "checkpoints" / f"checkpoint-{len(done) + 1}"
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")
    found = train(policy, tmp_path / "broken", make_reward(ledger), steps=5)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    for row in (*expected.history, *found.history):
        row.pop("seconds")
    assert found.history == expected.history
    keys = [row["key"] for row in iter_json(ledger)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_never_reaches_trl(policy: Path, tmp_path: Path, value: float) -> None:
    with pytest.raises(ModelError, match="not a finite number"):
        train(policy, tmp_path, make_reward(scorer=Scorer(value)))
    assert read_history(tmp_path / "history.jsonl") == []


def test_kl_needs_no_second_model(policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer import grpo_trainer

    monkeypatch.setattr(grpo_trainer, "create_model_from_path", None)
    found = train(policy, tmp_path, kl=0.05)
    assert found.history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found.history[-1]["kl"] > 0


def begun(policy: Path, folder: Path) -> Path:
    """A LoRA of the tiny policy, other than no LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(policy), config).save_pretrained(folder)
    return folder


def test_a_training_begins_from_an_adapter_and_resumes_with_it(policy: Path, tmp_path: Path) -> None:
    start = begun(policy, tmp_path / "start")
    spec = ModelSpec(name=str(policy), device="cpu")
    config = PolicyOptimizer(
        steps=3, group_size=4, passages_per_step=2, temperature=1.0, lr=1e-2, kl=0.05, max_tokens=16
    )

    def trained(folder: Path, reward: Any, start: Path = start) -> PolicyResult:
        task = PolicyTask(spec, config, reward, passages(3), BASE_TEXT, Shape(), folder, 11, start=start)
        return train_policy(task)

    whole = trained(tmp_path / "whole", make_reward(tmp_path / "whole.jsonl"))
    # The reference of the KL term is the adapter that it began from, not the bare model.
    assert whole.history[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert whole.history[-1]["kl"] > 0
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (start, whole.adapter))
    assert before.keys() == after.keys()
    assert sorted(path.name for path in whole.adapter.iterdir() if path.is_dir()) == []
    moved = [name for name in before if not before[name].equal(after[name])]
    assert {name.rpartition(".lora_")[2] for name in moved} == {"A.weight", "B.weight"}
    assert all((before[name] - after[name]).abs().max() < 0.2 for name in before)

    writer = PairWriter(fail_at=12)
    writer.fails = ServiceError("connection refused")
    ledger = tmp_path / "rewards.jsonl"
    with pytest.raises(ServiceError, match="connection refused"):
        trained(tmp_path / "broken", make_reward(ledger, writer=writer))
    assert 0 < len(read_history(tmp_path / "broken" / "history.jsonl")) < 3
    trained(tmp_path / "broken", make_reward(ledger))
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")

    # Another start is another training.
    other = begun(policy, tmp_path / "other")
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": 32}))
    trained(tmp_path / "whole", make_reward(), other)
    assert weights(tmp_path / "whole") != weights(tmp_path / "broken")


def test_the_embedded_policy_is_asked_as_the_embedded_rubric_model_is(policy: Path, tmp_path: Path) -> None:
    from optimsyn.programs.prompts.writer_prompts import rubric_prompt

    shape = Shape.only("multiple_choice", MultipleChoice(3, ("yes", "no", "maybe")))
    for name in ("embedded", str(policy)):
        task = PolicyTask(
            ModelSpec(name=name), PolicyOptimizer(), make_reward(), passages(2), BASE_TEXT, shape, tmp_path, 1
        )
        row = task.rows(None)[0]
        form = "the answer is yes, no or maybe"
        written = [rubric_prompt(passage.text, BASE_TEXT, form) for passage in passages(2)]
        assert (row["prompt"] in written) == (name == "embedded")
        assert form in row["prompt"]


def test_fewer_passages_than_a_step_wants_and_accumulated_gradients(policy: Path, tmp_path: Path) -> None:
    reward = make_reward()
    found = train(policy, tmp_path, reward, passages_per_step=9, group_size=8, steps=1)
    assert len(found.history) == 1
    assert {row.passage_id for row in reward.answered} == {"p0", "p1", "p2"}


def test_wrong_lora_modules_and_missing_passages_are_named(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"optimizers.policy.lora.target_modules"):
        train(policy, tmp_path, lora=Lora(target_modules=("c_attn",)))
    with pytest.raises(DataError, match="at least one passage"):
        spec = ModelSpec(name=str(policy))
        train_policy(PolicyTask(spec, PolicyOptimizer(), make_reward(), [], BASE_TEXT, Shape(), tmp_path, 0))


def test_blank_line_tokens(policy: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert blank_line_tokens(tokenizer) == [tokenizer.convert_tokens_to_ids("\n\n")]


@pytest.mark.slow
def test_kill_9_twice_ends_with_the_weights_of_an_undisturbed_training(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    for folder in (whole, killed):
        tiny_policy(folder / "model")
    expected = run_policy(whole, None)

    def start(*limit: str) -> int:
        command = [sys.executable, str(SCRIPT), "policy", str(killed), *limit]
        return subprocess.run(command, check=False, capture_output=True, timeout=600).returncode

    assert start("3") == -9  # before the first checkpoint
    assert start("14") == -9
    assert (killed / "policy" / "checkpoints").is_dir()
    assert start() == 0
    assert weights(killed / "policy") == weights(whole / "policy")
    found = json.loads((killed / "outcome.json").read_text())
    for row in (*expected, *found):
        row.pop("seconds")
    assert found == expected


def test_several_steps_are_sampled_at_once(policy: Path, tmp_path: Path) -> None:
    asked: list[int] = []
    reward = make_reward(report=lambda now, different: asked.append(now))
    found = train(policy, tmp_path, reward, steps=6, steps_ahead=3)
    assert [row["step"] for row in found.history] == list(range(1, 7))
    assert ["reward" in row for row in found.history] == [True, False, False] * 2
    assert all(row["loss"] is not None for row in found.history)
    assert sum(asked) == 6 * 2 * 4, "no rubric more than with a sampling for each step"
    with pytest.raises(RecipeError, match="no multiple of steps_ahead"):
        PolicyOptimizer(steps=4, steps_ahead=3)


@pytest.mark.slow
def test_a_training_that_samples_ahead_resumes_where_it_would_sample(policy: Path, tmp_path: Path) -> None:
    ahead = {"steps": 6, "steps_ahead": 2}
    expected = train(policy, tmp_path / "whole", make_reward(), **ahead)
    writer = PairWriter(fail_at=18)
    writer.fails = ServiceError("connection refused")
    with pytest.raises(ServiceError, match="connection refused"):
        train(policy, tmp_path / "broken", make_reward(writer=writer), **ahead)
    assert [path.name for path in (tmp_path / "broken" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    found = train(policy, tmp_path / "broken", make_reward(), **ahead)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    for row in (*expected.history, *found.history):
        row.pop("seconds")
    assert found.history == expected.history


def test_pairs_are_begun_while_rubrics_are_sampled(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    class Telling(PairWriter):
        async def awrite(self, *given: Any, **more: Any) -> Any:
            begun.set()
            return await super().awrite(*given, **more)

    inner = TrlReward.__call__

    def wait(self: TrlReward, *given: Any, **more: Any) -> Any:
        assert begun.wait(60), "no pair was begun before TRL asked for rewards"
        return inner(self, *given, **more)

    monkeypatch.setattr(TrlReward, "__call__", wait)
    writer = Telling()
    train(policy, tmp_path, make_reward(writer=writer), steps=1)
    assert len(set(writer.written)) == len(writer.written), "none is written twice"


def test_rows_are_reported_when_they_end() -> None:
    ended: list[tuple[int, list[int]]] = []
    rows = FinishedRows({1, 2}, lambda ids, places: ended.append((ids.shape[1], places)))
    steps = torch.tensor([[5, 5, 1, 0, 0], [5, 2, 0, 0, 0], [5, 5, 5, 5, 1], [5, 5, 2, 0, 1]])
    for length in range(1, 6):
        assert not rows(steps[:, :length], torch.empty(0)).any()  # type: ignore[arg-type]
    assert ended == [(2, [1]), (3, [0, 3]), (5, [2])]


@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        ({"sampler": "continuous"}, {"use_transformers_continuous_batching": True}),
        ({"sampler": "vllm", "vllm_memory": 0.4}, {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4}),
        (
            {"sampler": "vllm_server", "vllm_url": "http://localhost:8000"},
            {"vllm_mode": "server", "vllm_server_base_url": "http://localhost:8000"},
        ),
    ],
)
def test_the_sampler_is_trls_own(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any], options: dict[str, Any]
) -> None:
    import trl

    made: dict[str, Any] = {}

    def config(**given: Any) -> Any:
        made.update(given)
        trl.trainer.grpo_config.GRPOConfig(**given)  # it knows all of them
        raise ServiceError("far enough")

    monkeypatch.setattr(trl, "GRPOConfig", config)
    with pytest.raises(ServiceError, match="far enough"):
        train(policy, tmp_path, **chosen)
    assert options.items() <= made.items()
    assert made.get("use_vllm", False) == chosen["sampler"].startswith("vllm")


def test_vllm_is_refused_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimsyn.optimize.methods.find_spec", lambda name: None)
    recipe = changed(tiny_recipe(), {"optimizers.policy.sampler": "vllm"})
    (problem,) = method_problems(recipe)
    assert problem.startswith("optimizers.policy.method: sampler: vllm needs the package vllm; pip install")
    assert method_problems(tiny_recipe()) == []
    assert recipe.fingerprint != tiny_recipe().fingerprint
    for wrong in ({"sampler": "vllm_server"}, {"vllm_url": "http://localhost:8000"}):
        with pytest.raises(RecipeError, match="vllm_server needs vllm_url"):
            PolicyOptimizer(**wrong)
