"""Tests of what a misspelled name is taken for."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from optimsyn.base.suggestions import alike, did_you_mean, file_beside, nearest, nearest_value

_STAGES = ("prepare", "warm_up", "candidates", "synthesize", "evaluate")


def test_the_likest_is_meant_and_nothing_where_none_is_like() -> None:
    assert nearest("synthesise", _STAGES) == "synthesize"
    assert nearest("zzz", _STAGES) is None
    assert nearest("zzz", _STAGES, cutoff=0.0) in _STAGES
    assert alike("opena", {"openai", "openrouter", "xai"}, most=2, cutoff=0.5)[0] == "openai"


@given(st.sampled_from(_STAGES), st.data())
def test_one_letter_left_out_or_doubled_is_found(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    assert nearest(name[:place] + name[place + 1 :], _STAGES) == name
    assert did_you_mean(name[:place] + name[place] + name[place:], _STAGES, "none") == f"did you mean `{name}`?"


def test_only_text_is_taken_for_a_value_of_a_set() -> None:
    assert nearest_value("polcy", ("static", "policy")) == "; did you mean `policy`?"
    assert nearest_value("zzz", ("static", "policy")) == nearest_value(4, ("4bit", "8bit")) == ""


def test_a_file_beside_is_named_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "medicine.yaml").touch()
    (tmp_path / "medicin.txt").touch()
    assert file_beside(tmp_path / "medicin.yaml", "*.y*ml") == f" Did you mean {tmp_path / 'medicine.yaml'}?"
    assert file_beside(tmp_path / "law.yaml", "*.y*ml") == ""
    assert file_beside(tmp_path / "nowhere" / "law.yaml") == ""
