"""Expert iteration and DPO on a tiny random model whose reward is known: they learn, resume, count and stop."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from optimize_helpers import (
    BASE_TEXT,
    WORTH,
    PairWriter,
    Scorer,
    Shape,
    make_reward,
    noise,
    passages,
    rubric,
    tiny_policy,
)
from runs_helpers import tiny_recipe

from optimsyn.base.errors import ModelError, ServiceError, StageError
from optimsyn.base.files import iter_json
from optimsyn.data.records import Pair
from optimsyn.llm.local import group_sampling
from optimsyn.optimize.methods import method_problems
from optimsyn.optimize.policy import train_policy
from optimsyn.optimize.policy_task import PolicyTask
from optimsyn.optimize.rounds import judged, training
from optimsyn.optimize.rounds.held import compared, held_ids
from optimsyn.optimize.rounds.taught import taught_rubrics
from optimsyn.optimize.rounds.weights import kl_per_token, put_weights, weights_of
from optimsyn.programs.rubric import complete_rubric
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Lora, ModelSpec
from optimsyn.recipe.sections.optimizers import PolicyOptimizer
from optimsyn.recipe.sections.reward import Reward
from optimsyn.reward.drafting import RubricRequest
from tests.llm_helpers import save_tiny_model

SCRIPT = Path(__file__).with_name("optimize_run.py")
METHODS = {"expert": {"lr": 3e-2, "epochs": 24}, "dpo": {"lr": 1e-2, "epochs": 6, "kl": 0.1}}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_policy(tmp_path_factory.mktemp("policy") / "model")


def task_of(policy: Path, folder: Path, reward: Any, method: str, **more: Any) -> PolicyTask:
    settings = {
        "method": method, "rounds": 2, "steps": 3, "passages_per_step": 2, "group_size": 8, "temperature": 1.0,
        "max_tokens": 16, "held_passages": 6, "lora": Lora(r=4), **METHODS[method], **more,
    }  # fmt: skip
    spec = ModelSpec(name=str(policy), device="cpu")
    return PolicyTask(spec, PolicyOptimizer(**settings), reward, passages(14), BASE_TEXT, Shape(), folder, 11)


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def mean_worth(policy: Path, adapter: Path | None) -> float:
    """What rubrics sampled from a policy are worth on average; counted here from their first token."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    config = PolicyOptimizer()
    task = PolicyTask(ModelSpec(name=str(policy)), config, make_reward(), passages(1), BASE_TEXT, Shape(), policy, 1)
    ids = torch.tensor([task.prompt_ids(tokenizer, task.rows(tokenizer)[0])] * 400)
    torch.manual_seed(5)
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, max_new_tokens=1
    )
    first = tokenizer.batch_decode(written[:, ids.shape[1] :])
    return fmean(next((worth for kind, worth in WORTH.items() if kind in text), -0.1) for text in first)


@pytest.mark.parametrize("method", METHODS)
def test_it_earns_more_on_passages_that_it_was_not_trained_on(policy: Path, tmp_path: Path, method: str) -> None:
    reward = make_reward(source="train_policy")
    task = task_of(policy, tmp_path, reward, method)
    found = train_policy(task)
    assert mean_worth(policy, found.adapter) > mean_worth(policy, None) + 0.02
    last = found.history[found.outcome["kept_round"] - 1]
    assert found.outcome["kl_per_token"] == last["kl"] > 0.01
    assert 0 < last["held_low"] < last["held_difference"] < last["held_high"]
    rubrics = list(iter_json(tmp_path / "rubrics.jsonl"))
    held = {row["passage_id"] for row in rubrics if row["held"]}
    assert len(held) == 6 and not held & {row["passage_id"] for row in rubrics if not row["held"]}
    # Rewards on held passages, from the ledger's own judgements.
    by_key = {(row.passage_id, row.seed, row.rubric.question_type if row.rubric else None) for row in reward.answered}
    assert {(row["passage_id"], row["seed"]) for row in rubrics} == {key[:2] for key in by_key}
    for rounds, name in ((last["step"], "held_reward"), (0, "held_untrained")):
        rows = [row for row in rubrics if row["held"] and row["round"] == rounds]
        assert last[name] == pytest.approx(fmean(row["reward"] for row in rows))
        assert all(row["reward"] == pytest.approx(earned(row)) for row in rows)
    assert len(rubrics) <= task.budget
    assert not (tmp_path / "checkpoints").exists()


