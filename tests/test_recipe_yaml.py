"""YAML that was made to fill a machine is refused at once; what people write is read as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from optimsyn.base.errors import RecipeError
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.yaml_text import parse_yaml


def chain(first: str, line: str, links: int = 9) -> str:
    """Each line names the one before nine times."""
    lines = [f"a0: &a0 {first}"]
    for number in range(1, links):
        many = [line.format(n=n, before=number - 1) for n in range(9)]
        opened, shut = ("{", "}") if ":" in line else ("[", "]")
        lines.append(f"a{number}: &a{number} {opened}{', '.join(many)}{shut}")
    return "\n".join(lines)


BOMBS = {
    "lists": (chain("[x, x, x, x, x, x, x, x, x]", "*a{before}"), "aliases"),
    "mappings": (chain("{x: 1}", "k{n}: *a{before}"), "aliases"),
    "merges": (
        "a0: &a0 {k: 1}\n" + "\n".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)),
        "aliases",
    ),
    "long text": ("a: &a " + "x" * 100_000 + "\nb: [" + "*a, " * 5000 + "]", "aliases"),
    "brackets": ("[" * 400_000, "too deeply"),
    "braces": ("{a: " * 100_000, "too deeply"),
    "dashes": ("- " * 200_000, "too deeply"),
    "indents": ("\n".join(" " * n + "a:" for n in range(900)), "too deeply"),
    "values": ("[" + "1, " * 150_000 + "]", "more than 20,000 values"),
    "fields": ("\n".join(f"k{n}: v" for n in range(50_000)), "more than 20,000 values"),
    "digits": ("a: " + "9" * 400_000, "digits"),
    "sexagesimal": ("a: 1" + ":1" * 200_000, "digits"),
    "hexadecimal": ("a: 0x" + "f" * 400_000, "digits"),
    "size": ("a: b\n# " + "c" * 600_000, "characters"),
    "itself": ("a: &a [*a]", "holds itself"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(tmp_path: Path, name: str) -> None:
    text, reason = BOMBS[name]
    # What counts is the reason: each limit stands before the work that it saves.
    with pytest.raises(yaml.YAMLError, match=reason):
        parse_yaml(text)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=f"(?s)mine.yaml: not valid YAML: .*{reason}"):
        Recipe.load(file)


def test_a_file_that_is_no_recipe_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "rows.yaml").open("wb") as file:
        file.truncate(3_000_000_000)
    with pytest.raises(RecipeError, match=r"rows\.yaml: has 3,000,000,000 bytes and is not a recipe"):
        Recipe.load(tmp_path / "rows.yaml")


def test_what_people_write_is_read() -> None:
    text = "base: &base {lr: 1e-3, steps: 0x10}\none:\n  <<: *base\n  steps: 5\ntwo: [*base, *base]\ntime: 1:30\n"
    value = parse_yaml(text)
    assert value["one"] == {"lr": "1e-3", "steps": 5}
    assert value["two"] == [{"lr": "1e-3", "steps": 16}] * 2
    assert parse_yaml("\n".join(f"k{n}: {{a: [1, 2, 3]}}" for n in range(500)))["k499"] == {"a": [1, 2, 3]}
