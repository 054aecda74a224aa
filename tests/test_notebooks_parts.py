"""What the notebooks call beside the stages: the environment's check, requests as they were sent, prices."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from optimsyn.base.environment import QUIET
from optimsyn.base.errors import StageError
from optimsyn.execution import notebook
from optimsyn.llm.replies import Reply, Usage
from optimsyn.study.generator_trial import Price, Prices, Trial
from optimsyn.study.walkthrough import RecordedReplies, Sent


def test_the_environment_is_a_table_of_what_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.setenv(name, "before")
    table = notebook.check_environment()
    assert [row[0] for row in table.rows] == [
        *("Python", "packages", "processors", "memory", "accelerator", "embedded model"),
    ]
    assert "free" not in str(table)
    assert os.environ["TQDM_DISABLE"] == "1"


def test_a_missing_package_stops_the_notebook_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.setenv(name, "before")
    with pytest.raises(StageError, match=r"missing: no-such-package; run `pip install"):
        notebook.check_environment(needs=("no-such-package",))


def test_messages_of_optimsyn_become_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setenv("SOME_API_KEY", "secret-of-mine-1")
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    monkeypatch.setattr(notebook.NotebookText, "show", lambda self, text: shown.append(text))
    log = logging.getLogger("optimsyn")
    before, propagate = list(log.handlers), log.propagate
    try:
        notebook.show_messages()
        notebook.show_messages()
        logging.getLogger("optimsyn.llm.embedded.server").warning("once, with %s", "secret-of-mine-1")
    finally:
        log.handlers, log.propagate = before, propagate
    assert shown == ["once, with [redacted]"]


def test_the_examples_are_found() -> None:
    assert (notebook.examples_folder() / "beekeeping" / "recipe.yaml").is_file()


def test_requests_are_remembered_whether_asked_or_kept(tmp_path: Path) -> None:
    cache = RecordedReplies(tmp_path / "replies.sqlite")
    cache.put("a", Reply(text="yes"), {"messages": []})
    assert cache.seen == [({"messages": []}, "yes")]
    cache.seen.clear()
    assert cache.get("b") is None
    assert cache.get("a") == Reply(text="yes")
    assert cache.seen == [({"messages": []}, "yes")]


def test_a_request_is_shown_as_it_left_and_as_text() -> None:
    request = {
        "messages": [{"role": "user", "content": "Passage: <b>iron</b>"}],
        "schema": {"properties": {"answer": {}, "question": {}}, "required": ["question", "answer"]},
        "temperature": 0.4,
        "max_tokens": 200,
    }
    shown = Sent("A pair", "embedded", request, '{"question": "Why?"}')._repr_html_()
    assert "Passage: &lt;b&gt;iron&lt;/b&gt;" in shown
    assert "held to a JSON schema with question, answer" in shown
    assert "held to a JSON schema:" in Sent("A pair", "m", {**request, "schema": {"anyOf": []}}, "")._repr_html_()
    assert "in free form" in Sent("A pair", "m", {**request, "schema": None}, "")._repr_html_()


def test_prices_are_those_of_the_counted_tokens_and_unknown_ones_are_said() -> None:
    prices = Prices((Price("dear", 2e-6, 1e-5), Price("own", None, None)), 1000, 400.0, 100.0)
    assert prices.cost(prices.rows[0]) == pytest.approx(1000 * (400 * 2e-6 + 100 * 1e-5))
    assert [row[-1] for row in prices.table().rows] == ["1.80 USD", "not known to LiteLLM"]
    assert "dear 1.80" in prices.picture().alt


def test_a_trial_counts_tokens_and_knows_list_prices() -> None:
    usage = Usage(replies=4, input_tokens=2000, output_tokens=400)
    trial = Trial("openai/mine", (("Iron", "Q: Why?\nA: so", "valid"),), 0, usage)
    assert "2,000 tokens in, 400 out" in trial._repr_html_()
    known, unknown = trial.prices(["openai/gpt-5-mini", "nobody/nothing"]).rows
    assert known.token_in is not None
    assert 0 < known.token_in < 1e-4
    assert unknown.token_in is None
