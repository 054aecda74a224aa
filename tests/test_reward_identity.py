"""A ledger answers only what the same scorer, checks, generator and penalty would say; with the real classes."""

from __future__ import annotations

import ast
import asyncio
import importlib
import json
import os
import py_compile
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from influence_helpers import byte_tokenizer, samples, tiny_target
from programs_helpers import RUBRIC, Scripted, passage

from optimsyn.base.errors import RecipeError
from optimsyn.base.extensions import FORMS
from optimsyn.base.files import iter_json
from optimsyn.base.source_identity import module_source, source_identity
from optimsyn.data import figures, language
from optimsyn.data.forms import QuestionForm, lines
from optimsyn.data.records import Question
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.fingerprint import encoding_digest
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.scores import Scores
from optimsyn.llm.language_model import Call
from optimsyn.programs import check_fingerprint as check_identity
from optimsyn.programs import checker, checks, language_checks
from optimsyn.programs.checker import Checker
from optimsyn.programs.pair import PairWriter, TaskShape
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.recipe.sections.synthesis import Checks
from optimsyn.reward.reward import InfluenceReward, Judgement, RubricRequest
from optimsyn.target.target import Target

QUESTIONS = [
    Question(id="q1", question="Which canal runs beside the mills?", answer="the old one", subtask="a"),
    Question(id="q2", question="Who owned the mills of Harlow?", answer="two brothers", subtask="b"),
    Question(id="q3", question="How many looms stood there?", answer="ninety", subtask="a"),
]
WRITTEN = (
    {"question": "When did the library of Harlow move to a larger building?", "answer": "1931"},
    {"question": "What did Miss Edith Crane give to the library?", "answer": "600 books"},
)
REQUESTS = [
    RubricRequest(passage=passage(), kind="free", rubric=RUBRIC, guiding_text="g", seed=seed) for seed in range(2)
]
PLUGIN = """
WORDS = ("cinema",)

def holds(text):
    return any(word in text for word in WORDS)

def no_word(pair, context):
    return "a word" if holds(pair.question) else None
"""


def _warm(target: Target, seed: int = 100) -> Target:
    target.warm_up(samples(6, seed=seed), steps=3, batch_size=2, lr=1e-2)
    return target


def _other_weights(target: Target) -> Target:
    """Other frozen weights under the same warm-up checkpoints."""
    other = tiny_target(seed=1, warm=False)
    other.checkpoints = list(target.checkpoints)
    return other


def _chat(target: Target) -> Target:
    other = tiny_target(warm=False)
    other.tokenizer = byte_tokenizer(chat=True)
    other.checkpoints = list(target.checkpoints)
    return other


def _changed(**fields: Any) -> list[Question]:
    return [QUESTIONS[0].model_copy(update=fields), *QUESTIONS[1:]]


SCORERS: dict[str, Callable[[Target], Any]] = {
    "estimator": lambda target: InfluenceScorer(target, QUESTIONS, estimator="sgd"),
    "normalization": lambda target: InfluenceScorer(target, QUESTIONS, normalization="cosine"),
    "across subtasks": lambda target: InfluenceScorer(target, QUESTIONS, across_subtasks="max"),
    "method": lambda target: TwinScorer(target, QUESTIONS),
    "fewer questions": lambda target: InfluenceScorer(target, QUESTIONS[:2]),
    "a question's text": lambda target: InfluenceScorer(target, _changed(question="Which river runs there?")),
    "a question's answer": lambda target: InfluenceScorer(target, _changed(answer="the new one")),
    "a question's subtask": lambda target: InfluenceScorer(target, _changed(subtask="b")),
    "tokens": lambda target: InfluenceScorer(target, QUESTIONS, tokens=CountedTokens(end_of_pairs=1)),
    "question gradients": lambda target: InfluenceScorer(target, QUESTIONS, question_gradients="unit"),
    "reduction": lambda target: InfluenceScorer(target, QUESTIONS, tokens=CountedTokens(reduction="sum")),
    "target": lambda target: InfluenceScorer(_other_weights(target), QUESTIONS),
    "chat template": lambda target: InfluenceScorer(_chat(target), QUESTIONS),
    "warm-up": lambda target: InfluenceScorer(_warm(tiny_target(warm=False), seed=7), QUESTIONS),
}