def earned(row: dict[str, Any]) -> float:
    """What the helpers' scorer gives a rubric's pair."""
    kind = next((name for name in WORTH if f" {row['text'].strip()}".splitlines()[0].endswith(f" {name}")), None)
    return -0.1 if kind is None or not row["valid"] else WORTH[kind] + 0.02 * noise(row["passage_id"])


def test_a_failure_of_a_service_and_the_next_call_end_like_an_undisturbed_training(
    policy: Path, tmp_path: Path
) -> None:
    whole = train_policy(task_of(policy, tmp_path / "whole", make_reward(), "dpo", steps=2))
    ledger, judged_rows = tmp_path / "rewards.jsonl", 0
    for fail_at in (3, 60):  # among the untrained policy's rubrics, and in the first round
        writer = PairWriter(fail_at=fail_at)
        writer.fails = ServiceError("connection refused")
        with pytest.raises(ServiceError, match="connection refused"):
            train_policy(task_of(policy, tmp_path / "broken", make_reward(ledger, writer=writer), "dpo", steps=2))
        kept = len(list(iter_json(ledger))) if ledger.is_file() else 0
        assert kept >= judged_rows
        judged_rows = kept
    assert judged_rows > 0
    with (tmp_path / "broken" / "rubrics.jsonl").open("a") as file:
        file.write('{"round": 1, "hel')  # torn by a kill
    found = train_policy(task_of(policy, tmp_path / "broken", make_reward(ledger), "dpo", steps=2))
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    assert found.outcome == whole.outcome
    keys = [row["key"] for row in iter_json(ledger)]
    assert len(set(keys)) == len(keys), "nothing is judged twice"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_kill_9_loses_no_judgement(tmp_path: Path, method: str) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        tiny_policy(tmp_path / name / "model")

    def run(folder: Path, *limit: str) -> int:
        command = [sys.executable, str(SCRIPT), method, str(folder), *limit]
        return subprocess.run(command, check=False, capture_output=True, timeout=600).returncode

    assert run(tmp_path / "whole") == 0
    assert run(tmp_path / "killed", "10") == -9
    assert list(iter_json(tmp_path / "killed" / "rewards.jsonl"))
    assert run(tmp_path / "killed") == 0
    bought = (tmp_path / "killed" / "written.log").read_text().split()
    assert sorted(set(bought)) == sorted(set((tmp_path / "whole" / "written.log").read_text().split()))
    assert weights(tmp_path / "killed" / "policy") == weights(tmp_path / "whole" / "policy")
    histories = [json.loads((tmp_path / name / "outcome.json").read_text()) for name in ("whole", "killed")]
    for row in (row for history in histories for row in history):
        row.pop("seconds")
    assert histories[0] == histories[1]


@pytest.mark.parametrize("method", METHODS)
def test_rewards_that_are_all_equal_are_drawn_again_once_and_end_the_training(
    policy: Path, tmp_path: Path, method: str
) -> None:
    class Nothing(PairWriter):
        async def awrite(self, *given: Any, **more: Any) -> Pair:
            pair = await super().awrite(*given, **more)
            return pair.model_copy(update={"answer": "bad answer"})

    reward = make_reward(writer=Nothing())
    found = train_policy(task_of(policy, tmp_path, reward, method, held_passages=2))
    # The second round reaches the other six passages.
    assert len(found.history) == 2
    for row in found.history:
        assert (row["redrawn"], row["groups_without_signal"], row["trained_on"]) == (6, 1.0, 0)
    assert found.outcome["kept_round"] == 0 and found.outcome["kl_per_token"] == 0
    assert "round 2 had nothing to train on: no pair of a whole rubric was valid" in found.outcome["stopped"]
    rubrics = [row for row in iter_json(tmp_path / "rubrics.jsonl") if not row["held"]]
    assert len({(row["passage_id"], row["draw"], row["seed"]) for row in rubrics}) == 24
    assert len({row["passage_id"] for row in rubrics}) == 12
    assert found.adapter.is_dir()


