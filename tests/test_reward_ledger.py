"""The ledger through its index: what an earlier version wrote, what people edit, what a kill or a full disk leaves."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimize_helpers import PairWriter, make_reward, passages, rubric

from optimsyn.base.errors import DataError
from optimsyn.base.files import append_jsonl, iter_json
from optimsyn.reward.judgements import Judgement, Ledger, content_key, latest_rows
from optimsyn.reward.reward import RubricRequest

HOSTILE = [
    "plain",
    'say "identity": "x", "batch_row": 0, "batch_rows": 1}',
    "naïve \u2028 line\nbreak",
    '\\"identity": "y',
]


def requests(count: int, kind: str = "mechanism", start: int = 0) -> list[RubricRequest]:
    return [
        RubricRequest(passage=passage, kind="free", rubric=rubric(kind), seed=start + i, variant="t")
        for i, passage in enumerate(passages(count))
    ]


def judge(reward: Any, what: list[RubricRequest]) -> list[Judgement]:
    return asyncio.run(reward.judge(what))


def row(number: int, text: str = "plain", **more: Any) -> Judgement:
    fields: dict[str, Any] = {"identity": "mine", "scorer": "s", "valid": False, "reward": float(number)}
    return Judgement(
        key=f"key {number}", passage_id=f"p{number}", kind="free", guiding_text=text, feedback=text, **(fields | more)
    )


def earlier(path: Path, batches: list[list[Judgement]]) -> None:
    """As the version without an index wrote it."""
    for batch in batches:
        rows = [
            {**one.model_dump(mode="json"), "batch_row": i, "batch_rows": len(batch)} for i, one in enumerate(batch)
        ]
        append_jsonl(path, rows)


@given(
    st.lists(st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=4), min_size=1, max_size=6),
    st.booleans(),
    st.integers(0, 60),
)
@settings(max_examples=40, deadline=None)
def test_an_earlier_ledger_is_found_whole(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]], compact: bool, torn: int
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "rewards.jsonl"
    numbers = iter(range(1000))
    batches = [
        [row(next(numbers), text, identity="mine" if len(batch) % 2 else "x") for text in batch] for batch in texts
    ]
    earlier(path, batches)
    if compact:  # another program's way of writing the same
        path.write_text("".join(json.dumps(raw, separators=(",", ":")) + "\n" for raw in iter_json(path)))
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(whole[:torn].split(b"\n")[0])
    ledger = Ledger(path)
    rows = [one for batch in batches for one in batch]
    assert [ledger.get(one.key, one.identity) for one in rows] == rows
    assert ledger.get(rows[0].key, "another") is None
    assert ledger.count() == len(rows)
    assert ledger.count("mine") == sum(one.identity == "mine" for one in rows)
    more = row(2000, HOSTILE[1])
    ledger.append([more])
    assert path.read_bytes().startswith(whole)
    assert Ledger(path).get(more.key, "mine") == more
    assert len(list(iter_json(path))) == len(rows) + 1


def test_what_a_kill_leaves_between_ledger_and_index_is_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "rewards.jsonl"
    Ledger(path).append([row(0), row(1)])
    earlier(path, [[row(2)], [row(3), row(4)]])
    path.write_bytes(path.read_bytes()[:-20])
    ledger = Ledger(path)
    assert ledger.count() == 3
    ledger.append([row(5)])
    assert [raw["key"] for raw in iter_json(path)] == [f"key {i}" for i in (0, 1, 2, 5)]
    assert Ledger(path).get("key 5", "mine") == row(5)


def test_an_edited_ledger_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "rewards.jsonl"
    Ledger(path).append([row(0), row(1), row(2)])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0].replace("plain", "PLAIN") + lines[1] + lines[2])
    assert Ledger(path).get("key 0", "mine").guiding_text == "PLAIN"  # type: ignore[union-attr]
    path.write_text(lines[0] + lines[2])
    assert Ledger(path).get("key 1", "mine") is None
    assert Ledger(path).get("key 2", "mine") == row(2)
    path.unlink()
    assert Ledger(path).count() == 0
    Ledger(path).append([row(7)])
    assert Ledger(path).count() == 1


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 50])
def test_an_index_that_is_broken_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rewards.jsonl"
    Ledger(path).append([row(0), row(1)])
    for file in tmp_path.glob("rewards.index*"):
        file.unlink()
    (tmp_path / "rewards.index").write_bytes(content)
    assert Ledger(path).get("key 1", "mine") == row(1)


def test_two_that_write_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "rewards.jsonl"
    one, other = Ledger(path), Ledger(path)
    one.append([row(0)])
    other.append([row(1)])
    one.append([row(2)])
    assert [raw["key"] for raw in iter_json(path)] == ["key 0", "key 1", "key 2"]
    assert one.get("key 1", "mine") == row(1)


def test_equal_contents_of_an_earlier_ledger_are_not_scored_again(tmp_path: Path) -> None:
    path = tmp_path / "rewards.jsonl"
    first = judge(make_reward(tmp_path / "made.jsonl"), requests(5))
    earlier(path, [first])
    reward = make_reward(path, invalid_penalty=0.5)
    rows = judge(reward, requests(5))
    assert reward.scorer.calls == []
    assert [one.influence for one in rows] == [one.influence for one in first]
    assert reward.passed_over == 5


def test_lines_of_equal_content_answer_with_the_last(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "rewards.jsonl")
    pair = judge(make_reward(), requests(1))[0].pair
    assert pair is not None
    for number in range(3):
        ledger.append([row(number, valid=True, pair=pair, influence=float(number))])
    found = ledger.scored(content_key(pair), "s")
    assert found is not None
    assert found.influence == 2.0
    assert ledger.scored(content_key(pair), "another") is None
    assert ledger.valid_pairs("mine", "s") == [pair] * 3
    assert ledger.valid_pairs("mine", "s", last=2) == [pair] * 2
    assert ledger.valid_pairs("mine", "another") == []


def test_feedback_is_that_of_all_that_was_given_out() -> None:
    reward = make_reward(invalid_penalty=0.3)
    for number, kind in enumerate(["quantity", "mechanism", "definition", "forbidden", "quantity"]):
        judge(reward, requests(3, kind, 10 * number))
    for one in reward.answered:
        peers = [peer for peer in reward.answered if peer.passage_id == one.passage_id and peer.key != one.key]
        best = max(peers, key=lambda peer: (peer.reward, peer.key))
        worst = min(peers, key=lambda peer: (peer.reward, peer.key))
        text = reward.feedback(one)
        assert ("Better for the same passage" in text) == (best.reward > one.reward)
        assert ("Worse for the same passage" in text) == (worst.reward < one.reward)
        if best.reward > one.reward:
            assert f"Better for the same passage: reward {best.reward:+.4f}, question type" in text


def test_a_full_disk_leaves_no_half_batch_and_no_pair_is_bought_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rewards.jsonl"
    writer = PairWriter()
    reward = make_reward(path, writer=writer)
    judge(reward, requests(3))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"rewards\.jsonl: cannot write judgements \(No space left on device; .* free"):
        judge(reward, requests(3, "quantity"))
    assert path.read_bytes() == before
    bought = len(writer.written)
    with pytest.raises(DataError, match="cannot write judgements"):
        judge(reward, requests(3, "comparison"))
    assert len(writer.written) == bought
    monkeypatch.undo()
    again = make_reward(path, writer=writer)
    assert len(judge(again, [*requests(3), *requests(3, "quantity")])) == 6
    assert len(list(iter_json(path))) == 6


def test_a_ledger_without_room_for_its_index_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rewards.jsonl"
    earlier(path, [[row(0)]])

    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(DataError, match=r"rewards\.index: cannot write the index of judgements \(database or disk is"):
        Ledger(path)


def test_only_rows_of_the_last_identity_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "rewards.jsonl"
    assert list(latest_rows(path)) == []
    earlier(path, [[row(0), row(1, identity="x")], [row(2)]])
    with path.open("a") as file:
        file.write('{"key": "torn')
    assert [raw["key"] for raw in latest_rows(path)] == ["key 0", "key 2"]
