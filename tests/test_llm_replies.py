"""The reply cache and the budget."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimsyn.base.errors import BudgetError, DataError
from optimsyn.llm.replies import Budget, Reply, ReplyCache, Usage
from optimsyn.recipe.sections.limits import Limits


def reply(text: str = "a", **values: object) -> Reply:
    return Reply.model_validate({"text": text, "input_tokens": 5, "output_tokens": 2, "cost_usd": 0.25, **values})


def test_a_reply_comes_back_as_it_went_in_also_after_reopening(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "deep" / "replies.sqlite")
    kept = reply("naïve \u2028 \x00 text", finish_reason="length", seconds=0.5, model="m")
    cache.put("k", kept, {"messages": []})
    assert cache.get("k") == kept
    assert cache.get("other") is None
    cache.close()
    assert ReplyCache(tmp_path / "deep" / "replies.sqlite").get("k") == kept


def test_the_first_reply_stays(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "r.sqlite")
    cache.put("k", reply("first"), {})
    cache.put("k", reply("second"), {})
    assert cache.get("k") == reply("first")
    assert cache.totals().replies == 1


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5), st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=8
    )
)
def test_totals_are_the_sums(rows: dict[str, tuple[int, int]]) -> None:
    cache = ReplyCache(":memory:")
    for key, (read, written) in rows.items():
        cache.put(key, reply(input_tokens=read, output_tokens=written), {})
    totals = cache.totals()
    assert totals.replies == len(rows)
    assert totals.tokens == sum(a + b for a, b in rows.values())
    assert totals.cost_usd == pytest.approx(0.25 * len(rows))


def test_a_reply_survives_kill_9_and_other_processes_see_it(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    cache = ReplyCache(path)
    code = (
        "import os, signal, sys; from optimsyn.llm.replies import Reply, ReplyCache\n"
        "cache = ReplyCache(sys.argv[1])\n"
        "for i in range(20): cache.put(f'k{i}', Reply(text=sys.argv[2]), {})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in ("one", "two")]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: cache.put(f"t{i}", reply(), {}), range(40)))
    assert [child.wait() for child in children] == [-9, -9]
    assert cache.totals().replies == 60
    texts = {found.text for i in range(20) if (found := cache.get(f"k{i}"))}
    assert texts <= {"one", "two"}


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    path.write_text("this is not a database, and long enough for SQLite to notice that at once. " * 20)
    with pytest.raises(DataError, match=r"r\.sqlite"):
        ReplyCache(path)


def most(tokens: int) -> Usage:
    """What one request of unknown price may use."""
    return Usage(replies=1, input_tokens=tokens, unpriced=True)


def test_a_budget_counts_what_is_under_way() -> None:
    cache = ReplyCache(":memory:")
    budget = Budget(cache, requests=2, tokens=100)
    with budget.reserved(most(60)):
        with (
            pytest.raises(BudgetError, match=r"limits\.tokens"),
            budget.reserved(most(60)),
        ):
            pass
        with (
            budget.reserved(most(30)),
            pytest.raises(BudgetError, match=r"limits\.requests"),
            budget.reserved(most(1)),
        ):
            pass
    with budget.reserved(most(60)):
        cache.put("k", reply(input_tokens=50, output_tokens=10), {})
    with (
        pytest.raises(BudgetError, match="60 are used"),
        budget.reserved(most(41)),
    ):
        pass
    with budget.reserved(most(40)):
        pass


def test_a_cap_on_money_stops_the_next_request() -> None:
    cache = ReplyCache(":memory:")
    budget = Budget.of(Limits(cost_usd=0.5), cache)
    cache.put("a", reply(), {})
    with budget.reserved(most(10**9)):
        cache.put("b", reply(), {})
    with (
        pytest.raises(BudgetError, match=r"limits\.cost_usd"),
        budget.reserved(most(1)),
    ):
        pass
    with Budget.of(Limits(), cache).reserved(most(10**9)):
        pass