@dataclass
class Asked:
    """What a reward answered, and what it had to buy and to score for it."""

    reward: InfluenceReward
    rows: list[Judgement]
    bought: int
    scored: int


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Writes the plugin's module again and forgets the one that is loaded; gives its reference."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> str:
        (tmp_path / "our_checks.py").write_text(text)
        for name in ("our_checks", "our_words"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return "our_checks:no_word"

    yield write
    for name in ("our_checks", "our_words"):
        sys.modules.pop(name, None)


def ask(ledger: Path, scorer: Any, checker: Checker, *, temperature: float = 0.8, **options: Any) -> Asked:
    scored: list[int] = []
    score = scorer.score

    def counted(pairs: Sequence[Any]) -> Scores:
        scored.append(len(pairs))
        return score(pairs)  # type: ignore[no-any-return]

    def written(call: Call) -> str:
        return json.dumps({"quote": "", **WRITTEN[call.seed or 0]})

    model = Scripted(written, temperature=temperature)
    scorer.score = counted
    try:
        reward = InfluenceReward(scorer, PairWriter(model, TaskShape()), checker, ledger=ledger, **options)
        rows = asyncio.run(reward.judge(REQUESTS))
    finally:
        del scorer.score
    return Asked(reward, rows, len(model.calls), sum(scored))


@pytest.mark.parametrize("change", SCORERS)
def test_another_scorer_buys_and_scores_anew(change: str, target: Target, tmp_path: Path) -> None:
    ledger, checker = tmp_path / "rewards.jsonl", Checker(Checks(), QUESTIONS)
    first = ask(ledger, InfluenceScorer(target, QUESTIONS), checker)
    assert (first.bought, first.scored, first.reward.passed_over) == (2, 2, 0)
    assert all(row.valid for row in first.rows), [row.reasons for row in first.rows]
    again = ask(ledger, InfluenceScorer(target, QUESTIONS), Checker(Checks(), QUESTIONS))
    assert (again.bought, again.scored, again.rows, again.reward.passed_over) == (0, 0, first.rows, 0)
    scorer = SCORERS[change](target)
    other = ask(ledger, scorer, checker)
    assert (other.bought, other.scored, other.reward.passed_over) == (2, 2, 2)
    assert {row.scorer for row in other.rows} == {scorer.fingerprint} != {row.scorer for row in first.rows}
    assert {row.checks for row in other.rows} == {checker.fingerprint}
    expected = scorer.score([row.pair for row in other.rows]).total.tolist()
    assert [row.influence for row in other.rows] == pytest.approx(expected, rel=1e-6)
    # Nothing was lost: the first scorer finds its own rows, and only these.
    back = ask(ledger, InfluenceScorer(target, QUESTIONS), checker)
    assert (back.bought, back.scored, back.rows, back.reward.passed_over) == (0, 0, first.rows, 2)


@pytest.mark.parametrize(
    "other",
    [
        Checks(unsafe_words=("cinema",)),
        Checks(disabled=("demo_copy",)),
        Checks(plugins=("our_checks:no_word",)),
    ],
)
def test_other_checks_judge_anew(other: Checks, target: Target, tmp_path: Path, plugin: Callable[[str], str]) -> None:
    plugin(PLUGIN)
    ledger, scorer = tmp_path / "rewards.jsonl", InfluenceScorer(target, QUESTIONS)
    ask(ledger, scorer, Checker(Checks(), QUESTIONS))
    # What the same scorer found for the same words holds under any checks; the verdict does not.
    anew = ask(ledger, scorer, Checker(other, QUESTIONS))
    assert (anew.bought, anew.scored, anew.reward.passed_over) == (2, 0, 2)
    fewer = ask(ledger, scorer, Checker(Checks(), QUESTIONS[:2]))
    assert (fewer.bought, fewer.reward.passed_over) == (2, 4)


def test_another_penalty_or_sampling_judges_anew(target: Target, tmp_path: Path) -> None:
    ledger, scorer, checker = tmp_path / "r.jsonl", InfluenceScorer(target, QUESTIONS), Checker(Checks(), QUESTIONS)
    ask(ledger, scorer, checker)
    assert ask(ledger, scorer, checker, invalid_penalty=0.2).bought == 2
    assert ask(ledger, scorer, checker, temperature=0.1).bought == 2
    assert len(list(iter_json(ledger))) == 6


def test_an_edited_plugin_judges_anew(target: Target, tmp_path: Path, plugin: Callable[[str], str]) -> None:
    ledger, scorer = tmp_path / "rewards.jsonl", InfluenceScorer(target, QUESTIONS)
    recipe = Checks(plugins=(plugin(PLUGIN),))
    first = ask(ledger, scorer, Checker(recipe, QUESTIONS))
    assert all(row.valid for row in first.rows)
    plugin(PLUGIN)
    same = ask(ledger, scorer, Checker(recipe, QUESTIONS))
    assert (same.bought, same.rows) == (0, first.rows), "imported again but not edited"
    # The edit is in what stands beside the check, not in the check.
    plugin(PLUGIN.replace("cinema", "library"))
    edited = ask(ledger, scorer, Checker(recipe, QUESTIONS))
    assert (edited.bought, edited.reward.passed_over) == (2, 2)
    assert [row.failed for row in edited.rows] == [("our_checks:no_word",)] * 2
    # Feedback compares with rows of this identity only, though the others were better.
    assert "Better" not in edited.reward.feedback(edited.rows[0])


def test_a_plugin_is_what_was_loaded_not_what_the_file_says_since(tmp_path: Path, plugin: Callable[[str], str]) -> None:
    recipe = Checks(plugins=(plugin(PLUGIN),))
    before = Checker(recipe).fingerprint
    (tmp_path / "our_checks.py").write_text(PLUGIN.replace("cinema", "library"))
    assert Checker(recipe).fingerprint == before
    importlib.reload(sys.modules["our_checks"])
    assert Checker(recipe).fingerprint != before


def test_modules_beside_a_plugin_count_and_libraries_do_not(tmp_path: Path, plugin: Callable[[str], str]) -> None:
    text = "import json\nimport torch\nfrom our_words import WORDS\n" + PLUGIN.split("\n", 2)[2]
    (tmp_path / "our_words.py").write_text('WORDS = ("cinema",)\n')
    recipe = Checks(plugins=(plugin(text),))
    before = Checker(recipe)
    sources = source_identity(recipe.plugins[0], before.checks[recipe.plugins[0]], "checks.plugins")
    assert set(sources) == {"our_checks", "our_words"}
    (tmp_path / "our_words.py").write_text('WORDS = ("library",)\n')
    plugin(text)
    after = Checker(recipe)
    assert {name for name in after.parts if after.parts[name] != before.parts[name]} == {
        "the plugin our_checks:no_word"
    }


def test_a_plugin_without_source_is_known_by_its_file(tmp_path: Path, plugin: Callable[[str], str]) -> None:
    found = []
    for word in ("cinema", "cinema", "library"):
        reference = plugin(PLUGIN.replace("cinema", word))
        py_compile.compile(str(tmp_path / "our_checks.py"), cfile=str(tmp_path / "our_checks.pyc"), doraise=True)
        (tmp_path / "our_checks.py").unlink()
        importlib.invalidate_caches()
        found.append(Checker(Checks(plugins=(reference,))).fingerprint)
    assert found[2] not in found[:2]


def test_a_plugin_with_neither_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("made_up")
    exec("def check(pair, context): return None", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_up", module)
    with pytest.raises(RecipeError, match=r"'made_up:check': the module made_up has neither source nor a file.*\.py"):
        Checker(Checks(plugins=("made_up:check",)))


def test_an_edited_built_in_check_is_another_check(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Checker(Checks())
    read = module_source
    for edited in check_identity.BUILT_IN:
        with monkeypatch.context() as patch:

            def source(name: str, whose: str, edited: str = edited) -> str:
                text = read(name, whose)
                return text.replace("a", "b", 1) if name == edited else text

            patch.setattr(check_identity, "module_source", source)
            assert Checker(Checks()).fingerprint != before.fingerprint, edited
    assert Checker(Checks()).fingerprint == before.fingerprint


def test_every_module_that_the_built_in_checks_use_counts() -> None:
    folders = [Path(package.__file__).parent for package in (language, figures)]
    parts = [Path(module.__file__) for module in (checker, checks, language_checks)]
    parts += [part for folder in folders for part in folder.glob("[!_]*.py")]
    trees = [ast.parse(part.read_text("utf-8")) for part in parts]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    # `from package import module` names the module last.
    packages = ("optimsyn.programs", "optimsyn.data.language")
    used = {f"{node.module}.{node.names[0].name}" if node.module in packages else str(node.module) for node in nodes}
    without_words = {
        f"optimsyn.{name}"
        for name in (
            "base.errors",
            "base.extensions",
            "base.suggestions",
            "data.forms",
            "data.records",
            "programs.check_fingerprint",
            "recipe.sections.synthesis",
        )
    }
    forms = {QuestionForm.__module__, *(type(form).__module__ for form in FORMS.built_in.values()), lines.__name__}
    used |= {f"{figures.__name__}.{part.stem}" for part in folders[1].glob("[!_]*.py")} | forms
    # Metrics compare figures, checks look them up.
    used -= {f"{figures.__name__}.compare"}
    used = {name for name in used if name.startswith("optimsyn.")} - without_words - {figures.__name__}
    assert used == set(check_identity.BUILT_IN) - {checker.__name__}


def test_ids_and_sizes_of_batches_are_no_part_of_the_identity(target: Target) -> None:
    scorer = InfluenceScorer(target, QUESTIONS)
    renamed = [question.model_copy(update={"id": f"other {question.id}"}) for question in QUESTIONS]
    assert InfluenceScorer(target, renamed, batch_tokens=64).fingerprint == scorer.fingerprint


CODE = """
import sys
from pathlib import Path
from test_reward_identity import QUESTIONS, Checks, Checker, InfluenceScorer, TwinScorer, tiny_target

target = tiny_target(warm=False)
target.add_checkpoints_from(Path(sys.argv[1]))
print(InfluenceScorer(target, QUESTIONS).fingerprint)
print(TwinScorer(target, QUESTIONS).fingerprint)
print(Checker(Checks(unsafe_words=("x", "y"), plugins=("our_checks:no_word",)), QUESTIONS).fingerprint)
"""


@pytest.mark.slow
def test_equal_facts_are_equal_in_every_process(tmp_path: Path, plugin: Callable[[str], str]) -> None:
    plugin(PLUGIN)
    target = tiny_target(warm=False)
    target.warm_up(samples(6, seed=100), steps=3, batch_size=2, lr=1e-2, folder=tmp_path / "warm")
    here = [
        InfluenceScorer(target, QUESTIONS).fingerprint,
        TwinScorer(target, QUESTIONS).fingerprint,
        Checker(Checks(unsafe_words=("x", "y"), plugins=("our_checks:no_word",)), QUESTIONS).fingerprint,
    ]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "warm")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.split() == here
    assert [name.partition("-")[0] for name in here] == ["exact", "twin", "checks"]


def test_today_is_no_part_of_what_a_target_sees() -> None:
    tokenizer = byte_tokenizer(chat=True)
    tokenizer.chat_template = tokenizer.chat_template.replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for", 1)
    assert encoding_digest(tokenizer) != encoding_digest(byte_tokenizer(chat=True))
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024")
    fixed = encoding_digest(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("26 Jul 2024", "{{ strftime_now('%d %b %Y') }}")
    assert encoding_digest(tokenizer) == fixed


@pytest.mark.parametrize("value", [None, "", lambda: "a method"])
@pytest.mark.parametrize("role", ["scorer", "checks", "pair_writer"])
def test_whoever_does_not_say_what_its_results_depend_on_is_refused(role: str, value: Any, target: Target) -> None:
    parts: dict[str, Any] = {
        "scorer": InfluenceScorer(target, QUESTIONS),
        "checks": Checker(Checks()),
        "pair_writer": PairWriter(Scripted("{}"), TaskShape()),
    }
    fields = {"model": Scripted("{}")} if value is None else {"model": Scripted("{}"), "fingerprint": value}
    parts[role] = types.SimpleNamespace(**fields)
    with pytest.raises(TypeError, match=rf"{role}: SimpleNamespace has no text `fingerprint`"):
        InfluenceReward(**parts)
