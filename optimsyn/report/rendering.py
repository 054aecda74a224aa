"""Turns templates of this package into HTML: everything is escaped, and no secret gets through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, partial
from html import unescape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from optimsyn.base.secrets.redaction import redact_tree
from optimsyn.base.terminal.labels import VARIANT_COLORS, metric_label, variant_color, variant_label
from optimsyn.base.terminal.table import duration, fixed, number
from optimsyn.report.drawing import Drawing
from optimsyn.report.tables import interval
from optimsyn.runs.outcomes import favourable, judgement, stage_label

_TEMPLATES = Path(__file__).parent / "templates"
# Text between tags, and the text alternative.
_TEXT = re.compile(r'(?<=>)[^<>]+(?=<)|(?<=aria-label=")[^"]+(?=")')


def render(template: str, secrets: Sequence[str] = (), **context: Any) -> str:
    """The HTML of a template in `templates/` with these variables, every value escaped and without these secrets."""
    environment = template_environment().overlay(finalize=lambda value: _shown(value, list(secrets)))
    return environment.get_template(template).render(**context)


def _shown(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, Drawing):
        # Redact only its texts; the rest is numbers that may look like a key.
        return Markup(_TEXT.sub(lambda match: escape(redact_tree(unescape(match[0]), secrets)), value))  # noqa: S704
    # The values inside Markup have been redacted already.
    return redact_tree(value, secrets) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def template_environment() -> Environment:
    """Jinja with the report's templates and filters, without redaction."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "duration": duration,
        "fixed": fixed,
        # Non-breaking spaces: an interval stays on one line.
        "interval": partial(interval, joint="\u00a0"),
        "judgement": judgement,
        "side": lambda row: {True: "better", False: "worse", None: ""}[favourable(row)],
        "metric": metric_label,
        "number": number,
        "stage": stage_label,
        "variant": variant_label,
        "cut": cut,
    }
    environment.globals |= {"variant_colors": VARIANT_COLORS, "variant_color": variant_color}
    return environment


def cut(text: str, limit: int) -> str:
    """A text cut to a number of characters, with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
