"""Which words of an answer bring its influence: what `synthesize/token_shares.json` holds."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from optimsyn.base.errors import DataError
from optimsyn.base.files import write_text
from optimsyn.data.records import Record
from optimsyn.recipe.problems import in_a_line

SHARES_FILE = "token_shares.json"


class TokenPiece(Record):
    """A piece of an answer's text and the influence of the label tokens that it is made of.

    Attributes:
        text: The piece, with the blank before it. All pieces of an answer joined are its text, exactly.
        shares: A share for each token: one, unless a letter of several bytes is split over tokens.
        end: It marks the end of the answer and has no text.
    """

    text: str
    shares: tuple[float, ...]
    end: bool = False

    @property
    def share(self) -> float:
        """What the piece brings in all."""
        return math.fsum(self.shares)


class PairShares(Record):
    """One pair and how its influence is shared out among its label tokens.

    Attributes:
        choices: What its form shows below the question, such as options.
        remainder: Influence less all shares: what momentum alone contributes, 0 (but for rounding) without momentum.
        pieces: The answer, then the end marker where the target learns one.
    """

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] | None = None
    influence: float
    remainder: float
    pieces: tuple[TokenPiece, ...]


class TokenShares(Record):
    """The best and the worst pairs of a variant with their shares.

    Attributes:
        estimator: How the influence was computed, such as `adam_linear, dot`.
        reason: Why there are none; "" when there are.
        pairs: Highest influence first.
    """

    variant: str
    estimator: str
    reason: str = ""
    pairs: tuple[PairShares, ...] = ()

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> TokenShares:
        """Reads the file."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DataError(f"{path}: {in_a_line(error)}; delete the file") from error
