"""The report of a run in every state: what it says, that it is whole, safe and small."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from report_helpers import HOSTILE, check_page, make_recipe, stop, write_run

from optimsyn.base.errors import DataError
from optimsyn.base.terminal.table import fixed
from optimsyn.execution.json_results import RunFigures
from optimsyn.recipe.recipe import Recipe
from optimsyn.report.closing import closing_sentences
from optimsyn.report.comparison import write_comparison
from optimsyn.report.facts import RunFacts
from optimsyn.report.page.pairs import side_by_side
from optimsyn.report.page.report import write_report
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES, ManifestFile
from tests.llm_helpers import KEY
from tests.stages_helpers import run_stage


def page_of(run: Run) -> tuple[str, str]:
    """The page and its words, once it has been checked."""
    path = write_report(run)
    assert path == run.folder / "report.html"
    html = path.read_text(encoding="utf-8")
    return html, check_page(html).words


def test_a_finished_run_shows_the_numbers_of_its_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    html, words = page_of(run)
    assert "finished" in words
    for row in json.loads(run.path("evaluation.json").read_text()):
        value = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        assert value in words
        if row["difference"] is not None:
            change = f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
            assert change.replace("-", "−") in words
    for variant in run.recipe.variants:
        rows = [json.loads(line) for line in run.path("synthesize", f"{variant}.candidates.jsonl").open()]
        values = [row["influence"] for row in rows if row["influence"] is not None]
        assert f"6 pairs, median {fixed(statistics.median(values), 4)}" in words
        best = max(values)
        assert variant != run.recipe.dataset_variant or f"influence {fixed(best, 4, sign=True)}" in words
    drafts = json.loads(run.path("warm_up", "influence.json").read_text())
    assert f"first draft: {fixed(statistics.median(drafts), 4)}" in words
    assert "14,000" not in words and "7,000" in words and "0.3500" in words, "tokens and money of all stages"
    assert "1.5 GB" in words and "1 min 00 s" in words and "7 min 21 s" in words
    assert "Reward 0.01 before, 0.02 after" in words
    assert "<ins>" in html and "<del>" in html
    assert run.recipe.fingerprint in words and "recipe 3" in words and "adam_linear, dot" in words
    assert "passages too short 1" in words and "grounded" in words
    assert 'aria-label="6 candidates: 5 valid, 1 failed a check"' in html and "unsafe" in words, "the first draft's too"
    for name in ("dataset/README.md", "notebooks/"):
        assert f'href="{name}' not in html, "a link to what is not there"
    assert 'href="evaluation.json"' in html


def test_the_verdict_claims_no_more_than_the_intervals(tmp_path: Path) -> None:
    html, words = page_of(write_run(tmp_path / "runs"))
    assert "Fine-tuning on the dataset's 4 pairs lowered answer loss from 3.00 to 1.77 (−1.2" in words
    assert ", 20 test questions); it made no change of accuracy that 20 test questions show." in words
    assert "accuracy +0.05" in words and "not told apart" in words
    assert "The dataset against as many pairs without a rubric answer loss +0.004" in words
    assert words.count("Whether rubrics helped") == 1
    assert "All is of one seed (3); one seed cannot show which is better." in words
    assert "20 test questions cannot show them" in words
    assert len(re.findall("Limit: ", words)) == html.count('<tr><th scope="row">The ') == 4, "one for each"


def changed_evaluation(run: Run, variant: str, metric: str, difference: float, half: float = 0.1) -> None:
    """Lets one variant's difference to the target be another."""
    rows = json.loads(run.path("evaluation.json").read_text())
    start = next(row["value"] for row in rows if (row["variant"], row["metric"]) == ("target", metric))
    for row in rows:
        if (row["variant"], row["metric"]) == (variant, metric):
            row |= {"value": start + difference, "difference": difference}
            row |= {"difference_low": difference - half, "difference_high": difference + half}
    run.path("evaluation.json").write_text(json.dumps(rows))


