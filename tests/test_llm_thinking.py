"""A local model that can think aloud is prompted alike in GRPO and in use, and thinks only where it is asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optimize_helpers import BASE_TEXT, Shape, make_reward, passages

from optimsyn.llm.factory import load_language_model
from optimsyn.llm.local.generation import prompt_ids
from optimsyn.optimize.policy import train_policy
from optimsyn.optimize.policy_task import PolicyTask
from optimsyn.programs.rubric import rubric_messages
from optimsyn.recipe.recipe import Lora, ModelSpec
from optimsyn.recipe.sections.optimizers import PolicyOptimizer
from tests.llm_helpers import save_tiny_model

# Two ways of today's templates: one opens an empty thought unless it may think, the other is told by another name.
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]"
    "{% if enable_thinking is not defined or enable_thinking %}<think>{% else %}<think></think>{% endif %}"
    "{% if thinking is not defined or thinking %}[deep]{% endif %}{% endif %}"
)


class _SeenError(Exception):
    """Ends a training when its first prompts have been seen."""


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer

    folder = save_tiny_model(tmp_path_factory.mktemp("thinker") / "model", chat=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        (None, "[assistant]<think></think>"),
        ({"enable_thinking": True}, "[assistant]<think>"),
        ({"thinking": True}, "[assistant]<think></think>[deep]"),
    ],
)
def test_training_and_use_see_the_same_prompt(
    thinker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any] | None, ends: str
) -> None:
    from transformers import AutoTokenizer

    from optimsyn.optimize.shared_prompt import SharedPromptTrainer

    seen: list[list[int]] = []

    def generate(self: Any, prompts: list[list[int]], *more: Any, **others: Any) -> Any:
        seen.extend(prompts)
        raise _SeenError

    monkeypatch.setattr(SharedPromptTrainer, "_generate_single_turn", generate)
    spec = ModelSpec(name=str(thinker), device="cpu", chat_template_kwargs=arguments)
    config = PolicyOptimizer(steps=1, group_size=2, passages_per_step=1, max_tokens=16, lora=Lora(r=2))
    with pytest.raises(_SeenError):
        train_policy(PolicyTask(spec, config, make_reward(), passages(1), BASE_TEXT, Shape(), tmp_path, 11))
    tokenizer = AutoTokenizer.from_pretrained(thinker)
    messages, _ = rubric_messages(BASE_TEXT, passages(1)[0], "", manner="chat")
    assert list(seen[0]) == prompt_ids(tokenizer, messages, spec.template_arguments)
    assert tokenizer.decode(seen[0]).endswith(ends)


def test_what_a_template_is_given_is_part_of_a_models_identity(thinker: Path) -> None:
    plain, same, thinking = (
        load_language_model(ModelSpec(name=str(thinker), chat_template_kwargs=arguments)).identity
        for arguments in (None, None, {"enable_thinking": True})
    )
    assert plain == same != thinking
