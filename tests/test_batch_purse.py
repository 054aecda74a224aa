"""The shared caps of a batch: exact over threads and processes, and nothing is lost with a killed process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimsyn.base.environment import PURSE
from optimsyn.base.errors import BudgetError
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.language_model import Call
from optimsyn.llm.replies import Budget, Reply, ReplyCache, Usage
from optimsyn.llm.shared_budget import Caps, Purse
from optimsyn.recipe.recipe import ModelSpec

# Buys until the batch's cap stops it; each request may use 10 tokens and uses some of them.
BUYER = """
import sys
from pathlib import Path
from optimsyn.base.errors import BudgetError
from optimsyn.llm.shared_budget import Purse
from optimsyn.llm.replies import Budget, Reply, ReplyCache, Usage
cache = ReplyCache(sys.argv[1])
budget = Budget(cache, purse=Purse.from_environment())
number = 0
try:
    while True:
        with budget.reserved(Usage(replies=1, input_tokens=10, cost_usd=0.01)):
            cache.put(f"k{number}", Reply(text="x", input_tokens=4, output_tokens=number % 6, cost_usd=0.01), {})
        number += 1
except BudgetError as error:
    print(error)
"""


def _buyer(purse: Path, cache: Path, code: str = BUYER) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(cache)],
        env={**os.environ, PURSE: str(purse)},
        stdout=subprocess.PIPE,
        text=True,
    )


def _counted(requests: int = 0, tokens: int = 0, cost_usd: float = 0.0) -> Usage:
    return Usage(replies=requests, input_tokens=tokens, cost_usd=cost_usd)


def _most(tokens: int, usd: float | None = None) -> Usage:
    """What one request may use and cost."""
    return Usage(replies=1, input_tokens=tokens, cost_usd=usd or 0.0, unpriced=usd is None)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cap=st.integers(1, 400),
    requests=st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=40),
    runs=st.integers(1, 4),
)
def test_tokens_never_pass_the_cap_whatever_the_threads_do(
    tmp_path_factory: pytest.TempPathFactory, cap: int, requests: list[tuple[int, float]], runs: int
) -> None:
    folder = tmp_path_factory.mktemp("purse")
    purse = Purse.create(folder / "purse.sqlite", Caps(tokens=cap))
    caches = [ReplyCache(folder / f"r{run}.sqlite") for run in range(runs)]
    budgets = [Budget(cache, purse=Purse(purse.path)) for cache in caches]
    together: list[int] = []
    lock = threading.Lock()
    bought = 0

    def buy(number: int) -> bool:
        nonlocal bought
        most, share = requests[number]
        used = round(most * share)
        try:
            with budgets[number % runs].reserved(_most(most)):
                with lock:
                    bought += used
                    together.append(bought)
                caches[number % runs].put(f"k{number}", Reply(text="", input_tokens=used), {})
        except BudgetError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(buy, range(len(requests))))
    assert max(together, default=0) <= cap
    assert purse.bought().replies == sum(done)
    assert purse.bought().tokens == sum(cache.totals().tokens for cache in caches) <= cap
    assert purse.under_way() == Usage()


def test_processes_together_stop_exactly_at_the_cap(tmp_path: Path) -> None:
    purse = Purse.create(tmp_path / "purse.sqlite", Caps(requests=60))
    children = [_buyer(purse.path, tmp_path / f"r{number}.sqlite") for number in range(3)]
    said = [child.communicate()[0] for child in children]
    assert purse.bought().replies == 60
    assert sum(ReplyCache(tmp_path / f"r{number}.sqlite").totals().replies for number in range(3)) == 60
    assert all("the batch's cap of 60 requests is reached" in text and "raise --requests" in text for text in said)


def test_money_of_known_price_never_passes_the_cap(tmp_path: Path) -> None:
    purse = Purse.create(tmp_path / "purse.sqlite", Caps(cost_usd=0.305))
    purse.count("earlier", _counted(3, 90, 0.1))
    child = _buyer(purse.path, tmp_path / "r.sqlite")
    said = child.communicate()[0]
    assert purse.bought().cost_usd == pytest.approx(0.30)
    assert "--cost-usd: the batch's cap of 0.305 US dollars is reached (0.3 are spent by all its runs" in said


def test_free_requests_pass_a_spent_cap_on_money_and_unknown_prices_do_not(tmp_path: Path) -> None:
    purse = Purse.create(tmp_path / "purse.sqlite", Caps(cost_usd=1))
    with purse.reserved("a", _most(5, None), _counted), purse.reserved("b", _most(5, 0.9), _counted):
        pass
    purse.count("a", _counted(1, 5, 1.0))
    with purse.reserved("a", _most(5, 0.0), lambda: _counted(2, 10, 1.0)):
        pass
    for price in (None, 1e-6):
        with pytest.raises(BudgetError, match=r"--cost-usd"), purse.reserved("b", _most(5, price), _counted):
            pass


def test_what_a_killed_process_had_reserved_is_free_again(tmp_path: Path) -> None:
    purse = Purse.create(tmp_path / "purse.sqlite", Caps(tokens=100))
    code = (
        "import os, signal, sys\nfrom optimsyn.llm.shared_budget import Purse\nfrom optimsyn.llm.replies import Usage\n"
        "purse = Purse.from_environment()\nwith purse.reserved('killed', Usage(replies=1, input_tokens=90), Usage):\n"
        "    print('reserved', flush=True)\n    sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, PURSE: str(purse.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "reserved\n"
    with pytest.raises(BudgetError, match=r"--tokens"), purse.reserved("other", _most(20, 0.0), _counted):
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert purse.under_way().tokens == 90
    with purse.reserved("other", _most(20, 0.0), lambda: _counted(1, 15)):
        assert purse.under_way() == _counted(1, 20, 0.0)
    assert purse.bought() == _counted(1, 15, 0.0)


def test_an_ended_run_holds_nothing_and_counts_what_its_cache_holds(tmp_path: Path) -> None:
    purse = Purse.create(tmp_path / "purse.sqlite", Caps(requests=3))
    waiting = purse.reserved("run", _most(10, None), _counted)
    waiting.__enter__()
    purse.count("run", _counted(2, 30, 0.5))
    assert purse.under_way() == Usage()
    assert purse.bought() == _counted(2, 30, 0.5)
    with purse.reserved("run", _most(1, None), lambda: _counted(3, 40, 0.6)):
        pass
    with pytest.raises(BudgetError, match="3 were answered"), purse.reserved("run", _most(1, None), _counted):
        pass
    waiting.__exit__(None, None, None)


def test_a_failed_request_costs_nothing(tmp_path: Path) -> None:
    purse = Purse.create(tmp_path / "purse.sqlite", Caps(requests=1))
    cache = ReplyCache(tmp_path / "r.sqlite")
    budget = Budget(cache, purse=purse)
    with pytest.raises(OSError, match="lost"), budget.reserved(_most(5)):
        raise OSError("lost")
    with budget.reserved(_most(5)):
        cache.put("k", Reply(text="", input_tokens=1), {})
    assert purse.bought().replies == 1


def test_a_process_whose_batch_has_ended_buys_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Purse.from_environment() is None
    monkeypatch.setenv(PURSE, str(tmp_path / "gone.sqlite"))
    with pytest.raises(BudgetError, match=r"gone\.sqlite: the batch whose caps hold here has ended"):
        Purse.from_environment()


def test_a_new_purse_replaces_an_old_one(tmp_path: Path) -> None:
    old = Purse.create(tmp_path / "purse.sqlite", Caps(requests=1))
    old.count("run", _counted(1))
    new = Purse.create(tmp_path / "purse.sqlite", Caps(requests=2))
    assert new.bought() == Usage()


@pytest.mark.parametrize(
    ("name", "price"),
    [("openai/gpt-4o-mini", 100 * 0.15e-6 + 50 * 0.6e-6), ("openai/no-such-model", None), ("embedded", 0.0)],
)
def test_what_a_call_can_cost_is_known_before(name: str, price: float | None) -> None:
    model = load_language_model(ModelSpec(name=name))
    found = model.highest_price(100, 50)
    assert found == (None if price is None else pytest.approx(price))


def test_the_room_of_a_call_covers_prompt_and_reply(tmp_path: Path) -> None:
    purse = Purse.create(tmp_path / "purse.sqlite", Caps(tokens=1000))
    budget = Budget(ReplyCache(tmp_path / "r.sqlite"), purse=purse)
    model = load_language_model(ModelSpec(name="openai/gpt-4o-mini", max_tokens=50))
    with model.reserved(budget, Call.of("x" * 200)):
        held = purse.under_way()
    assert (held.replies, held.input_tokens, held.output_tokens) == (1, 100, 50)
    assert held.cost_usd > 0