def headlines(html: str) -> list[str]:
    return [" ".join(text.split()) for text in re.findall(r'<p class="headline">(.*?)</p>', html)]


def test_the_headline_names_the_worst_end_as_plainly_as_the_best(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    changed_evaluation(run, run.recipe.dataset_variant, "answer_loss", 0.6)
    changed_evaluation(run, "no_rubric", "answer_loss", -2.0)
    html, _ = page_of(run)
    effect, ends = headlines(html)
    assert "raised answer loss from 3.00 to 3.60 (+0.600 [+0.500, +0.700], 20 test questions)" in effect
    assert ends == (
        "Of the 4 variants, answer loss is lowest with the pairs without a rubric, 1.00, and highest with the pairs of "
        "the trained policy, which is the dataset, 3.60."
    )
    assert 'class="verdict bad"' in html
    # What got worse is named beside what moved the right way, and the page is not green.
    changed_evaluation(run, run.recipe.dataset_variant, "accuracy", 0.5)
    html, _ = page_of(run)
    assert "raised answer loss" in headlines(html)[0] and "raised accuracy" in headlines(html)[0]
    assert 'class="verdict open"' in html


def test_of_a_metric_with_the_better_end_above_the_highest_comes_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    rows = [row for row in json.loads(run.path("evaluation.json").read_text()) if row["metric"] == "accuracy"]
    run.path("evaluation.json").write_text(json.dumps(rows))
    assert re.search("accuracy is highest with the pairs .*, and lowest with", headlines(page_of(run)[0])[1])


def test_one_seed_is_never_called_better(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "runs"), write_run(tmp_path / "runs", recipe=make_recipe(seed=4))]
    pages = [page_of(run)[1] for run in runs]
    pages.append(check_page(write_comparison(runs, tmp_path / "both.html").read_text(encoding="utf-8")).words)
    pages.append(" ".join(closing_sentences(RunFacts.read(runs[0]))))
    for words in pages:
        words = re.sub(r"one seed cannot show which is better|better end|\.told\.\w+", "", words)
        assert not re.search(r"\b(better|worse|improved|best text|beats?)\b", words), words
        assert "lower" in words and "one seed" in words.lower()