def test_a_round_without_anything_to_train_on_leaves_it_to_the_next(policy: Path, tmp_path: Path) -> None:
    class Later(PairWriter):
        async def awrite(self, passage: Any, *given: Any, **more: Any) -> Pair:
            pair = await super().awrite(passage, *given, **more)
            return pair if passage.id in reached else pair.model_copy(update={"answer": "bad answer"})

    task = task_of(policy, tmp_path, make_reward(writer=Later()), "dpo", held_passages=2)
    held = held_ids(task.config, [passage.id for passage in task.passages], task.seed)
    trained = [passage.id for passage in task.passages if passage.id not in held]
    reached = {*held, *trained[6:]}
    found = train_policy(task)
    assert [row["trained_on"] > 0 for row in found.history] == [False, True]
    assert [row["kept"] for row in found.history] == [0, 2]
    assert found.outcome["kept_round"] == 2 and found.outcome["held_difference"] > 0


def test_a_training_without_a_whole_rubric_says_so(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimsyn.optimize.policy_task.end_tokens", lambda model: (99,))
    found = train_policy(task_of(policy, tmp_path, make_reward(), "dpo", held_passages=2))
    assert "every rubric was cut at its longest; raise optimizers.policy.max_tokens" in found.outcome["stopped"]


def test_an_adapter_on_the_output_layer_is_refused_before_anything_is_sampled(policy: Path, tmp_path: Path) -> None:
    task = task_of(policy, tmp_path, make_reward(), "dpo", lora=Lora(r=4, target_modules=("q_proj", "lm_head")))
    with pytest.raises(ModelError, match=r"lora\.target_modules: the output layer"):
        train_policy(task)


def test_the_kl_of_a_policy_in_16_bits_is_that_of_its_weights(policy: Path, tmp_path: Path) -> None:
    """Two bfloat16 passes of nearly equal models differ more than these models do."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        task = task_of(policy, tmp_path, make_reward(), "dpo")
        model, _ = task.load_model()
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16).to(dtype)
        model = task.with_lora(model)
        start = weights_of(model)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                parameter.data = (1e-3 * values).to(torch.bfloat16).to(parameter.dtype)
            elif "lora_A" in name:
                parameter.data = parameter.data.to(torch.bfloat16).to(parameter.dtype)
        found.append(kl_per_token(model, start, [([1, 2, 3], [4, 5, 1, 0])]))
    assert found[0] == pytest.approx(found[1], rel=1e-2)
    assert 0 < found[1] < 1e-3


def test_weights_of_another_adapter_are_refused(policy: Path, tmp_path: Path) -> None:
    task = task_of(policy, tmp_path, make_reward(), "dpo")
    model = task.with_lora(task.load_model()[0])
    with pytest.raises(ModelError, match="do not fit this model"):
        put_weights(model, dict(list(weights_of(model).items())[1:]))


def test_it_stops_when_nothing_more_is_gained_and_keeps_the_best(policy: Path, tmp_path: Path) -> None:
    # A reward of the passage alone, which no rubric changes: what seems better is chance.
    class Chance(Scorer):
        def worth(self, pair: Pair) -> float:
            return noise(pair.id)

    reward = make_reward(scorer=Chance())
    found = train_policy(task_of(policy, tmp_path, reward, "expert", rounds=6, lr=1e-3, epochs=1))
    assert len(found.history) < 6
    assert "within one standard error" in found.outcome["stopped"]
    rubrics = list(iter_json(tmp_path / "rubrics.jsonl"))
    means = [
        fmean(row["reward"] for row in rubrics if row["held"] and row["round"] == number)
        for number in range(len(found.history) + 1)
    ]
    assert found.outcome["kept_round"] == means.index(max(means))


def test_without_held_passages_all_rounds_are_made(policy: Path, tmp_path: Path) -> None:
    task = task_of(policy, tmp_path, make_reward(), "expert", held_passages=0, steps=1, group_size=4, epochs=1)
    found = train_policy(task)
    assert [row["step"] for row in found.history] == [1, 2] and found.outcome["kept_round"] == 2
    assert all(row["kl"] > 0 and "held_reward" not in row for row in found.history)


def test_grpo_measures_its_kl_too(policy: Path, tmp_path: Path) -> None:
    for lr, moved in ((1e-2, True), (1e-12, False)):
        config = PolicyOptimizer(
            steps=3, group_size=4, passages_per_step=2, temperature=1.0, lr=lr, max_tokens=16, lora=Lora(r=4)
        )
        spec = ModelSpec(name=str(policy), device="cpu")
        task = PolicyTask(spec, config, make_reward(), passages(3), BASE_TEXT, Shape(), tmp_path / str(lr), 11)
        assert (train_policy(task).outcome["kl_per_token"] > 1e-4) == moved


def row_of(text: str, reward: float | None, *, passage: str = "p", valid: bool = True, finished: bool = True) -> Any:
    tokens = [ord(letter) for letter in text]
    return judged.JudgedRubric(1, False, 0, 0, passage, 1, text, [0], tokens, finished, valid, reward)


def test_what_is_trained_on() -> None:
    rows = [
        row_of("a", 0.4), row_of("b", 0.1), row_of("c", -0.1, valid=False), row_of("a ", 0.2),
        row_of("cut", 0.9, finished=False), row_of("unjudged", None),
        row_of("x", 0.3, passage="q"), row_of("y", 0.28, passage="q"),
    ]  # fmt: skip
    passages_ = list(judged.by_passage(rows).values())
    assert [[round(r.reward, 9) for r in rubrics] for rubrics in passages_] == [[0.3, 0.1, -0.1], [0.3, 0.28]]
    assert [bytes(r.completion).decode() for r in judged.best(passages_)] == ["a", "x"]
    # Pooled over passages with one degree of freedom each: the valid 0.3, 0.1 and 0.3, 0.28.
    least = judged.noise(passages_)
    assert least == pytest.approx(math.sqrt((stdev([0.3, 0.1]) ** 2 + stdev([0.3, 0.28]) ** 2) / 2))
    pairs = [(bytes(a.completion).decode(), bytes(b.completion).decode()) for a, b in judged.preferences(passages_)]
    assert pairs == [("a", "c")]  # the two of the other passage are nearer than noise
    assert judged.preferences([[passages_[0][2]], []]) == []
    assert not judged.has_signal([row_of("a", 0.1), row_of("b", 0.1)])
    assert not judged.has_signal([row_of("a", 0.1), row_of("a", 0.3)])
    assert not judged.has_signal([row_of("a", 0.1), row_of("b", 0.3, finished=False)])


@pytest.mark.parametrize(("method", "trainer"), [("expert", "sft_trainer"), ("dpo", "dpo_trainer")])
def test_training_on_a_cpu_does_the_steps_of_trl(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, trainer: str
) -> None:
    """Rubrics of several lengths, two epochs, and a last batch that is not full."""
    passages_ = [
        [
            replace(row_of("a", 0.4, passage=f"p{n}"), completion=[5, 6] * (1 + 2 * n)),
            replace(row_of("b", 0.1, passage=f"p{n}"), completion=[7, 8, 9]),
        ]
        for n in range(6)
    ]
    make = getattr(training, trainer)
    found = []
    for kind in (make(on_cpu=True), make(on_cpu=False)):
        monkeypatch.setattr(training, trainer, lambda *, on_cpu, kind=kind: kind)
        task = task_of(policy, tmp_path / kind.__name__, make_reward(), method, lr=1e-2, epochs=2)
        model, tokenizer = task.load_model()
        model = task.with_lora(model)
        learn = training.on_the_best if method == "expert" else training.on_preferences
        trained = learn(task, model, tokenizer, passages_)
        found.append((trained.loss, weights_of(model)))
    assert trained.examples == 6
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for name, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][name], rtol=1e-3, atol=1e-5)


def test_a_gain_is_of_the_passages_that_both_have() -> None:
    gain = compared({"a": 0.3, "b": 0.5, "c": 9.0}, {"a": 0.1, "b": 0.1, "d": 0.0})
    assert gain.passages == 2 and gain.mean == pytest.approx(0.3)
    assert gain.error == pytest.approx(stdev([0.2, 0.4]) / math.sqrt(2))
    assert gain.low == pytest.approx(0.2) and gain.high == pytest.approx(0.4)
    assert compared({"a": 1.0}, {"a": 0.5}).low is None


def test_recipes_of_before_keep_their_fingerprint_and_methods_their_rate() -> None:
    recipe = tiny_recipe()
    written = {"optimizers.policy.lr": 1e-5, "optimizers.policy.rounds": 2, "reward.penalty_unit": "raw"}
    assert changed(recipe, written).fingerprint == recipe.fingerprint
    rounds = changed(recipe, {"optimizers.policy.method": "dpo"})
    assert rounds.fingerprint != recipe.fingerprint
    assert rounds.optimizers.policy.learning_rate > recipe.optimizers.policy.learning_rate == 1e-5
    assert changed(rounds, {"reward.penalty_unit": "spread"}).fingerprint != rounds.fingerprint


def test_what_a_method_in_rounds_cannot_follow_is_refused() -> None:
    recipe = changed(tiny_recipe(), {"optimizers.policy.method": "dpo"})
    assert method_problems(recipe) == []
    for change, words in (
        ({"optimizers.policy.kl": 0}, "learns nothing with kl: 0"),
        ({"optimizers.policy.sampler": "continuous"}, "are for grpo"),
        ({"reward.given": "judged"}, "reward.given: nothing"),
    ):
        (problem,) = method_problems(changed(recipe, change))
        assert words in problem


def test_the_penalty_in_units_of_the_spread() -> None:
    drafts = [0.01, 0.05, 0.03]
    assert Reward(invalid_penalty=0.1).penalty(drafts) == 0.1
    spread = Reward(invalid_penalty=2, penalty_unit="spread")
    assert spread.penalty(drafts) == pytest.approx(2 * stdev(drafts))
    for flat in ([], [0.1], [0.1, 0.1]):
        with pytest.raises(StageError, match=r"reward\.penalty_unit"):
            spread.penalty(flat)


def lessons(reward: Any, count: int) -> list[Any]:
    """Judged rubrics of somebody else: a good and a poor one for each of the first passages."""
    asked = [
        RubricRequest(passage=each, kind="free", rubric=rubric(kind), guiding_text=BASE_TEXT, seed=3, variant="author")
        for each in passages(count)
        for kind in ("mechanism", "definition")
    ]
    return asyncio.run(reward.judge(asked))


@pytest.mark.parametrize("chat", [False, True])
def test_a_rubric_of_the_author_is_one_that_the_policy_could_have_sampled(tmp_path: Path, chat: bool) -> None:
    reward = make_reward()
    task = task_of(save_tiny_model(tmp_path / "tiny", chat=chat), tmp_path / "run", reward, "expert", held_passages=2)
    task.taught = lessons(reward, 3)
    _, tokenizer = task.load_model()
    rows = taught_rubrics(task, tokenizer, held={"p1"})
    assert [row.passage_id for row in rows] == ["p0", "p0", "p2", "p2"]
    for row, lesson in zip(rows, [each for each in task.taught if each.passage_id != "p1"], strict=True):
        assert complete_rubric(tokenizer.decode(row.completion, skip_special_tokens=True)) == lesson.rubric
        assert row.prompt == task.prompt_ids(
            tokenizer, task.row(tokenizer, passages(3)[int(row.passage_id[1])], 3, "free")
        )
        assert (row.reward, row.valid, row.finished, row.held) == (lesson.reward, True, True, False)
        end = tokenizer.decode(row.completion[-2:])
        assert end == "\n\n" if not chat else row.completion[-1] == tokenizer.eos_token_id


def test_expert_iteration_begins_with_what_the_author_has_judged(policy: Path, tmp_path: Path) -> None:
    reward, small = make_reward(), {"rounds": 1, "steps": 1, "group_size": 2, "epochs": 1, "held_passages": 2}
    alone = train_policy(task_of(policy, tmp_path / "alone", make_reward(), "expert", **small))
    task = task_of(policy, tmp_path / "taught", reward, "expert", **small)
    task.taught = lessons(reward, 14)
    taught = train_policy(task)
    held = {row["passage_id"] for row in iter_json(tmp_path / "taught" / "rubrics.jsonl") if row["held"]}
    assert len(held) == 2
    # The good one of each pair is above its passage's mean; with the policy's own, its two passages have others too.
    assert taught.history[0]["trained_on"] >= 10 + alone.history[0]["trained_on"] > 10 - len(held)
    # Another lesson is another training.
    task = task_of(policy, tmp_path / "taught", reward, "expert", **small)
    task.taught = lessons(reward, 2)
    assert train_policy(task).history[0]["trained_on"] < 10


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_sampling, "SHARED_DEVICES", ())


@pytest.mark.usefixtures("as_on_a_gpu")
def test_as_on_a_gpu_all_groups_of_a_round_are_sampled_in_one_batch(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    generate = group_sampling.generate

    def counted(model: Any, tokenizer: Any, rows: Any, **more: Any) -> Any:
        batches.append(len(rows))
        return generate(model, tokenizer, rows, **more)

    monkeypatch.setattr(group_sampling, "generate", counted)
    task = task_of(policy, tmp_path, make_reward(source="train_policy"), "expert")
    found = train_policy(task)
    assert found.outcome["held_low"] > 0 and mean_worth(policy, found.adapter) > mean_worth(policy, None)
    assert batches[:2] == [6 * 8, 3 * 2 * 8]  # held passages, then a round's steps
    rubrics = list(iter_json(tmp_path / "rubrics.jsonl"))
    assert all(row["reward"] == pytest.approx(earned(row)) for row in rubrics)
    assert all(row["finished"] == (row["completion"][-1] in (1, 3)) for row in rubrics)


def test_batches_of_several_prompts_continue_each_as_transformers_does_alone(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy)
    prompts = [tokenizer(text).input_ids for text in ("a name", "a name of a number", "name a")]
    # So cold that the most likely token is always drawn.
    how = group_sampling.Sampling(2, 1e-6, 12, (tokenizer.eos_token_id,))
    alone = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12
        )[0, len(prompt) :].tolist()
        alone.append([group_sampling.up_to_end(written, how.ends)] * how.count)
    assert list(group_sampling.sample_groups(model, tokenizer, prompts, [1, 2, 3], how)) == alone
    monkeypatch.setattr(group_sampling, "SHARED_DEVICES", ())
    assert list(group_sampling.sample_groups(model, tokenizer, prompts, [1, 2, 3], how)) == alone
    # Batches of one where the memory allows no more, and another reply for another seed.
    monkeypatch.setattr(group_sampling, "fitting", lambda model, rows: rows[:1])
    assert list(group_sampling.sample_groups(model, tokenizer, prompts, [1, 2, 3], how)) == alone
    warm = replace(how, temperature=1.0)
    first, again, other = (
        list(group_sampling.sample_groups(model, tokenizer, prompts[:1], [seed], warm)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_a_gpu_too_small_for_a_batch_samples_half_of_it(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy).eval(), AutoTokenizer.from_pretrained(policy)
    how = group_sampling.Sampling(4, 1.0, 8, (tokenizer.eos_token_id,))
    monkeypatch.setattr(group_sampling, "SHARED_DEVICES", ())
    whole = list(group_sampling.sample_groups(model, tokenizer, [[5, 6, 7]], [1], how))
    generate, most = group_sampling.generate, 1

    def short(model: Any, tokenizer: Any, rows: Any, **more: Any) -> Any:
        if len(rows) > most:
            raise torch.cuda.OutOfMemoryError
        return generate(model, tokenizer, rows, **more)

    monkeypatch.setattr(group_sampling, "generate", short)
    assert list(group_sampling.sample_groups(model, tokenizer, [[5, 6, 7]], [1], how)) == whole
    most = 0
    with pytest.raises(ModelError, match="optimizers.policy.max_tokens"):
        list(group_sampling.sample_groups(model, tokenizer, [[5, 6, 7]], [1], how))
