"""Changes to a recipe from outside: what they mean, what is refused, and that a run replays them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs_helpers import tiny_recipe

from optimsyn import Run
from optimsyn.base.errors import RecipeError
from optimsyn.execution.parameters import chosen_recipe
from optimsyn.recipe.changes import SetOptions, changed, parse_change
from optimsyn.recipe.recipe import Recipe

KEY = "sk-proj-4f9a8b7c6d5e4f3a2b1c"


def test_values_sections_and_short_forms() -> None:
    recipe = changed(
        tiny_recipe(),
        {
            "synthesis.pairs": 7,
            "models.generator": "openai/gpt-5-mini",
            "models.generator.temperature": 0.1,
            "warm_up": {"steps": 3},
            "models.reflection.name": "openai/gpt-5",
            "questions.test": "embedded:quickstart",
            "questions.test.where.split": "test",
            "checks.disabled": ["grounded"],
        },
    )
    assert recipe.synthesis.pairs == 7
    assert (recipe.models.generator.name, recipe.models.generator.temperature) == ("openai/gpt-5-mini", 0.1)
    assert (recipe.warm_up.steps, recipe.warm_up.pairs) == (3, 24)
    assert recipe.models.reflection is not None
    assert recipe.models.reflection.name == "openai/gpt-5"
    assert recipe.questions.test is not None
    assert recipe.questions.test.where == {"split": "test"}
    assert recipe.checks.disabled == ("grounded",)


def test_another_model_keeps_nothing_of_the_one_before() -> None:
    served = tiny_recipe(models={"generator": {"name": "openai/x", "api_base": "http://127.0.0.1:9", "max_tokens": 99}})
    assert changed(served, {"models.generator": {"name": "openai/y"}}).models.generator.api_base is None
    assert changed(served, {"models.generator.name": "openai/y"}).models.generator.max_tokens == 99
    assert changed(served, {"documents.source": {"hub": "org/texts"}}).documents.source.hub == "org/texts"
    assert changed(served, {}) is served


def test_relative_paths_are_meant_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = changed(tiny_recipe(), {"documents.source": "texts", "models.target.name": "./model"})
    assert recipe.documents.source.path == str(tmp_path / "texts")
    assert recipe.models.target.name == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"synthesis.pair": 3}, "did you mean `synthesis.pairs`"),
        ({"pairs": 3}, "`warm_up.pairs` or `reward.look.pairs` or `synthesis.pairs`"),
        ({"sinthesis.pairs": 3}, "did you mean `synthesis`"),
        ({"warm_up": {"step": 3}}, "warm_up.step: unknown field; did you mean `warm_up.steps`"),
        ({"zzz.qqq": 3}, "known here: name, description"),
        ({"synthesis.pairs": "many"}, "synthesis.pairs: .*valid integer"),
        ({"synthesis.pairs": 1}, "synthesis.pairs: .*greater than or equal to 2"),
        ({"synthesis.pairs.more": 1}, "synthesis.pairs is a value without fields"),
        ({"warm_up": {"steps": 3, "checkpoints": 4}}, "warm_up.checkpoints is larger than warm_up.steps"),
        ({"warm_up": {"steps": None, "checkpoints": 4}}, "larger than the 3 looks of the shortest warm-up"),
        ({"warm_up.checkpoints": 99}, "warm_up.checkpoints is larger"),
        ({"optimizers.prompt.program": "autor"}, r"'rubric' or 'author' \(got 'autor'\); did you mean `author`\?$"),
        ({"synthesis.arms": ["statc"]}, r"did you mean `static`\?$"),
        ({"reward": {"source": "randm"}}, "did you mean `random`"),
        ({"optimizers.policy.enabled": "flase"}, "did you mean `false`"),
        ({"models.rubric.device": "coda"}, "did you mean `cuda`"),
        ({"synthesis.dataset": "xyz"}, r"\(got 'xyz'\)$"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        changed(tiny_recipe(), changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"models.generator": KEY},
        {"models.generator.api_base": "https://me:secret-word@host/v1"},
        {"models.generator.api_base": "https://host/v1?api_key=abcdef123"},
        {"models.generator.api_key_env": KEY},
        {"description": f"use {KEY}"},
        {"documents.source.columns": {KEY: "x"}},
        {KEY: 1},
        {"synthesis.pairs": KEY},
    ],
)
def test_a_key_is_refused_without_being_shown(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="api_key_env") as caught:
        changed(tiny_recipe(), changes)
    assert KEY not in str(caught.value)
    assert "secret-word" not in str(caught.value)
    assert "abcdef123" not in str(caught.value)


def test_a_key_in_a_recipe_file_is_refused_without_being_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tiny_recipe().to_yaml()
    file = tmp_path / "mine.yaml"
    monkeypatch.setenv("MINE_PASSWORD", "correct-horse-battery")
    for secret in (KEY, "correct-horse-battery"):
        for field in (f"description: {secret}", f"seed: {secret}", f"description: [{secret}: {{"):
            file.write_text(text.replace("description: ''", field).replace("seed: 0\n", ""))
            with pytest.raises(RecipeError) as caught:
                Recipe.load(file)
            assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("limits: {cost_usd: 5}\nlimits: {requests: 9}", "the field 'limits' is given twice.*line 5"),
        ("models: {generator: embedded, generator: openai/x}", "'generator' is given twice"),
        ("description: &a [*a]", "holds itself"),
        ("models: &m {generator: *m}", "holds itself"),
        ("description: 2024-13-45", "month must be in 1..12; put quotes.*line 4"),
        (f"seed: {'9' * 5000}", "put quotes"),
        (f"description: {'[' * 3000}", "nested too deeply"),
        (r'description: "half \ud83d of it"', "surrogate"),
        ("synthesis: {oversample: .inf}", r"synthesis\.oversample: .*finite"),
        ("warm_up: {lr: .inf}", r"warm_up\.lr: .*finite"),
        ("limits:", "limits: is empty; give it a value or remove the line .*cost_usd"),
        ("description: 2024-01-31", "description: must be text, .* 2024-01-31 .*quotes"),
        ("description: 5", "description: must be text, .* 5 .*put it in quotes"),
        ("synthesis: 5", "synthesis: must be a section with the fields pairs, "),
    ],
)
def test_what_yaml_would_let_pass_or_choke_on_is_refused_with_the_cure(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    base = "name: mine\ndocuments: {source: x}\nquestions: {validation: y}\n"
    file.write_text(f"{base}{line}\nguiding_text: Ask what a mill engineer would ask.\n")
    with pytest.raises(RecipeError, match=f"(?s)mine\\.yaml: ?.*{message}"):
        Recipe.load(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this is empty; `optimsyn new quickstart`"),
        (b"# nothing yet\n", "this is empty"),
        (b"- a\n", "this is a list; remove the `-` or"),
        (b'[{"name": "mine"}]', "this is a list"),
        (b"Some words only.", "this is text without fields \\('Some words only.'"),
        (b"5", "this is a number"),
        (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3", "is not text but a PDF; give it the right name"),
        (b"PK\x03\x04" + bytes(90), "is not text but a zip archive"),
        (b"name: mine\ndocuments:\n\tsource: x\n", "(?s)not valid YAML: .*in line 3, column 1.*indent with spaces"),
        (b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>", "it is a web page"),
        (b"name: a\n---\nname: b\n", "a recipe is one document"),
        ("name:\u00a0mine\nseed: 1\n".encode(), "(?s)line 1 holds a character .*U\\+00A0 .*type the line again"),
        ("seed: 1\n\u200bname: mine\n".encode(), "(?s)name: unknown field.*line 2 holds a character .*U\\+200B"),
        ("name: mine\n".encode("utf-32-be"), "is UTF-32 text without a byte order mark; .*iconv -f UTF-32BE"),
        (
            ("name: 鉱\n" + "# 鉱山の本\n" * 9).encode("utf-16-be"),
            "is UTF-16 text without a byte order mark; .*UTF-16BE",
        ),
        (b"name: mine\ndescription: caf\xe9\n", "mine.yaml:2: byte 0xe9 is not UTF-8 text; .*cp1252; convert the file"),
        ("name: mine\n".encode("utf-16"), "documents: required field is missing"),
        (
            "name: mine\n".encode("utf-16-le"),
            "is UTF-16 text without a byte order mark; .*iconv -f UTF-16LE -t UTF-8, or save it",
        ),
    ],
)
def test_a_file_that_is_no_recipe_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        Recipe.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_recipe_is_read_whatever_its_marked_encoding_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    text = tiny_recipe(description="café, 鉱山").to_yaml()
    (tmp_path / "mine.yaml").write_bytes(text.replace("\n", end).encode(encoding))
    assert Recipe.load(tmp_path / "mine.yaml").description == "café, 鉱山"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents.source.columns": {"grop": "dossier"}}, r"documents.*columns\.grop: .*did you mean `group`"),
        ({"questions.validation.columns": {"anwser": "gold"}}, r"questions.*columns\.anwser: .*did you mean `answer`"),
        ({"questions.validation.columns": {"zzz": "x"}}, "known here: id, question, answer.*your column"),
    ],
)
def test_a_misspelled_field_of_a_mapping_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        changed(tiny_recipe(), changes)


def test_a_mapping_may_name_the_subtask_column() -> None:
    column = {"questions.validation.columns": {"chapter": "meta.chapter"}}
    assert changed(tiny_recipe(), {**column, "questions.subtask": "chapter"}).questions.subtask == "chapter"


def test_anchors_and_merges_keep_working(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\ndocuments: {source: x}\nquestions: {validation: y}\nguiding_text: Ask what an engineer asks.\n"
        "models:\n  generator: &a {name: embedded, max_tokens: 50}\n  rubric: &b {<<: *a, max_tokens: 60}\n"
        "  reflection: {<<: *b, temperature: 0.1}\n"
    )
    models = Recipe.load(file).models
    assert models.reflection is not None
    assert (models.generator.max_tokens, models.rubric.max_tokens, models.reflection.max_tokens) == (50, 60, 60)


def test_what_only_looks_random_is_no_key() -> None:
    recipe = changed(
        tiny_recipe(),
        {
            "models.target": {"name": "Qwen/Qwen3-0.6B", "revision": "c1899de289a04d12100db370d81485cdf75e47ca"},
            "documents.source": "/data/sk-learn-tutorial/OpenOrcaPlatypus2Mistral7BInstruct.jsonl",
            "description": "unsloth/Mistral-Small-24B-Instruct-2501-reasoning-GGUF",
        },
    )
    assert recipe.models.target.revision is not None


def test_the_value_of_a_change_is_yaml() -> None:
    assert parse_change("synthesis.pairs=20") == ("synthesis.pairs", 20)
    assert parse_change("models.reflection=null") == ("models.reflection", None)
    assert parse_change("guiding_text=a = b") == ("guiding_text", "a = b")
    with pytest.raises(RecipeError, match="write FIELD=VALUE"):
        parse_change("synthesis.pairs")
    with pytest.raises(RecipeError, match="not valid YAML"):
        parse_change("checks.disabled=[a")


def test_a_run_replays_size_and_changes_exactly(tmp_path: Path) -> None:
    chosen = chosen_recipe("law", size="tiny", changes={"synthesis.pairs": 3, "seed": 4})
    run = Run.open(chosen, tmp_path)
    again = Run.load(run.folder).recipe
    assert again == chosen
    assert again.fingerprint == chosen.fingerprint
    assert Recipe.load(run.folder / "recipe.yaml").to_yaml() == (run.folder / "recipe.yaml").read_text()
    assert Run.open(again, tmp_path).folder == run.folder


def test_start_checks_makes_and_finds_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    run = Run.start("quickstart", size="tiny", changes={"synthesis.pairs": 3}, root=tmp_path)
    assert run.recipe.name == "quickstart_tiny"
    assert run.recipe.synthesis.pairs == 3
    assert Run.start(run_folder=run.folder, size="nonsense").folder == run.folder
    with pytest.raises(RecipeError, match="needs a key"):
        Run.start("quickstart", generator="openai/gpt-5-mini", root=tmp_path)
    with pytest.raises(RecipeError, match=r"size: there is no size 'tinny'; did you mean `tiny`"):
        Run.start("quickstart", size="tinny", root=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_a_run_of_before_keeps_the_reward_that_it_was_made_with(tmp_path: Path) -> None:
    quickstart = Recipe.load(Path(__file__).parent.parent / "recipes" / "quickstart.yaml")
    run = Run.open(changed(quickstart, {"influence.question_gradients": "unit"}), tmp_path)
    file = run.folder / "recipe.yaml"
    text = file.read_text()
    assert text.count("  question_gradients: unit\n") == 1
    # As the version before wrote it.
    file.write_text(text.replace("  question_gradients: unit\n", ""))
    again = Run.load(run.folder).recipe
    assert again.influence.question_gradients == "unit"
    assert again.fingerprint == run.recipe.fingerprint
    # A recipe that somebody wrote means the default of today.
    assert Recipe.load(file).influence.question_gradients == "plain"


def test_fields_that_say_nothing_leave_the_fingerprint_as_it_was() -> None:
    # As the version before these fields computed it; an old run folder is found again.
    sampling = {"generator.temperature": 0.4, "generator.max_tokens": 200, "rubric.temperature": 0.8}
    quickstart = Recipe.load(Path(__file__).parent.parent / "recipes" / "quickstart.yaml")
    base = changed(quickstart, {f"models.{field}": value for field, value in sampling.items()})
    reward_of_then = {"influence.question_gradients": "unit"}
    assert changed(base, reward_of_then).fingerprint == "ba53601158"
    # Another default gives other results.
    assert base.fingerprint != "ba53601158"
    ended = changed(base, {"influence.tokens.end_of_pairs": 1})
    assert ended.fingerprint not in ("ba53601158", base.fingerprint)
    served = changed(base, {"models.generator": "openai/x"})
    assert changed(served, {"models.generator.prices": {"input": 1, "output": 2}}).fingerprint == served.fingerprint
    for field, value in (("top_p", 0.5), ("reasoning_effort", "low"), ("send_seed", False), ("extra", {"a": 1})):
        assert changed(served, {f"models.generator.{field}": value}).fingerprint != served.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["synthesis.pair=3"], "--set synthesis.pair=3: unknown field; did you mean `synthesis.pairs`?"),
        (
            ["synthesis.pairs=1", "seed=4", "warm_up.steps=x"],
            "--set synthesis.pairs=1 --set warm_up.steps=x:\n  warm_up.steps: Input should be a valid integer, "
            "unable to parse string as an integer (got 'x')\n  synthesis.pairs: Input should be greater than or equal "
            "to 2 (got 1)",
        ),
        (
            ["warm_up={step: 3}", "a.b=1"],
            "--set 'warm_up={step: 3}': warm_up.step: unknown field; did you mean `warm_up.steps`?\n"
            "--set a.b=1: unknown field; known here: ",
        ),
        (
            ["synthesis.pair=3", "models.reflection.nme=x", "reward.source=randm"],
            "--set synthesis.pair=3: unknown field; did you mean `synthesis.pairs`?\n"
            "--set models.reflection.nme=x: unknown field; did you mean `models.reflection.name`?\n"
            "--set reward.source=randm:\n  reward.source: Input should be 'influence'",
        ),
        (
            ["warm_up.steps=3", "warm_up.checkpoints=4"],
            "--set warm_up.steps=3 --set warm_up.checkpoints=4:\n  warm_up.checkpoints is larger than warm_up.steps",
        ),
        (["guiding_text=a b"], "--set 'guiding_text=a b':\n  guiding_text: String should have at least 10 characters"),
        (["synthesis.pairs"], "--set synthesis.pairs: write FIELD=VALUE, such as --set synthesis.pairs=20"),
        (["seed=[1"], "--set seed: the value is not valid YAML; put it in quotes"),
        (["description=" + KEY], "--set description looks like a key, and would be written into the run"),
        ([KEY], "--set: write FIELD=VALUE"),
    ],
)
def test_what_is_wrong_with_an_option_names_it_as_it_was_typed(options: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        chosen_recipe("law", changes=SetOptions(options))
    assert str(caught.value).startswith(message)
    assert "changes" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_each_caller_hears_its_own_word() -> None:
    def said(**given: Any) -> str:
        with pytest.raises(RecipeError) as caught:
            chosen_recipe("law", **given)
        return str(caught.value)

    assert said(changes={"synthesis.pairs": 1}).startswith("changes:\n  synthesis.pairs: ")
    assert said(changes={"synthesis.pair": 1, "sead": 2}).splitlines() == [
        "changes: sead: unknown field; did you mean `seed`?",
        "changes: synthesis.pair: unknown field; did you mean `synthesis.pairs`?",
    ]
    assert said(changes={"description": KEY}).startswith("changes.description looks like a key")
    assert said(size="tinny").startswith("size: there is no size 'tinny'")
    assert said(size="tinny", changes=SetOptions([])).startswith("--size: there is no size 'tinny'")
    long = said(changes=SetOptions(["synthesis.pair=" + "x " * 200]))
    assert len(long.partition(": unknown")[0]) < 120
