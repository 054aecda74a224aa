"""What became of the candidates of one variant."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

_INVALID, _NOT_JUDGED = "invalid: ", "not judged: "


class Losses(BaseModel):
    """Counts of one variant's candidates; each candidate counts once.

    Saved as a mapping of names to counts (`"invalid: grounded": 3`), in the order of the steps.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    candidates: int | None = Field(description="Candidates that were written.")
    invalid_by_check: dict[str, int] = Field(
        description="Candidates that failed a check, by the first failed check, most frequent first."
    )
    not_judged_by_outcome: dict[str, int] = Field(description="Candidates without a reply to judge, by outcome.")
    near_test: int = Field(0, description="Valid candidates that are nearly a test question.")
    duplicate: int | None = Field(description="Valid duplicates of another candidate.")
    not_selected: int | None = Field(description="Valid, distinct candidates that were not selected.")
    kept: int | None = Field(description="Candidates that became the variant's pairs.")
    invalid: int | None = Field(description="Candidates that failed a check.")

    @property
    def not_judged(self) -> int:
        """Candidates that could not be judged."""
        return sum(self.not_judged_by_outcome.values())

    @model_serializer
    def counts(self) -> dict[str, int]:
        """The counts by name, in order, without unrecorded ones."""
        missing = self.not_judged_by_outcome
        counts = {
            "candidates": self.candidates,
            "invalid": self.invalid,
            **{f"{_INVALID}{name}": count for name, count in self.invalid_by_check.items()},
            **({"not judged": self.not_judged} if missing else {}),
            **{f"{_NOT_JUDGED}{name}": count for name, count in missing.items()},
            **({"near a test question": self.near_test} if self.near_test else {}),
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
            "near_test": raw.get("near a test question", 0),
            "not_selected": raw.get("not selected"),
            "invalid_by_check": _after(_INVALID, raw),
            "not_judged_by_outcome": _after(_NOT_JUDGED, raw),
        }


def _after(beginning: str, counts: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(beginning): count for name, count in counts.items() if name.startswith(beginning)}
