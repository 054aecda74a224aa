"""Secrets are found by the name of their variable and taken out wherever they stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimsyn.redaction import find_secret, looks_like_key, redact, redact_tree, secret_values


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


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-4f9a8b7c6d5e4f3a2b1c",
        "sk-ant-api03-AbCdEfGhIjKlMnOp",
        "hf_AbCdEfGhIjKlMnOpQrSt",
        "github_pat_11ABCDEFG0aBcDeFgHiJkL",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.abcdef123456",
    ],
)
def test_what_is_a_key_by_its_shape_is_taken_out_wherever_it_came_from(key: str) -> None:
    assert looks_like_key(key)
    assert redact(f"401: key '{key}' is wrong") == "401: key '[redacted]' is wrong"
    assert redact_tree({"a": [key, {key: 1}]}, []) == {"a": ["[redacted]", {"[redacted]": 1}]}


@pytest.mark.parametrize(
    "text",
    [
        "openai/gpt-5-mini",
        "sk-learn-tutorial-for-beginners",
        "unsloth/Mistral-Small-24B-Instruct-2501-reasoning-GGUF",
        "/home/me/models/OpenOrcaPlatypus2Mistral7BInstruct",
        "Write criteria for one question that a specialist would ask to test a colleague.",
        "http://localhost:8000/v1",
        "task-0123456789abcdef",
    ],
)
def test_what_is_no_key(text: str) -> None:
    assert not looks_like_key(text)
    assert redact(text) == text
    assert find_secret({"name": text}) is None


def test_a_secret_is_found_by_place_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE_TOKEN", "correct-horse-battery")
    key = "sk-proj-4f9a8b7c6d5e4f3a2b1c"
    found = {
        "models.generator.name looks like a key": {"models": {"generator": {"name": key}}},
        "words[1] looks like a key": {"words": ["a", key]},
        "a field name in columns looks like a key": {"columns": {key: "x"}},
        "base is an address with a password or a key in it": {"base": "https://me:pass@host/v1"},
        "url is an address with a password or a key in it": {"url": "https://host/v1?api_key=abcd"},
        "note holds the value of the environment variable MINE_TOKEN": {"note": "use correct-horse-battery"},
    }
    for message, tree in found.items():
        assert find_secret(tree) == message
    commit = "c1899de289a04d12100db370d81485cdf75e47ca"
    assert find_secret({"source": {"revision": commit}}) is None
    assert find_secret({"source": {"hub": commit}}) is None
    assert find_secret({"source": {"token": commit}}) == "source.token is named like a key"


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
