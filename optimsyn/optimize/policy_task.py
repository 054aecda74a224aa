"""The task of a method of policy optimisation: prompts, the model, the reward within its budget, a history."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optimsyn.base.errors import ModelError, StageError
from optimsyn.base.files import write_json
from optimsyn.base.seeds import derive_seed
from optimsyn.data.records import Passage
from optimsyn.optimize.history import History
from optimsyn.recipe.recipe import ModelSpec
from optimsyn.recipe.sections.optimizers import PolicyOptimizer

if TYPE_CHECKING:
    from optimsyn.llm.language_model import Manner
    from optimsyn.programs.task_shape import TaskShape
    from optimsyn.reward.drafting import RubricRequest
    from optimsyn.reward.judgements import Judgement
    from optimsyn.reward.reward import InfluenceReward

OUTCOME = "outcome.json"
LORA = "optimizers.policy.lora"
"""The recipe's field of the policy's adapter."""
# The rubrics that a method in rounds has sampled, with their tokens and rewards.
RUBRICS = "rubrics.jsonl"
# Before the number of the round after which the target was warmed up again.
WARM_UP = "warm_up-"
LoadModel = Callable[[ModelSpec], tuple[Any, Any]]


@dataclass(frozen=True)
class Sampled:
    """A rubric from the policy.

    Attributes:
        text: As the reward reads it.
        prompt: Tokens of the prompt.
        completion: Tokens of the rubric with its end token.
        finished: Whether it has an end token; False: it was cut at `max_tokens`.
    """

    text: str
    prompt: list[int]
    completion: list[int]
    finished: bool = True


class Renewal(Protocol):
    """Warms the target up again between rounds."""

    @property
    def blanks(self) -> Sequence[RubricRequest]:
        """The first drafts that a warm-up asks for, without their rubrics."""

    def has(self, number: int) -> bool:
        """Whether the first drafts after a round are written."""

    def reward(self, number: int, requests: Sequence[RubricRequest] | None) -> InfluenceReward | None:
        """The reward of the target as warmed up after a round; None: too few first drafts were valid.

        Args:
            number: The round.
            requests: `blanks` with rubrics of the policy after that round; None where they are written.

        Raises:
            ServiceError: A service failed for good.
        """


@dataclass
class PolicyTask:
    """The task of a method of policy optimisation.

    Attributes:
        spec: The rubric model; local, a hub model or `embedded`. `load_model` loads it.
        config: The recipe's section `optimizers.policy`; `lr` is a number here, the method's own where it names none.
        reward: The reward of the run. Use `judge`, or `trl_reward` for a trainer of TRL, which enforce the budget.
        passages: Used in this order, and from the start again when there are fewer than the steps need.
        guiding_text: Part of every prompt.
        shape: Decides which kind of question each passage gets.
        folder: Receives `adapter/`, `history.jsonl` and, while training, `checkpoints/`.
        seed: Of the adapter's start, the sampling and the pairs. Draw only from this seed.
        start: A peft adapter that the training begins from, in place of a new LoRA of the recipe's size.
        load: Overrides the loading of model and tokenizer, for models that are already in memory.
        report: Called before and after each step with the steps done and their total.
        renewal: Warms the target up again between rounds, after which `reward` is another one; None: it is not.
        taught: Rubrics that somebody else has written for some of the passages, judged by the same reward.
    """

    spec: ModelSpec
    config: PolicyOptimizer
    reward: InfluenceReward
    passages: Sequence[Passage]
    guiding_text: str
    shape: TaskShape
    folder: Path
    seed: int
    start: Path | None = None
    load: LoadModel | None = None
    report: Callable[[int, int], None] | None = None
    taught: Sequence[Judgement] = ()
    renewal: Renewal | None = None
    _judged: int = field(init=False, default=0)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.config = self.config.model_copy(update={"lr": self.config.learning_rate})

    @property
    def passages_per_step(self) -> int:
        """Groups per step; a step never has a passage twice."""
        return min(self.config.passages_per_step, len(self.passages))

    @property
    def budget(self) -> int:
        """Maximum number of judged rubrics; `PolicyOptimizer.judged` says what it is made of."""
        return self.config.judged(len(self.passages), drawn_again=1.0)

    @property
    def checkpoints(self) -> Path:
        """The folder for files that a method needs to resume after a kill; removed after the training."""
        return self.folder / "checkpoints"

    def load_model(self) -> tuple[Any, Any]:
        """The rubric model and its tokenizer, padded on the left as for sampling."""
        from optimsyn.llm.control_tokens import end_ids
        from optimsyn.llm.local.loading import load_causal_lm

        model, tokenizer = (self.load or functools.partial(load_causal_lm, trained=True))(self.spec)
        tokenizer.padding_side = "left"
        # TRL ends a completion at every end token that the model's generation config declares.
        model.generation_config.eos_token_id = end_ids(model, tokenizer)
        if self.config.lora.dropout == 0:
            _drop_nothing(model)
        if tokenizer.chat_template is None:
            _end_at_blank_line(model, tokenizer)
        return model, tokenizer

    def with_lora(self, model: Any) -> Any:
        """The model with a LoRA to train: the one in `start`, else a new one, initialised from the seed.

        Raises:
            ModelError: The recipe's LoRA has no place in it.
        """
        import torch
        from peft import PeftConfig, PeftModel

        from optimsyn.target.adapter import add_lora

        if self.start is not None:
            config = PeftConfig.from_pretrained(str(self.start))
            # Where the base model lies: peft would ask the hub for any other name whenever it saves.
            config.base_model_name_or_path = model.name_or_path
            return PeftModel.from_pretrained(model, str(self.start), is_trainable=True, config=config)
        head = model.get_output_embeddings()
        torch.manual_seed(self.seed)
        adapted = add_lora(model, self.config.lora, field=LORA)
        if adapted.get_base_model().get_output_embeddings() is not head:
            raise ModelError(
                f"{LORA}.target_modules: the output layer is among them, which TRL's trainers leave frozen; name other "
                f"layers, or leave it out with {LORA}.exclude_modules"
            )
        return adapted

    def rows(self, tokenizer: Any) -> list[dict[str, Any]]:
        """One row for each group of rubrics, in the order of use: `passages_per_step` for each step.

        `prompt` is the policy's prompt (text, or chat messages); the other columns are for the reward.
        """
        rows = []
        for index in range(self.config.steps * self.passages_per_step):
            passage = self.passages[index % len(self.passages)]
            # One seed for a whole group: its rubrics are compared under the same sampling noise, and equal ones earn
            # equal rewards. Each step has another seed, so that a repeated passage gets new pairs.
            row_seed = derive_seed(self.seed, "train_policy", index // self.passages_per_step, passage.id)
            rows.append(self.row(tokenizer, passage, row_seed, self.shape.kind_for(row_seed)))
        return rows

    def row(self, tokenizer: Any, passage: Passage, seed: int, kind: str) -> dict[str, Any]:
        """The row of one group of rubrics, as in `rows`.

        Args:
            tokenizer: The policy's.
            passage: What the rubrics are for.
            seed: Of the pairs that are written under them.
            kind: The form of these pairs.
        """
        from optimsyn.programs.rubric import rubric_prompt

        manner = self.manner(tokenizer)
        form = self.shape.form(kind).described()
        return {
            "prompt": rubric_prompt(self.guiding_text, passage, form, manner=manner),
            "passage": passage.model_dump_json(),
            "kind": kind,
            "guiding_text": self.guiding_text,
            "rubric_model": self.spec.name,
            "seed": seed,
        }

    def manner(self, tokenizer: Any) -> Manner:
        """How the policy is addressed."""
        if self.spec.provider == "embedded":
            return "writer"
        return "chat" if getattr(tokenizer, "chat_template", None) else "plain"

    def prompt_ids(self, tokenizer: Any, row: dict[str, Any]) -> list[int]:
        """The tokens of a row's prompt, as when the policy is used."""
        from optimsyn.llm.local.generation import prompt_ids

        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return prompt_ids(tokenizer, messages, self.spec.template_arguments)

    def sample(self, model: Any, tokenizer: Any, row: dict[str, Any], count: int | None = None) -> list[Sampled]:
        """`group_size` rubrics, or `count`, for a row, sampled as when the policy is used; seed torch beforehand."""
        from optimsyn.llm.local.group_sampling import sample_group, up_to_end

        prompt = self.prompt_ids(tokenizer, row)
        training = model.training
        model.eval()
        written = sample_group(
            model,
            prompt,
            count or self.config.group_size,
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens,
            pad=tokenizer.pad_token_id,
        )
        model.train(training)
        ends = end_tokens(model)
        return [_sampled(tokenizer, prompt, up_to_end(tokens, ends), ends) for tokens in written]

    def sample_all(
        self,
        model: Any,
        tokenizer: Any,
        rows: Sequence[dict[str, Any]],
        seeds: Sequence[int],
        count: int | None = None,
    ) -> Generator[list[Sampled]]:
        """`group_size` rubrics, or `count`, for each row, sampled as when the policy is used.

        Rows are sampled in batches, each when its first row is asked for.

        Args:
            model: The policy.
            tokenizer: Its tokenizer.
            rows: See `row`.
            seeds: Of each row's sampling.
            count: Rubrics of each row; None: `group_size`.
        """
        from optimsyn.llm.local.group_sampling import Sampling, sample_groups

        prompts = [self.prompt_ids(tokenizer, row) for row in rows]
        ends = end_tokens(model)
        how = Sampling(count or self.config.group_size, self.config.temperature, self.config.max_tokens, ends)
        training = model.training
        model.eval()
        try:
            groups = sample_groups(model, tokenizer, prompts, seeds, how)
            for prompt, group in zip(prompts, groups, strict=True):
                yield [_sampled(tokenizer, prompt, tokens, ends) for tokens in group]
        finally:
            model.train(training)

    def judge(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> list[float | None]:
        """The reward of each completion for the row at the same index; None where it could not be judged.

        Raises:
            ServiceError: A service failed for good; the next call of the method resumes from its checkpoints.
            StageError: The budget is exceeded.
        """
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        return self.trl_reward([row["prompt"] for row in rows], completions, **columns)

    def judgements(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> list[Judgement]:
        """As `judge`, with all that is known of each pair; `unjudged` where it could not be judged."""
        from optimsyn.llm.language_model import run_sync

        self.count(len(completions))
        return run_sync(self.reward.judge(self.requests(rows, completions)))

    def judge_again(self, requests: Sequence[RubricRequest]) -> list[Judgement]:
        """Judges by the reward of now what an earlier one has judged, and the budget has counted."""
        from optimsyn.llm.language_model import run_sync

        return run_sync(self.reward.judge(requests))

    def requests(
        self, rows: Sequence[dict[str, Any]], completions: Sequence[str], *, noted: bool = True
    ) -> list[RubricRequest]:
        """The rubrics as the reward is asked for them.

        Args:
            rows: See `row`.
            completions: One for each row.
            noted: Whether to count what could be read of them.
        """
        from optimsyn.reward.trl import requests_of

        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        return requests_of(completions, columns, self.reward.source, self.reward.options.outcomes if noted else None)

    @functools.cached_property
    def trl_reward(self) -> TrlReward:
        """The reward for the `reward_funcs` of a TRL trainer whose data set is `rows`."""
        return TrlReward(self)

    def count(self, judged: int) -> None:
        """Counts rubrics before they are judged; refuses those beyond the budget.

        Raises:
            StageError: The budget is exceeded.
        """
        with self._lock:
            if self._judged + judged > self.budget:
                raise StageError(
                    f"optimizers.policy.method {self.config.method!r} asked for more than the {self.budget} judged "
                    "rubrics of its budget (optimizers.policy: steps, passages_per_step, group_size); no further "
                    "requests were sent. Let the method ask for less, or raise optimizers.policy.steps"
                )
            self._judged += judged

    def history(self, keep: Callable[[dict[str, Any]], bool] = lambda row: False) -> History:
        """Rows of `history.jsonl`, one per step: `step`, `reward` (mean), and further fields of the method.

        Args:
            keep: Rows of an earlier, killed process whose work is not repeated.
        """
        return History(self.folder / "history.jsonl", keep=keep)

    def progress(self, done: int, total: int | None = None) -> None:
        """Reports how many steps are done, of `steps` or of `total`."""
        if self.report is not None:
            self.report(done, total or self.config.steps)

    def conclude(self, **facts: Any) -> None:
        """Keeps what the method says of its training as a whole; `PolicyResult.outcome` has it."""
        write_json(self.folder / OUTCOME, facts)

    def save(self, model: Any) -> Path:
        """Writes the trained adapter of a peft model atomically."""
        adapter = self.folder / "adapter"
        partial = adapter.with_name("adapter.partial")
        shutil.rmtree(partial, ignore_errors=True)
        # The embeddings are not trained; peft's "auto" asks the hub about them. TRL keeps a copy of the start as `ref`.
        model.save_pretrained(str(partial), save_embedding_layers=False, selected_adapters=["default"])
        shutil.rmtree(adapter, ignore_errors=True)
        partial.rename(adapter)
        return adapter


class TrlReward:
    """The reward as TRL calls it, within the budget of a task."""

    def __init__(self, task: PolicyTask) -> None:
        self._task = task
        # TRL names its columns and metrics after the reward function.
        self.__name__ = task.reward.__name__

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """One reward per completion; None, which TRL leaves out of the group, where it could not be judged."""
        self._task.count(len(completions))
        return self._task.reward(prompts, completions, **columns)

    def write_ahead(self, rows: Sequence[dict[str, Any]], completions: Sequence[str]) -> None:
        """Begins to write the pairs of rubrics while others are sampled; they are judged when TRL asks for rewards."""
        self._task.reward.write_ahead(self._task.requests(rows, completions, noted=False))


def end_tokens(model: Any) -> tuple[int, ...]:
    """The tokens that end a text, as the model declares them."""
    declared = model.generation_config.eos_token_id
    return (declared,) if isinstance(declared, int) else tuple(declared or ())


def _sampled(tokenizer: Any, prompt: list[int], tokens: list[int], ends: Sequence[int]) -> Sampled:
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return Sampled(text, prompt, tokens, finished=bool(tokens) and tokens[-1] in ends)


def _drop_nothing(model: Any) -> None:
    """Switches a model's own dropout off, which would be noise between what was sampled and what is trained on.

    TRL does it for modules of dropout only, and some models (OPT) call the function.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _end_at_blank_line(model: Any, tokenizer: Any) -> None:
    """Ends a base model's rubric at a blank line, where the next demonstration begins."""
    declared = model.generation_config.eos_token_id
    ends = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    model.generation_config.eos_token_id = [*ends, *sorted(set(blank_line_tokens(tokenizer)) - set(ends))]


def blank_line_tokens(tokenizer: Any) -> list[int]:
    """Sorted ids of all tokens that contain a blank line; empty where line breaks are single tokens."""
    # In byte-level vocabularies a line break is written as the letter C with a dot.
    likely = [token for text, token in tokenizer.get_vocab().items() if "\n\n" in text or "\u010a\u010a" in text]
    return sorted(token for token in likely if "\n\n" in tokenizer.decode([token]))