def test_the_same_passage_is_shown_in_every_variant(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    section = page_of(run)[0].partition('id="side-by-side"')[2].partition("</section>")[0]
    assert section.count("<article") == len(run.recipe.variants) == 4
    for variant in run.recipe.variants:
        assert f"How much of vitamin {variant} 0 is safe" in section
        assert f"How much of vitamin {variant} 1 is safe" not in section, "the first, not the best"
    assert "Passed every check" in section and "Too little is bad." in section


def test_passages_are_drawn_by_the_seed_and_equal_pairs_are_shown_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    passages = [json.loads(run.path("prepare", "passages.jsonl").read_text()) | {"id": f"p{i}"} for i in range(12)]
    lines = [json.dumps(row | {"title": f"Title {row['id']}."}) for row in passages]
    run.path("prepare", "passages.jsonl").write_text("\n".join(lines) + "\n")
    for variant in run.recipe.variants:
        path = run.path("synthesize", f"{variant}.candidates.jsonl")
        row = json.loads(path.read_text().splitlines()[0])
        if variant in ("static", "optimized"):
            row["pair"] |= {"question": "What is equal?", "answer": "this"}
        bad = row | {"passage_id": "p11", "pair": None, "valid": False, "failed": ["pair_format"]}
        bad |= {"influence": None, "key": "bad"}
        rows = [row | {"passage_id": f"p{i}"} for i in range(11)] + [bad]
        # One variant has fewer passages; what most have is drawn.
        path.write_text("".join(json.dumps(each) + "\n" for each in rows[: 6 if variant == "policy" else None]))
    shown = set()
    for seed in (run.recipe.seed, 11, 12, 13):
        facts = replace(RunFacts.read(run), recipe=run.recipe.model_copy(update={"seed": seed}))
        drawn = side_by_side(facts)
        assert drawn == side_by_side(facts) and len(drawn) == 3
        assert all(len(each["cards"]) == 4 and each["title"][7:] in [f"{i}." for i in range(6)] for each in drawn)
        assert [card["same_as"] for card in drawn[0]["cards"]] == ["", "", "static", ""]
        shown.add(tuple(each["title"] for each in drawn))
    assert len(shown) > 1
    assert "The same pair as: static guiding text." in page_of(run)[1]


def test_no_effect_is_called_smaller_than_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    rows = json.loads(run.path("evaluation.json").read_text())
    for row in rows:
        if row["metric"] == "accuracy" and row["difference_low"] is not None:
            row["difference"] = row["difference_low"] = row["difference_high"] = 0.0
    run.path("evaluation.json").write_text(json.dumps(rows))
    _, words = page_of(run)
    assert "0 in accuracy" not in words
    assert "20 test questions cannot show them" in words


@pytest.mark.parametrize("done", range(8))
def test_whatever_exists_is_shown_and_nothing_more(tmp_path: Path, done: int) -> None:
    run = write_run(tmp_path / "runs", stages=done)
    html, words = page_of(run)
    for section, since in [("came-in", 1), ("influence", 2), ("reward", 3), ("guiding-text", 3), ("evaluation", 7)]:
        assert (f'<section id="{section}">' in html) == (done >= since), section
    assert ('<section id="pairs">' in html) == (done >= 2), "first-draft pairs are scored in warm_up"
    assert ("What the pairs are worth" in words) == (done < 7)
    if 0 < done < 7:
        assert f"It stopped before {STAGES[done]}" in words
        assert f"optimsyn run runs/{run.name}" in words
    if done == 0:
        assert "not started" in words


@pytest.mark.parametrize(
    ("status", "said"),
    [("failed", "It failed in stage 5 of 7, synthesize."), ("interrupted", "It was interrupted in stage 5 of 7")],
)
def test_a_run_that_stopped_says_where_why_and_how_to_go_on(tmp_path: Path, status: str, said: str) -> None:
    run = write_run(tmp_path / "runs", stages=4)
    run.path("notebooks", "05_synthesize.ipynb").write_text("{}")
    stop(run, "synthesize", status, reason="openai/gpt-5-mini: HTTP 500 <b>out of order</b>")
    run.path("rewards.jsonl").write_text(
        '{"source": "synthesize", "valid": true}\n{"source": "synthesize", "valid": false}\n{'
    )
    html, words = page_of(run)
    assert said in words
    assert "Stage 5 of 7, synthesize, cell [3]" in words
    assert 'href="notebooks/05_synthesize.ipynb"' in html
    assert "ServiceError: openai/gpt-5-mini: HTTP 500 <b>out of order</b>" in words, "escaped, but readable"
    assert "result = synthesize.run(run)" in words
    assert f"optimsyn run runs/{run.name}" in words and f"optimsyn open runs/{run.name}" in words
    assert "synthesize has judged 2 pairs so far, 1 of them valid." in words
    assert "attempt 2" in words


def test_a_running_and_a_failed_stage_without_a_record(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", stages=1)
    stop(run, "warm_up", "running")
    with FileLock(run.folder / ".stage.lock"):
        assert "still running" in page_of(run)[1]
    stop(run, "warm_up", "failed")
    with ManifestFile(run.folder / "manifest.json").change() as manifest:
        manifest.stage("warm_up").failure = None
    _, words = page_of(run)
    assert "ServiceError: the service is down" in words and "cell" not in words.split("How to go on")[0]


def test_whether_a_run_goes_on_is_asked_of_its_lock(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", stages=1)
    lock = str(run.folder / ".run.lock")
    holds = f"import filelock; held = filelock.FileLock({lock!r}); held.acquire(); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        words = page_of(run)[1]
        assert "It was still running when this page was written: before stage 2 of 7, warm_up." in words
        assert "How to go on" not in words and RunFigures.read(run).state == "running"
        stop(run, "warm_up", "running")
        assert "when this page was written: stage 2 of 7, warm_up." in page_of(run)[1]
        process.kill()
    words, figures = page_of(run)[1], RunFigures.read(run)
    assert "It was killed in stage 2 of 7, warm_up; the same command continues." in words and "How to go on" in words
    assert (figures.state, figures.stages[1].status) == ("interrupted", "interrupted")
    assert "killed while it was running" in run._repr_html_()


def test_candidates_of_a_synthesis_that_was_cut_short(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", stages=5)
    for variant in ("optimized", "policy"):
        for name in ("candidates", "judged"):
            run.path("synthesize", f"{variant}.{name}.jsonl").unlink()
    run.path("synthesize", "result.json").unlink()
    for variant in ("no_rubric", "static"):
        run.path("synthesize", f"{variant}.judged.jsonl").unlink()
    stop(run, "synthesize", "failed")
    html, words = page_of(run)
    assert "distinct candidates of: static guiding text" in words
    assert (
        "6 valid" in html
        and "v-policy" not in html.split("</style>")[1].split('id="influence"')[1].split("</section>")[0]
    )


def test_disabled_optimisers_leave_no_empty_sections(tmp_path: Path) -> None:
    recipe = make_recipe(optimizers={"prompt": {"enabled": False}, "policy": {"enabled": False}})
    html, words = page_of(write_run(tmp_path / "runs", recipe=recipe))
    assert 'id="reward"' not in html and 'id="guiding-text"' not in html
    assert words.count("disabled in the recipe") == 2
    assert "static guiding text" in words and "trained policy" not in words


def test_hostile_and_foreign_text_is_shown_as_text(tmp_path: Path) -> None:
    text = f"{HOSTILE} 维生素 ビタミン فيتامين Übergröße 🍊 {{{{ 7*7 }}}}"
    recipe = make_recipe(description=text, guiding_text=f"Ask one question. {text}".replace("\x00", ""))
    run = write_run(tmp_path / "runs", recipe=recipe, text=text)
    stop(run, "evaluate", "failed", reason=text)
    html, words = page_of(run)
    assert "<script" not in html.lower() and "<img" not in html.lower()
    assert 'alert("x")' in words and "evil.example" in words
    assert "维生素" in words and "🍊" in words and "{{ 7*7 }}" in words and "49" not in words.split("🍊")[1][:12]


def test_no_secret_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hunter2&<correct-horse>"
    monkeypatch.setenv("VITAMIN_KEY", secret)
    models = {"generator": {"name": "openai/x", "api_base": "http://localhost:1/v1", "api_key_env": "VITAMIN_KEY"}}
    run = write_run(tmp_path / "runs", recipe=make_recipe(models=models), text=f"a{secret}b")
    shares = run.path("synthesize", "token_shares.json")
    raw = json.loads(shares.read_text())
    for pair in raw["pairs"]:
        # A tokenizer cuts a key into pieces, none of which is the key.
        pair["answer"] = secret
        pair["pieces"] = [{"text": letter, "shares": [0.001], "end": False} for letter in secret]
    shares.write_text(json.dumps(raw))
    stop(run, "evaluate", "failed", reason=f"401 for {secret}")
    html, words = page_of(run)
    assert secret not in words and secret not in html and "hunter2" not in html
    assert "[redacted]" in words
    assert 'title="+0.001' not in html, "token by token, a key can be put together again"


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", candidates=400)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_a_large_run_gives_a_small_page_and_loads_no_model_library(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", candidates=1500)
    size = write_report(run).stat().st_size
    assert size < 400_000
    code = (
        "import sys; from optimsyn import Run; from optimsyn.report.page.report import write_report; "
        f"write_report(Run.load({str(run.folder)!r})); "
        "heavy = ('torch', 'transformers', 'scipy', 'pandas', 'dspy'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    run.path("evaluation.json").write_text("[{")
    with pytest.raises(DataError, match=r"evaluation\.json: not valid JSON.*run the stage evaluate again"):
        write_report(run)


def test_runs_of_before_have_a_report_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs")
    for parts in (
        ("warm_up", "influence.json"),
        ("evaluate", "against_no_rubric.json"),
        ("synthesize", "token_shares.json"),
    ):
        run.path(*parts).unlink()
    _, words = page_of(run)
    assert "Best and worst pairs" in words and "first draft:" not in words


@pytest.mark.slow
def test_the_report_of_a_real_run(recipe: Recipe, tmp_path: Path) -> None:
    run = Run.open(recipe, tmp_path / "runs")
    for stage in STAGES[:5]:
        run_stage(run, stage)
    shares = run.path("synthesize", "token_shares.json")
    found = json.loads(shares.read_text())
    assert found["variant"] == "optimized" and found["pairs"] and not found["reason"]
    judged = {
        row["pair"]["id"]: row for row in map(json.loads, run.path("synthesize", "optimized.candidates.jsonl").open())
    }
    for pair in found["pairs"]:
        assert "".join(piece["text"] for piece in pair["pieces"]).strip() == pair["answer"]
        total = sum(share for piece in pair["pieces"] for share in piece["shares"])
        assert total + pair["remainder"] == pytest.approx(pair["influence"], rel=1e-9)
        assert total == pytest.approx(judged[pair["id"]]["influence"], rel=1e-4, abs=1e-9), "as in the ledger"
    _, words = page_of(run)
    assert "It stopped before fine_tune" in words
    assert KEY not in words
    # A stage that was killed before it could say that it had finished keeps the file and does not need the scorer.
    before = shares.read_bytes()
    with ManifestFile(run.folder / "manifest.json").change() as manifest:
        manifest.stage("synthesize").status = "interrupted"
    run_stage(Run.load(run.folder), "synthesize")
    assert shares.read_bytes() == before


def test_how_busy_the_models_were_is_shown_where_it_was_measured(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert "How busy the models were" not in write_report(run).read_text()
    file = run.path("synthesize", "result.json")
    raw = json.loads(file.read_text())
    raw["numbers"]["busy"] = {
        "generator": {"busy": 0.923, "in_flight": 3.44},
        "target": {"busy": 0.31, "in_flight": 0.3},
    }
    file.write_text(json.dumps(raw))
    page = write_report(run).read_text()
    (row,) = re.findall(
        r'<tr><th scope="row">.*?</tr>', page.split("<h3>How busy the models were</h3>")[1].split("</table>")[0]
    )
    assert re.findall(r"<td[^>]*><span>([^<]*)</span></td>", row) == ["92 %", "3.4", "–", "–", "31 %", "0.3"]


def test_a_policy_trained_in_rounds_shows_each_round_on_held_passages(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    file = run.path("train_policy", "result.json")
    raw = json.loads(file.read_text())
    held = {"held_reward": 0.031, "held_untrained": 0.012, "held_difference": 0.019, "held_low": 0.002}
    raw["numbers"] |= {
        "method": "dpo",
        "held_passages": 4,
        "kept_round": 1,
        "stopped": "round 2 gained nothing",
        "history": [
            {"step": 1, "reward": 0.01, "kl": 0.23, "trained_on": 7, "held_high": 0.036, **held},
            {"step": 2, "reward": 0.01, "kl": 0.25, "trained_on": 9},
        ],
    }
    file.write_text(json.dumps(raw))
    html, words = page_of(run)
    section = html.split('aria-label="The policy on held passages"')[1].split("</table>")[0]
    (row,) = section.split("<tbody>")[1].split("</tbody>")[0].strip().splitlines()
    cells = re.findall(r"<td[^>]*>(?:<span>)?([^<]*)", row)
    assert cells == ["1", "0.031", "0.012", "0.019", "+0.0020 to +0.0360", "0.23", "7"]
    assert "on 4 held passages" in words
    assert "It stopped by itself: round 2 gained nothing. The adapter of round 1 is used." in words
