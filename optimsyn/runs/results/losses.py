"""What became of the candidates of one variant."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

_INVALID, _NOT_JUDGED = "invalid: ", "not judged: "


class Losses(BaseModel):
    """Counts of one variant's candidates, each candidate under one heading.

    In a file this is a mapping of words to counts (`"invalid: grounded": 3`), in the order in which they are lost.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    candidates: int | None = Field(description="Candidates that were written.")
    invalid_by_check: dict[str, int] = Field(
        description="Those that failed a check, by the first check that each failed, most frequent first."
    )
    not_judged_by_outcome: dict[str, int] = Field(
        description="Those of which no reply could be judged, by what came in its place."
    )
    duplicate: int | None = Field(description="Valid ones that repeat another one.")
    not_selected: int | None = Field(description="Valid, different ones that were not kept.")
    kept: int | None = Field(description="Those that became the variant's pairs.")
    invalid: int | None = Field(description="Those that failed a check, in all.")

    @property
    def not_judged(self) -> int:
        """Those that could not be judged, in all."""
        return sum(self.not_judged_by_outcome.values())

    @model_serializer
    def counts(self) -> dict[str, int]:
        """The counts in words, in order; those that a run has not recorded are left out."""
        missing = self.not_judged_by_outcome
        counts = {
            "candidates": self.candidates,
            "invalid": self.invalid,
            **{f"{_INVALID}{name}": count for name, count in self.invalid_by_check.items()},
            **({"not judged": self.not_judged} if missing else {}),
            **{f"{_NOT_JUDGED}{name}": count for name, count in missing.items()},
            "duplicate": self.duplicate,
            "not selected": self.not_selected,
            "kept": self.kept,
        }
        return {name: count for name, count in counts.items() if count is not None}

    @model_validator(mode="before")
    @classmethod
    def _in_words(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "invalid_by_check" in raw:
            return raw
        return {
            **{name: raw.get(name) for name in ("candidates", "invalid", "duplicate", "kept")},
            "not_selected": raw.get("not selected"),
            "invalid_by_check": _after(_INVALID, raw),
            "not_judged_by_outcome": _after(_NOT_JUDGED, raw),
        }


def _after(beginning: str, counts: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(beginning): count for name, count in counts.items() if name.startswith(beginning)}
