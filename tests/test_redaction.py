"""Secrets are found by the name of their variable and taken out wherever they stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimsyn.redaction import redact, redact_tree, secret_values


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "MY_APIKEY", "OPTIMSYN_EMBEDDED_KEY"]
)
def test_names_of_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "value-of-it-1234")
    assert "value-of-it-1234" in secret_values()
    assert redact("it is value-of-it-1234!") == "it is [redacted]!"


@pytest.mark.parametrize("name", ["SSL_KEY_FILE", "KEYBOARD_LAYOUT", "TOKENIZERS_PARALLELISM", "MONKEY_BUSINESS"])
def test_names_that_only_look_like_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "value-of-it-1234")
    assert redact("value-of-it-1234") == "value-of-it-1234"
    assert redact("value-of-it-1234", [name]) == "[redacted]"


def test_a_secret_inside_another_leaves_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "abcdefgh")
    monkeypatch.setenv("B_KEY", "abcdefgh-ijkl")
    assert redact("abcdefgh-ijkl abcdefgh") == "[redacted] [redacted]"


def test_placeholders_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_API_KEY", "EMPTY")
    assert redact("EMPTY reply") == "EMPTY reply"
    assert redact("a short one", extra_values=["sh"]) == "a short one"


trees = st.recursive(
    st.text(max_size=5) | st.integers() | st.none() | st.just("x SECRETSECRET y"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(trees)
def test_no_string_of_a_tree_keeps_a_secret(tree: object) -> None:
    clean = redact_tree(tree, ["SECRETSECRET"])
    assert "SECRETSECRET" not in repr(clean)
    assert repr(clean) == repr(tree).replace("SECRETSECRET", "[redacted]")
