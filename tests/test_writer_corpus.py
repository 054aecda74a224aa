"""The seed corpus of the writer and its held-out rubrics keep their rules; the forms know pairs of other hands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

from writer_forms import FORMS, Written  # noqa: E402

PASSAGE = (
    "Lock 4 was closed on 3 May 1911 because its lower gate had cracked. The tenant shall keep the banks in repair."
)

ABROAD = "Die Schleuse wurde am 3. Mai 1911 geschlossen. 수문은 1911년 5월 3일에 닫혔고, 세입자는 둑을 고쳐야 한다."


@pytest.mark.parametrize("script", ["check_writer_corpus.py", "check_writer_wishes.py"])
def test_no_fault_is_found(script: str) -> None:
    done = subprocess.run([sys.executable, str(TOOLS / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("form", "question", "answer", "options", "right"),
    [
        ("figure", "Which lock was closed?", "Lock 4", (), True),
        ("figure", "When was it closed?", "1911", (), False),
        ("name", "Who keeps the banks in repair?", "the tenant", (), True),
        ("name", "Is it closed?", "yes", (), False),
        ("date", "When was lock 4 closed?", "3 May 1911", (), True),
        ("date", "Why was it closed?", "a cracked gate", (), False),
        ("cause", "Why was lock 4 closed?", "its lower gate had cracked", (), True),
        ("cause", "Who closed lock 4?", "its lower gate had cracked", (), False),
        ("definition", "What is a lock?", "a chamber between two gates", (), True),
        ("definition", "What is a lock?", "a chamber", (), False),
        ("comparison", "Which gate is older than the other?", "the lower one", (), True),
        ("comparison", "Which gate cracked?", "the lower one", (), False),
        ("list", "Which gates are there?", "an upper and a lower one", (), True),
        ("list", "Which gate cracked?", "the lower one", (), False),
        ("verdict", "Was lock 4 closed?", "Maybe: one source alone says so", (), True),
        ("verdict", "Who knows?", "nobody", (), False),
        ("clause", "What must the tenant do?", "shall keep the banks in repair", (), True),
        ("clause", "What must the tenant do?", "has to mend the banks at once", (), False),
        ("options", "Which lock?", "4", ("1", "2", "3", "4"), True),
        ("options", "Which lock?", "4", ("1", "2", "3", "3"), False),
        ("explanation", "Why?", "The lower gate had cracked badly. So nobody could fill lock 4.", (), True),
        ("explanation", "Why?", "The lower gate had cracked badly at 3.5 m, so nobody could fill it.", (), False),
    ],
)
def test_a_form_knows_its_pairs(
    form: str, question: str, answer: str, options: tuple[str, ...], *, right: bool
) -> None:
    assert FORMS[form](Written(PASSAGE, question, answer, options)) is right


@pytest.mark.parametrize(
    ("form", "question", "answer", "right"),
    [
        ("date", "Wann wurde sie geschlossen?", "am dritten Mai", True),
        ("date", "수문은 언제 닫혔는가?", "5월 3일", True),
        ("date", "수문은 왜 닫혔는가?", "문이 갈라져서", False),
        ("figure", "Wie viele Tore gibt es?", "zwei", True),
        ("figure", "문은 몇 개인가?", "두 개", True),
        ("figure", "누가 고치는가?", "세입자", False),
        ("cause", "Weshalb wurde sie geschlossen?", "wegen eines gerissenen Tores", True),
        ("cause", "수문을 왜 닫았는가?", "아래 문이 갈라졌기 때문이다", True),
        ("cause", "수문을 누가 닫았는가?", "아래 마을의 관리인이 닫았다", False),
        ("definition", "Was bedeutet Schleuse?", "eine Kammer zwischen zwei Toren", True),
        ("definition", "수문이란 무엇인가?", "물을 막고 트는 문", True),
        ("comparison", "Welches Tor ist älter als das andere?", "das untere", True),
        ("comparison", "어느 문이 다른 문보다 오래되었는가?", "아래 문", True),
        ("list", "Welche Tore gibt es?", "ein oberes und ein unteres", True),
        ("list", "어떤 문이 있는가?", "위 문과 아래 문", True),
        ("list", "어느 문이 갈라졌는가?", "아래 문", False),
        ("verdict", "War sie offen?", "Nein, geschlossen", True),
        ("verdict", "닫혔는가?", "알 수 없음", True),
        ("verdict", "Was war?", "Jahrelang nichts", False),
        ("clause", "세입자는 무엇을 해야 하는가?", "세입자는 둑을 고쳐야 한다", True),
        ("clause", "세입자는 무엇을 해야 하는가?", "세입자는 둑을 모두 고쳐야 한다", False),
        ("name", "Wer schloss sie?", "Dr. Elke Brandt", True),
        ("explanation", "Warum?", "Am 3. Mai riss das untere Tor der Schleuse auf zwei Metern.", False),
        ("explanation", "왜 닫았는가?", "아래 문이 크게 갈라져 물이 샜다. 그래서 아무도 배를 띄울 수 없었다.", True),
    ],
)
def test_a_form_knows_german_and_korean_pairs(form: str, question: str, answer: str, *, right: bool) -> None:
    assert FORMS[form](Written(ABROAD, question, answer)) is right
