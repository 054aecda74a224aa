"""A disk that takes nothing more: buying stops at once, and what was paid for is kept and found again."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_helpers import KEY, Answer, Service, refused, said, service

from optimsyn.base.errors import DataError
from optimsyn.base.event_loops import REQUESTS
from optimsyn.llm import replies, reply_file
from optimsyn.llm.disk_reserve import LEAST_BYTES, Reserve
from optimsyn.llm.dspy_bridge import make_lm
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.hosted import failures
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.replies import Reply, ReplyCache
from optimsyn.recipe.recipe import ModelSpec

LONG = "word " * 400
CONCURRENCY = 4


@pytest.fixture
def served() -> Iterator[Service]:
    with service() as running:
        running.answer = lambda number, request: Answer(
            body=said(request["messages"][0]["content"] + LONG).body, delay_s=0.02
        )
        yield running


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(replies, "PATIENCE_S", 0.2)
    monkeypatch.setenv("LOCAL_SERVICE_KEY", KEY)


def model(base: str, cache: ReplyCache, name: str = "openai/some-model", **spec: Any) -> LanguageModel:
    values = {"name": name, "api_base": base, "api_key_env": "LOCAL_SERVICE_KEY", "retries": 2}
    return load_language_model(ModelSpec.model_validate({**values, "concurrency": CONCURRENCY, **spec}), cache)


def calls(count: int) -> list[Call]:
    return [Call.of(f"call {index}") for index in range(count)]


async def ask(models: list[LanguageModel], count: int) -> list[Reply | BaseException]:
    return await asyncio.gather(
        *(one.complete(call) for one in models for call in calls(count)), return_exceptions=True
    )


def fill(cache: ReplyCache, pages: int) -> None:
    """SQLite itself says that the disk is full from so many more pages on."""
    now = cache.db.execute("PRAGMA page_count").fetchone()[0]
    cache.db.execute(f"PRAGMA max_page_count = {now + pages}")


def asked(state: Service) -> Counter[str]:
    return Counter(request["model"] + request["messages"][0]["content"] for request in state.requests)


async def test_a_full_disk_stops_every_model_and_loses_nothing(served: Service, tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    fill(cache, 10)
    both = [model(served.base, cache), model(served.base, cache, "openai/another")]
    found = await ask(both, 32)
    answered = [reply for reply in found if isinstance(reply, Reply)]
    errors = [error for error in found if isinstance(error, BaseException)]
    assert 0 < len(answered) < 64
    assert {type(error) for error in errors} == {DataError}
    said_what = str(errors[0])
    assert "replies.sqlite: cannot write a reply that was bought (database or disk is full; " in said_what
    assert "are free on its file system" in said_what
    assert "run the same command again" in said_what
    assert all(one.failure is not None for one in both)
    # The requests that were under way, of both models, and none after them.
    assert len(served.requests) <= len(answered) + 2 * CONCURRENCY
    assert cache.totals().replies == len(served.requests)
    cache.close()

    again = ReplyCache(tmp_path / "replies.sqlite")
    assert again.totals().replies == len(served.requests)
    whole = await ask([model(served.base, again), model(served.base, again, "openai/another")], 32)
    assert all(isinstance(reply, Reply) for reply in whole)
    assert set(asked(served).values()) == {1}
    assert len(served.requests) == 64


async def test_no_other_process_buys_while_replies_lie_beside_the_file(served: Service, tmp_path: Path) -> None:
    first, other = (ReplyCache(tmp_path / "replies.sqlite") for _ in range(2))
    await model(served.base, other).complete(Call.of("before"))
    fill(first, 0)
    with pytest.raises(DataError):
        await ask_until_it_fails(model(served.base, first))
    sent = len(served.requests)
    # What another process sees; its own file handle could well write.
    with pytest.raises(DataError, match="an earlier one could not be written"):
        await model(served.base, other, "openai/another").complete(Call.of("after"))
    assert len(served.requests) == sent
    # The next attempt reads them back, in whatever process.
    other.mended()
    assert other.totals().replies == sent
    await model(served.base, other).complete(Call.of("after"))


async def ask_until_it_fails(one: LanguageModel) -> None:
    for call in calls(100):
        await one.complete(call)


async def test_a_request_that_waits_for_its_next_try_is_not_sent(
    served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 1.0)
    served.answer = lambda number, request: refused(500, "later") if number == 0 else said("fine " + LONG)
    cache = ReplyCache(tmp_path / "replies.sqlite")
    fill(cache, 0)
    found = await ask([model(served.base, cache, retries=5)], 3)
    assert {type(error) for error in found if isinstance(error, BaseException)} == {DataError}
    assert set(asked(served).values()) == {1}


async def test_a_file_that_another_program_holds(
    served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply_file, "BUSY_S", 0.3)
    cache = ReplyCache(tmp_path / "replies.sqlite")
    other = sqlite3.connect(tmp_path / "replies.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    found = await ask([model(served.base, cache)], 16)
    assert "database is locked: another program has held it" in str(found[0])
    assert len(served.requests) <= CONCURRENCY
    sent = len(served.requests)
    other.execute("ROLLBACK")
    cache.mended()
    assert cache.totals().replies == sent
    assert all(isinstance(reply, Reply) for reply in await ask([model(served.base, cache)], 16))
    assert len(served.requests) == 16


async def test_dspy_hands_the_error_on(served: Service, tmp_path: Path) -> None:
    import dspy

    cache = ReplyCache(tmp_path / "replies.sqlite")
    fill(cache, 0)
    served.answer = lambda number, request: said("[[ ## answer ## ]]\n" + LONG)
    one = model(served.base, cache)
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=make_lm(one)), pytest.raises(DataError, match="cannot write a reply") as caught:
        for index in range(20):
            await program.acall(question=f"what {index}?")
    assert type(caught.value).__name__ == "DataError"
    assert isinstance(one.failure, DataError)


async def test_without_room_for_the_reserve_nothing_is_sent(
    served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(descriptor: int, begin: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("optimsyn.llm.disk_reserve.allocate", full)
    with pytest.raises(
        DataError, match=r"replies\.reserve: cannot write the space set aside for replies \(No space left on device"
    ):
        await model(served.base, ReplyCache(tmp_path / "replies.sqlite")).complete(Call.of("Hello"))
    assert served.requests == []


async def test_a_reply_that_found_no_place_is_told_as_lost(
    served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    fill(cache, 0)
    monkeypatch.setattr(Reserve, "keep", lambda self, line: False)
    found = await ask([model(served.base, cache)], 12)
    errors = [str(error) for error in found if isinstance(error, BaseException)]
    assert any("it is lost" in error for error in errors)
    assert len(served.requests) <= len(found) - len(errors) + CONCURRENCY


def test_what_another_process_keeps_in_the_reserve_is_whole(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "r.reserve")
    reserve.ours = True
    reserve.prepare()
    size = reserve.path.stat().st_size
    assert size >= LEAST_BYTES
    assert reserve.waits()
    lines = [[f"{thread} {index} ".encode() * 50 for index in range(40)] for thread in range(4)]
    threads = [threading.Thread(target=lambda mine=mine: [reserve.keep(line) for line in mine]) for mine in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = sorted(line for mine in lines for line in mine)
    assert not reserve.waits()
    assert sorted(Reserve(reserve.path).lines()) == every
    assert not reserve.keep(b"x" * size)
    reserve.release()
    assert reserve.path.stat().st_size == sum(len(line) + 1 for line in every), "what waits in it is kept, no more"
    reserve.prepare()
    assert sorted(reserve.lines()) == every
    assert not reserve.waits()
    assert reserve.path.stat().st_size == size
    with reserve.path.open("r+b") as file:
        file.seek(sum(len(line) + 1 for line in every))
        file.write(b"torn by a ki")
    with pytest.raises(ZeroDivisionError), reserve.taken():
        raise ZeroDivisionError
    with reserve.taken() as found:
        assert sorted(found) == every
    assert reserve.waits()
    assert reserve.path.read_bytes() == bytes(size)
    reserve.release()
    assert not reserve.path.exists()


def test_a_file_of_an_earlier_version_gets_its_sums(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    with sqlite3.connect(path) as old:
        old.execute(reply_file.SCHEMA)
        old.execute("CREATE INDEX used ON replies (input_tokens, output_tokens, cost_usd)")
        for index in range(5):
            values = (f"k{index}", Reply(text="a").model_dump_json(), "{}", "m", 10, index, 0.5, 0.0)
            old.execute(reply_file.INSERT, values)
    caches = [ReplyCache(path) for _ in range(2)]
    for number, cache in enumerate(caches):
        cache.put(f"new {number}", Reply(text="b", input_tokens=1, output_tokens=1, cost_usd=0.25), {})
        cache.put("k0", Reply(text="b", input_tokens=99), {})
    for cache in caches:
        used = cache.totals()
        assert (used.replies, used.input_tokens, used.output_tokens, used.cost_usd) == (7, 52, 12, 3.0)
    with sqlite3.connect(path) as hand:
        hand.execute("DELETE FROM replies WHERE key = 'k4'")
    assert caches[0].totals().replies == 6
    assert caches[0].totals().output_tokens == 8


def test_asking_for_sums_reads_one_row(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    plan = cache.db.execute("EXPLAIN QUERY PLAN SELECT replies FROM totals").fetchall()
    assert "totals" in str(plan)
    assert "replies" not in str(plan).replace("totals", "")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of five megabytes, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_disk_that_is_really_full(served: Service, small_disk: Path) -> None:
    served.answer = lambda number, request: Answer(body=said("x" * 40_000 + str(number)).body, delay_s=0.02)
    cache = ReplyCache(small_disk / "run" / "replies.sqlite")
    await model(served.base, cache).complete(Call.of("the first"))
    filler = small_disk / "filler"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(free - 200_000))
    found = await ask([model(served.base, cache)], 32)
    answered = sum(isinstance(reply, Reply) for reply in found)
    assert 0 < answered < 32
    assert "No space left" in str(found[-1]) or "full" in str(found[-1]) or "disk I/O" in str(found[-1])
    sent = len(served.requests)
    assert sent <= answered + 1 + CONCURRENCY
    cache.close()
    # Still full: nothing is sent, nothing forgotten.
    with pytest.raises(DataError):
        await model(served.base, ReplyCache(small_disk / "run" / "replies.sqlite")).complete(Call.of("one more"))
    assert len(served.requests) == sent
    filler.unlink()
    again = ReplyCache(small_disk / "run" / "replies.sqlite")
    assert again.totals().replies == sent
    await ask([model(served.base, again)], 32)
    assert {json.dumps(key): n for key, n in asked(served).items() if n > 1} == {}
    again.close()


async def test_a_halt_lets_what_is_under_way_arrive(served: Service, tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path / "replies.sqlite")
    served.answer = lambda number, request: Answer(body=said(f"late {number}").body, delay_s=0.3)
    task = asyncio.ensure_future(ask([model(served.base, cache)], 12))
    while len(served.requests) < CONCURRENCY:
        await asyncio.sleep(0.01)
    cache.halt("a stage has failed")
    await asyncio.to_thread(REQUESTS.settle, 10.0)
    assert cache.totals().replies == len(served.requests) == CONCURRENCY
    found = await task
    assert sum(isinstance(reply, Reply) for reply in found) == CONCURRENCY
    assert any("because a stage has failed" in str(error) for error in found)
    cache.halt(None)
    assert all(isinstance(reply, Reply) for reply in await ask([model(served.base, cache)], 12))
    assert len(served.requests) == 12


async def test_who_only_looks_leaves_the_reserve_of_who_buys(served: Service, tmp_path: Path) -> None:
    buying = ReplyCache(tmp_path / "replies.sqlite")
    await model(served.base, buying).complete(Call.of("one"))
    looking = ReplyCache(tmp_path / "replies.sqlite")
    assert looking.totals().replies == 1
    looking.close()
    looking.release()
    del looking
    assert (tmp_path / "replies.reserve").is_file()
    buying.release()
    assert not (tmp_path / "replies.reserve").exists()
