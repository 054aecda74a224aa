"""Secrets are found by the name of their variable and taken out wherever they stand."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from optimsyn.base.secrets import spellings as secret_forms
from optimsyn.base.secrets.redaction import (
    find_secret,
    kept,
    kept_tree,
    looks_like_key,
    plain_key_problem,
    redact,
    redact_tree,
    secret_values,
    unasked,
)
from optimsyn.base.secrets.spellings import holds, without
from tests.secret_corpus import FALSE_TEXTS, true_texts


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


def test_a_hundred_texts_with_a_key_and_a_hundred_without() -> None:
    """The corpus of the day: every key is seen, nothing else is; over other draws 999 in 1,000 are."""
    missed = [text for text in true_texts() if find_secret({"description": text}) is None]
    alarms = [text for text in FALSE_TEXTS if find_secret({"description": text}) is not None]
    changed = [text for text in FALSE_TEXTS if redact(text) != text]
    assert (len(true_texts()), len(FALSE_TEXTS)) == (100, 100)
    assert (missed, alarms, changed) == ([], [], [])
    drawn = [find_secret({"description": text}) is not None for seed in range(1, 31) for text in true_texts(seed)]
    assert sum(drawn) >= 0.995 * len(drawn)


@pytest.mark.parametrize("name", ["api_key", "Authorization", "x-api-key", "client_secret", "password"])
def test_a_field_that_is_named_like_a_key_holds_one(name: str) -> None:
    assert find_secret({"extra": {"headers": {name: "whatever it is"}}}) == f"extra.headers.{name} is named like a key"
    assert find_secret({"extra": {name: "EMPTY"}}) is None
    assert find_secret({"extra": {name: "$TEAM_KEY"}}) is None
    assert find_secret({"models": {"generator": {"api_key_env": "TEAM_KEY_2026", "max_tokens": 400}}}) is None


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=1000), min_size=8, max_size=40), st.binary())
def test_no_form_of_a_value_is_kept(value: str, before: bytes) -> None:
    secret = value.strip()
    assume(len(secret) >= 8 and not secret.replace(" ", "").isalpha() and not secret.isdigit())
    said = [secret, json.dumps(secret), json.dumps(secret, ensure_ascii=False), quote(secret), quote_plus(secret)]
    said += [quote(secret, safe=""), repr(secret), html.escape(secret), secret.encode().hex()]
    for text in said:
        assert without(text, [secret], "·") != text
        assert not holds(without(text, [secret], "·"), secret)
    written = base64.b64encode(before + secret.encode() + b"xyz").decode()
    assert without(written, [secret], "·") != written
    assert without(base64.urlsafe_b64encode(before + secret.encode()).decode(), [secret], "·").count("·") >= 1


# All that a key of these kinds has is letters of base64, so that a large picture may hold one by chance.
_IN_BASE64 = ["AIza" + "a" * 40, "b" * 50 + "AzSeabc", "AKIA" + "A" * 16 + "/", "LTAI" + "a" * 15 + "+"]


@pytest.mark.parametrize("key", _IN_BASE64)
def test_a_picture_stays_whole(key: str) -> None:
    assert redact(f"it is {key}") != f"it is {key}"
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n\x00" + bytes(range(256)) * 3).decode()
    picture += f"/{key}{picture[8:]}"
    assert redact_tree({"image/png": picture}, []) == {"image/png": picture}
    assert redact(f"data:image/png;base64,{picture}") == f"data:image/png;base64,{picture}"
    assert redact(f'<img src="data:image/png;base64,{picture}"> {key}') == (
        f'<img src="data:image/png;base64,{picture}"> [redacted]' + key[-1] * (key[-1] in "/+")
    )


def test_a_key_that_is_joined_to_a_picture_is_taken_out() -> None:
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n\x00" + bytes(range(256)) * 3).decode()
    assert redact(f"{picture}/sk-proj-4f9a8b7c6d5e4f3a2b1c") == f"{picture}/[redacted]"
    assert redact(f"{picture}\nsk-proj-4f9a8b7c6d5e4f3a2b1c") == f"{picture}\n[redacted]"


@pytest.mark.parametrize("at", range(0, 76, 5))
def test_a_picture_in_lines_stays_whole(at: int) -> None:
    picture = base64.encodebytes(b"\x89PNG\r\n\x1a\n\x00" + bytes(range(256)) * 3).decode()
    letters = picture.replace("\n", "")
    letters = letters[: 400 + at] + "b" * 50 + "AzSeabc/" + letters[400 + at :]
    wrapped = "\n".join(letters[n : n + 76] for n in range(0, len(letters), 76)) + "\n"
    assert redact(wrapped) == wrapped


def test_a_short_text_that_begins_like_a_picture_hides_no_key() -> None:
    assert "[redacted]" in redact("iVBORw0KGgo/AIza" + "a" * 40)


def test_data_keeps_what_only_looks_like_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE_TOKEN", "value-of-it-1234")
    monkeypatch.setenv("WORD_TOKEN", "question")
    text = '{"question": "Why is AKIAIOSFODNN7EXAMPLE no key?", "answer": "value-of-it-1234"}'
    assert kept(text) == text.replace("value-of-it-1234", "[redacted]")
    assert kept_tree({"question": [text, 3, None]}) == {"question": [kept(text), 3, None]}
    assert unasked("the key AKIAIOSFODNN7EXAMPLE", "about AKIAIOSFODNN7EXAMPLE") == "the key AKIAIOSFODNN7EXAMPLE"
    assert unasked("the key AKIAIOSFODNN7EXAMPLE", "about keys") == "the key [redacted]"


@pytest.mark.parametrize(
    ("value", "why"),
    [("hunter2", "fewer than 8"), ("swordfish", "a word"), ("12345678", "a number"), ("schlüssel-für-9", "character")],
)
def test_a_value_that_cannot_be_told_from_text_is_refused_as_a_key(
    value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", value)
    problem = plain_key_problem("MINE")
    assert problem is not None
    assert why in problem
    assert "MINE" in problem
    assert value not in problem
    for fine in ("EMPTY", "none", "", "correct-horse-battery-staple", "abc123def456"):
        monkeypatch.setenv("MINE", fine)
        assert plain_key_problem("MINE") is None


def test_variables_with_a_file_s_path_or_an_address_hold_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials.json"
    file.write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    monkeypatch.setenv("TOKEN_URL", "https://example.com/token")
    assert redact(f"{file} https://example.com/token") == f"{file} https://example.com/token"


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


@pytest.mark.parametrize(
    "spell",
    [
        lambda key: "".join(f"&#{ord(letter)};" for letter in key),
        lambda key: "".join(f"&#x{ord(letter):X};" for letter in key),
        lambda key: f"&#00{ord(key[0])};" + key[1:],
        lambda key: key[:9] + "\u200b" + key[9:],
        lambda key: "\u00ad".join(key),
    ],
)
def test_a_key_in_disguise_is_found(spell: Callable[[str], str]) -> None:
    key = "tk9Qw7Zx3" + "Lm5Vb1Np8"
    assert secret_forms.holds(f"see {spell(key)} there", key)
    assert secret_forms.without(f"see {spell(key)} there", [key], "[redacted]") == "see [redacted] there"
    assert secret_forms.without(f"a\u200bb &#65; {key[:-1]}", [key], "-") == f"a\u200bb &#65; {key[:-1]}"
