"""The writer of pairs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy

from optimsyn.base.seeds import derive_seed
from optimsyn.data.forms import Content, recorded
from optimsyn.data.forms.unshown import Unshown
from optimsyn.data.records import Pair, Passage, Rubric
from optimsyn.data.text import as_written
from optimsyn.llm.reading.asking import Beginning
from optimsyn.llm.replies import Reply
from optimsyn.programs.messages import Message
from optimsyn.programs.pair_reader import read_pair, unfinished
from optimsyn.programs.prompts.adapter import PromptAdapter, ask
from optimsyn.programs.prompts.pair_prompts import (
    STOP,
    base_prompt,
    chat_messages,
    open_schema,
    told_why,
    writer_knows,
    writer_prompt,
)
from optimsyn.programs.rubric import Shared
from optimsyn.programs.task_shape import TaskShape

if TYPE_CHECKING:
    from optimsyn.llm.language_model import LanguageModel


class WritePair(dspy.Signature):
    """Write one exam question and its answer from the passage, as the rubric asks."""

    passage: str = dspy.InputField(desc="the text that the question is made from")
    rubric: Rubric | None = dspy.InputField(desc="the criteria, if any")
    pair: dict[str, Any] = dspy.OutputField(desc="quote, question, answer and what else its form holds")


@dataclass(frozen=True)
class Refused:
    """A draft that was not valid, for the one that is written in its place.

    Attributes:
        redraft: The number of the new draft, from 1.
        why: What was wrong, a sentence for each failed check.
        pair: None where the reply held no pair.
    """

    redraft: int
    why: tuple[str, ...]
    pair: Pair | None = None


class PairWriter(dspy.Module):
    """Writes one pair from a passage under a rubric.

    Args:
        model: The generator.
        spec: The form of the pairs.
    """

    def __init__(self, model: LanguageModel, spec: TaskShape) -> None:
        super().__init__()
        self._shared = Shared(model)
        self.spec = spec
        self.write = dspy.Predict(WritePair)

    @property
    def model(self) -> LanguageModel:
        """The language model; copies of this module share it."""
        return self._shared.model

    @property
    def fingerprint(self) -> str:
        """Changes with what the pairs depend on beside the request: weights, sampling, form.

        As in the reply cache, whether the model has an address counts, the address itself does not.
        """
        spec = self.model.spec
        facts: list[Any] = [self.model.identity, spec.temperature, spec.max_tokens, spec.structured_output]
        facts.append(spec.api_base is None)
        if besides := self.model.asked_besides:
            facts.append(sorted(besides.items()))
        return "pairs-" + hashlib.sha256(repr([*facts, self.spec.identity]).encode()).hexdigest()[:16]

    @property
    def redrafts_differ(self) -> bool:
        """Whether another draft can differ from a refused one: not from a model that is told nothing and is greedy."""
        return self.model.manner == "chat" or self.model.spec.temperature != 0

    async def awrite(  # noqa: PLR0913 - keyword-only lineage of the pair
        self,
        passage: Passage,
        rubric: Rubric | None,
        *,
        seed: int,
        variant: str,
        guiding_text: str = "",
        rubric_model: str = "",
        refused: Refused | None = None,
    ) -> Pair:
        """Writes one pair; its form follows from the seed, or from the rubric where the recipe shows none.

        Args:
            passage: The text to make it from.
            rubric: The criteria; None to write without.
            seed: Sampling seed; also decides the order of options.
            variant: For the pair's lineage.
            guiding_text: For the pair's lineage.
            rubric_model: For the pair's lineage.
            refused: The last draft for the same request, which was not valid; None: this is the first.

        Raises:
            ReplyError: The reply has no usable pair.
            ServiceError: The service failed for good.
        """
        kind = self.spec.kind_for(seed)
        form = self.spec.form(kind)
        if isinstance(form, Unshown):
            kind, form = form.under(rubric)
        manner = self.model.manner
        if manner == "writer" and not writer_knows(form):
            manner = "plain"

        def messages(_: str, inputs: dict[str, Any]) -> list[Message]:
            if manner == "chat":
                first = chat_messages(form, inputs["passage"], inputs["rubric"], seed)
                return first if refused is None else told_why(first, refused.pair, refused.why)
            prompt = writer_prompt if manner == "writer" else base_prompt
            return [{"role": "user", "content": prompt(form, inputs["passage"], inputs["rubric"])}]

        def reading(reply: Reply, max_tokens: int | None) -> dict[str, Any]:
            reply_fields = read_pair(reply, form, max_tokens=max_tokens)
            quote = as_written(reply_fields["quote"], passage.text)
            return {"quote": quote, "content": form.content(reply_fields, seed)}

        def going_on(text: str) -> Beginning | None:
            return unfinished(text, form) if manner == "writer" else None

        schema = None if manner == "writer" else ("pair", open_schema(form, seed))
        prediction = await ask(
            self.write,
            self.model,
            PromptAdapter(messages, reading, "generator", going_on),
            # The form, and the order of options, stay those of the request.
            seed=seed if refused is None else derive_seed(seed, "redraft", refused.redraft),
            schema=schema,
            # A schema ends the reply by itself, and a stop text may cut white space that it allows.
            stop=() if manner == "chat" or (schema and self.model.structured) else STOP,
            passage=passage.text,
            rubric=rubric,
        )
        content: Content = prediction.pair["content"]
        identity: tuple[Any, ...] = (passage.id, variant, seed, guiding_text, rubric, content.question, content.answer)
        if content.details:
            identity = (*identity, sorted(content.details.items()))
        return Pair(
            id="pair-" + hashlib.sha256(repr(identity).encode()).hexdigest()[:16],
            question=content.question,
            answer=content.answer,
            choices=content.choices,
            answer_index=content.answer_index,
            context=passage.text if self.spec.open_book else None,
            quote=prediction.pair["quote"],
            passage_id=passage.id,
            document_id=passage.document_id,
            char_start=passage.char_start,
            char_end=passage.char_end,
            variant=variant,
            guiding_text=guiding_text,
            rubric=rubric,
            rubric_model=rubric_model,
            generator=self.model.name,
            seed=seed,
            form=recorded(kind),
            details=content.details,
        )

    async def aforward(
        self, passage: Passage, rubric: Rubric | None = None, seed: int = 0, variant: str = ""
    ) -> dspy.Prediction:
        """`awrite` as a DSPy call: a prediction whose `pair` is a Pair."""
        return dspy.Prediction(pair=await self.awrite(passage, rubric, seed=seed, variant=variant))

    def forward(
        self, passage: Passage, rubric: Rubric | None = None, seed: int = 0, variant: str = ""
    ) -> dspy.Prediction:
        """The same, for callers without an event loop."""
        from optimsyn.llm.language_model import run_sync

        return run_sync(self.aforward(passage, rubric, seed, variant))
