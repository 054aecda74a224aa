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


@pytest.mark.parametrize("script", ["check_writer_corpus.py", "check_writer_held_out.py"])
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
