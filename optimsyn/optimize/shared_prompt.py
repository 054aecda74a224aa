"""TRL's GRPOTrainer, cheap enough for a CPU, with unchanged numbers.

On devices without Triton, TRL runs every prompt once for each rubric of its group, in generation, in the reference pass
and in training, and puts every position through the output layer. A rubric prompt is six times as long as the rubric,
and a vocabulary of 262,144 makes one position in the output layer cost more than in the rest of a small model. Here

- a prompt is run once and its group shares its keys and values, with gradients, so that the result is the same,
- the candidates of a token are cut among the most likely ones instead of by sorting the whole vocabulary,
- the pair of a rubric is begun as soon as the rubric has ended, while others are sampled,
- only positions that predict a completion token reach the output layer, in chunks (`optimsyn.target.output_layer`).

Other models and machines fall back to TRL's own implementation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from optimsyn.base.meter import Meter
from optimsyn.llm.local.generation import prompt_ids
from optimsyn.llm.local.group_sampling import MOST_ROWS_ON_CPU, Candidates
from optimsyn.llm.local.merging import merged
from optimsyn.llm.local.prompt_cache import caches_keys_and_values, causal_of, positions, read_prompts
from optimsyn.llm.local.turns import others_turn, turn
from optimsyn.recipe.sections.models import NO_THINKING
from optimsyn.target.output_layer import OutputLayer, TokenLogProbs

RUBRIC = "rubric"
"""The rubric model in the meter of a stage."""
# Configurations with special scaling of logits, which TRL handles.
_SCALES = ("logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")


class FinishedRows(StoppingCriteria):
    """Reports rows of a batch as soon as they end; stops none.

    Args:
        ends: Tokens that end a row.
        report: Called with all ids so far [B, T] and the indices of rows that have just ended.
    """

    def __init__(self, ends: set[int], report: Callable[[torch.Tensor, list[int]], None]) -> None:
        self._ends = torch.tensor(sorted(ends))
        self._report = report
        self._ended: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """False for every row."""
        last = torch.isin(input_ids[:, -1], self._ends)
        before = torch.zeros_like(last) if self._ended is None else self._ended
        self._ended = before | last
        if rows := (last & ~before).nonzero().flatten().tolist():
            self._report(input_ids, rows)
        return torch.zeros_like(last)  # type: ignore[return-value]


class SharedPromptTrainer(GRPOTrainer):
    """A GRPOTrainer that runs each prompt once; used like TRL's, with a LoRA of a causal language model.

    Attributes:
        meter: Counts when the rubric model samples or trains.
        write_ahead: Called with data set rows and the texts of rubrics that were sampled for them, before TRL asks for
            their rewards.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.meter = Meter()
        self.write_ahead: Callable[[list[dict[str, Any]], list[str]], None] = lambda rows, texts: None
        self._sampled_for: list[dict[str, Any]] = []
        unwrapped = self.accelerator.unwrap_model(self.model)
        self._causal = causal_of(unwrapped)
        self.shares_prompts = self.can_share()

    def can_share(self) -> bool:
        """Whether this model and this machine support shared prompts."""
        config = self._causal.config.get_text_config()
        head = self._causal.get_output_embeddings()
        return (
            self.accelerator.device.type == "cpu"
            and self.accelerator.num_processes == 1
            and not self.args.gradient_checkpointing
            and not self.args.use_vllm
            and not self.args.use_transformers_continuous_batching
            and not self._is_vlm
            and not self.aux_loss_enabled
            and type(head) is nn.Linear
            and not head.weight.requires_grad
            and all(getattr(config, name, None) is None for name in _SCALES)
            and caches_keys_and_values(self._causal)
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
        """Log-probabilities and entropies [B, C] of the completions in `input_ids` [B, P + C], 0 at padding."""
        if not self.shares_prompts:
            result: tuple[torch.Tensor, torch.Tensor | None, Any] = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **others
            )
            return result
        prompt = input_ids.shape[1] - logits_to_keep
        rows, place = torch.unique(
            torch.cat([input_ids[:, :prompt], attention_mask[:, :prompt]], dim=1), dim=0, return_inverse=True
        )
        last, cache = read_prompts(self._causal, rows[:, :prompt], rows[:, prompt:], place)
        hidden = last.unsqueeze(1)
        if logits_to_keep > 1:
            after = self._causal.base_model(
                input_ids=input_ids[:, prompt:-1],
                attention_mask=attention_mask[:, :-1],
                position_ids=positions(attention_mask)[:, prompt:-1],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            hidden = torch.cat([hidden, after], dim=1)
        head = self._causal.get_output_embeddings()
        real = attention_mask[:, prompt:].bool()
        wanted = hidden[real]
        softcap = getattr(self._causal.config.get_text_config(), "final_logit_softcapping", None)
        log_probs, entropies = TokenLogProbs.apply(  # type: ignore[no-untyped-call]
            wanted,
            OutputLayer(head.weight, head.bias, softcap=softcap, temperature=self.temperature),
            input_ids[:, prompt:][real],
            torch.is_grad_enabled() and wanted.requires_grad,
        )
        empty = log_probs.new_zeros(real.shape)
        spread = empty.masked_scatter(real, log_probs)
        return spread, empty.masked_scatter(real, entropies) if compute_entropy else None, None

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """The ids of prompts, as when the policy is used: passages never produce control tokens."""
        if self._is_vlm:
            result: tuple[list[list[int]], Any, dict[str, Any]] = super()._tokenize_prompts(prompts)
            return result
        messages = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
        arguments = self.args.chat_template_kwargs or NO_THINKING
        return [prompt_ids(self._tokenizer, item, arguments) for item in messages], None, {}

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass, and the sampling before it."""
        with turn(self._causal.device), self.meter.at_work(RUBRIC):
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            return loss

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.meter.waiting(RUBRIC), others_turn(self._causal.device):
            rewards: torch.Tensor = super()._calculate_rewards(*args, **kwargs)
            return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._sampled_for = inputs
        result: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return result

    def _generate_single_turn(
        self, prompt_ids: Sequence[Sequence[int]], images: Any, multimodal_fields: Any, *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], Any]:
        """Completions, each with its end token if it has one, for prompts ordered by group."""
        if not self.shares_prompts:
            result: tuple[list[list[int]], Any] = super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, *args, **kwargs
            )
            self._begin_pairs(dict(enumerate(result[0])))
            return result
        completions: list[list[int]] = []
        at_once = max(1, MOST_ROWS_ON_CPU // self.num_generations) * self.num_generations
        for start in range(0, len(prompt_ids), at_once):
            completions += self._sample(prompt_ids[start : start + at_once], start)
        return completions, None

    def _sample(self, prompt_ids: Sequence[Sequence[int]], first: int) -> list[list[int]]:
        """Samples a batch of whole groups; `first` is the place of its first row."""
        different = list(dict.fromkeys(tuple(ids) for ids in prompt_ids))
        place = torch.tensor([different.index(tuple(ids)) for ids in prompt_ids])
        longest = max(len(ids) for ids in different)
        pad = self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in different])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in different])
        ends = set(self.eos_token_ids)
        begun: set[int] = set()

        def begin(sampled: torch.Tensor, rows: Sequence[int]) -> None:
            begun.update(rows)
            self._begin_pairs({first + row: _until_end(sampled[row, longest:].tolist(), ends) for row in rows})

        with (
            unwrap_model_for_generation(self.model_wrapped, self.accelerator, generation_kwargs=self.generation_kwargs),
            merged(self._causal),
            torch.no_grad(),
        ):
            cache = read_prompts(self._causal, ids[:, :-1], mask[:, :-1], place)[1] if longest > 1 else None
            sampled = self._causal.generate(
                input_ids=ids[place],
                attention_mask=mask[place],
                past_key_values=cache,
                stopping_criteria=StoppingCriteriaList([FinishedRows(ends, begin)]),
                **self._sampling(),
            )
        begin(sampled, [row for row in range(len(prompt_ids)) if row not in begun])
        return [_until_end(row, ends) for row in sampled[:, longest:].tolist()]

    def _begin_pairs(self, completions: Mapping[int, list[int]]) -> None:
        """Has the pairs of sampled rubrics (ids by row of the step) written while the step goes on."""
        # Where the reply is parsed in a model's own way, its text is not known yet.
        own = any(getattr(self._tokenizer, name, None) is not None for name in ("response_template", "response_schema"))
        if own or not completions or len(self._sampled_for) <= max(completions):
            return
        # As TRL decodes them for the reward.
        texts = self.processing_class.batch_decode(list(completions.values()), skip_special_tokens=True)
        self.write_ahead([self._sampled_for[row] for row in completions], texts)

    def _sampling(self) -> dict[str, Any]:
        """The sampling settings of `generate`: TRL's, with `Candidates` for the cut."""
        config = self.generation_config
        if not config.top_k:
            return {"generation_config": config}
        cut = Candidates(config.top_k, config.top_p or 1.0, config.min_p or 0.0, config.temperature)
        config = copy.deepcopy(config)
        config.update(top_k=0, top_p=1.0, min_p=None, temperature=1.0)
        return {"generation_config": config, "logits_processor": LogitsProcessorList([cut])}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to and with the first end token."""
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
