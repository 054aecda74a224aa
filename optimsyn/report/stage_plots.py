"""One picture for each stage, and one of a whole run, drawn from plain numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimsyn.base.counting import plural
from optimsyn.base.terminal.labels import method_label, metric_label, variant_color, variant_label
from optimsyn.report import panels
from optimsyn.report.drawing import (
    BLUE,
    BROWN,
    DASHED,
    GRID,
    GROUND,
    INK,
    RED,
    SOFT,
    Picture,
    drawing,
    finish,
    legend_below,
    picture,
    round_ticks,
    say,
)
from optimsyn.report.rendering import cut
from optimsyn.target.warm_up.curve import WarmUpCurve
from optimsyn.training.intervals import MetricRow, differs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Reward and validity of the pairs of each group.
Groups = Mapping[str, Sequence[tuple[float, bool]]]


def passages_figure(words: Sequence[int], lost: Mapping[str, int], *, longest: int) -> Picture:
    """Numbers of words of the passages with the recipe's limit, and how many rows were lost for each reason."""
    with drawing(2.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
        left.hist(words, bins=min(20, max(5, len(words) // 2)), color=BLUE, edgecolor="white", linewidth=0.8)
        left.axvline(longest, color=INK, linewidth=1.1, linestyle=DASHED)
        left.annotate("passage_words ", (longest, 1), xycoords=("data", "axes fraction"), va="top", ha="right")
        finish(left, plural(len(words), "passage"), "words", "passages", whole="y")
        if lost:
            names = sorted(lost, key=lambda name: lost[name])
            right.barh(names, [lost[name] for name in names], color=BROWN, height=0.6)
            right.tick_params(axis="y", length=0)
            finish(right, "Rows lost, and why", "rows", "", whole="x", grid="x")
        else:
            right.set_title("Rows lost, and why")
            say(right, "no row was lost")
        reasons = ", ".join(f"{n} {name}" for name, n in lost.items()) or "none"
        return picture(
            figure,
            f"{plural(len(words), 'passage')} of {min(words)} to {plural(max(words), 'word')}, median "
            f"{statistics.median(words):g}. "
            f"Rows lost: {reasons}.",
        )


def warm_up_figure(losses: Sequence[float], influence: Sequence[float], *, zero_gradient: float | None) -> Picture:
    """Loss of each step of the warm-up, and influence of the first draft beside that of a sample without gradient."""
    with drawing(2.9) as figure:
        left, right = figure.subplots(1, 2)
        left.plot(range(1, len(losses) + 1), losses, color=BLUE, linewidth=1.8, marker="o", markersize=4)
        finish(left, "Warm-up of the target", "step (each on other pairs)", "training loss, nats", whole="x")
        influence_panel(right, {"first_draft": list(influence)}, zero_gradient)
        right.set_title("Influence of the first draft")
        nothing = "" if zero_gradient is None else f"; a zero gradient would score {zero_gradient:.3g}"
        return picture(
            figure,
            f"Training loss {losses[0]:.2f} at the first step, {losses[-1]:.2f} at the last of {len(losses)}. "
            f"Influence of {len(influence)} first-draft pairs from {min(influence):.3g} to {max(influence):.3g}, "
            f"median {statistics.median(influence):.3g}{nothing}.",
        )


def warm_up_curve_figure(curve: WarmUpCurve) -> Picture:
    """The losses of the warm-up, its checkpoint, and the learning rates that were tried."""
    if not curve.looks:
        with drawing(2.9, width=7.4) as figure:
            axes = figure.subplots()
            axes.plot(range(1, len(curve.losses) + 1), curve.losses, color=BLUE, linewidth=1.8, marker="o")
            finish(axes, f"{plural(curve.steps, 'step')}, as given", "step", "training loss, nats", whole="x")
            return picture(figure, f"{plural(curve.steps, 'step')} at {curve.lr:.2g}, as given; nothing was looked at.")
    with drawing(3.3) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(2.2, 1)) if curve.rates else (figure.subplots(), None)
        steps = range(1, len(curve.losses) + 1)
        left.plot(steps, curve.losses, color=GRID, linewidth=1.4, label="training, every token", zorder=1)
        changes = []
        for name, label, color in _WARM_UP_LINES:
            points = [(look.step, getattr(look, name)) for look in curve.looks if getattr(look, name) is not None]
            if points:
                left.plot(*zip(*points, strict=True), color=color, linewidth=1.8, marker="o", markersize=4, label=label)
                changes.append(f"{label} {points[0][1]:.2f} to {points[-1][1]:.2f}")
        left.axvline(curve.steps, color=INK, linewidth=1.1, linestyle=DASHED)
        left.annotate(
            " checkpoint", (curve.steps, 1), xycoords=("data", "axes fraction"), va="top", ha="right", rotation=90
        )
        left.legend(loc="upper right" if curve.steps < 0.6 * curve.looks[-1].step else "best")
        left.set_ylim(bottom=0)
        finish(left, f"{plural(curve.steps, 'step')}: {curve.stopped}", "step", "loss, nats a token", whole="x")
        if right is not None:
            _draw_rates(right, curve)
        return picture(
            figure,
            f"Warm-up of {plural(curve.steps, 'step')} at {curve.lr:.2g}, {curve.stopped}; losses from the start "
            "to the last "
            f"look: {', '.join(changes)}.",
        )


_WARM_UP_LINES = (
    ("end_loss", "end of an answer (questions)", BLUE),
    ("unseen_loss", "content, unseen pairs", RED),
    ("question_loss", "content, questions", BROWN),
)


def _draw_rates(axes: Axes, curve: WarmUpCurve) -> None:
    judged = [rate for rate in curve.rates if rate.judged is not None]
    for place, rate in enumerate(judged):
        filled = GROUND if rate.dropped else (BLUE if rate.lr == curve.lr else GRID)
        axes.bar(place, rate.judged or 0.0, width=0.6, color=filled, edgecolor=BLUE if not rate.dropped else SOFT)
    axes.set_xticks(range(len(judged)), [f"{rate.lr:.2g}" for rate in judged])
    axes.tick_params(axis="x", length=0)
    finish(axes, "Rates tried", "learning rate\n(hollow: dropped; blue: chosen)", "loss of end and content, nats")


def prompt_search_figure(history: Sequence[Mapping[str, Any]]) -> Picture:
    """Reward of every guiding text that the search tried, from the prompt optimiser's history."""
    candidates = panels.scored(history, "score")
    with drawing(4.2 if all(panels.compared_and_rejected(candidates)) else 3.1, width=6.4) as figure:
        axes = figure.subplots()
        if not candidates:
            say(axes, "nothing was tried")
            return picture(figure, "No guiding text was tried.")
        history_panel(axes, candidates)
        return picture(figure, panels.prompt_words(candidates))


def policy_figure(history: Sequence[Mapping[str, Any]], groups: Groups, method: str = "grpo") -> Picture:
    """Rewards within each group, mean reward over the steps, and KL from the untrained model."""
    trained = panels.scored(history, "reward")
    with drawing(3.3) as figure:
        if not trained:
            say(figure.subplots(), "no step was made")
            return picture(figure, f"No step of {method_label(method)} was made.")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.3, 1, 0.9))
        _draw_groups(left, groups, "Groups that were compared")
        history_panel(middle, trained, of_policy=True)
        kl = [(row["step"], row["kl"]) for row in trained if row.get("kl") is not None]
        right.plot([step for step, _ in kl], [value for _, value in kl], color=INK, linewidth=1.6, marker="o")
        finish(right, "Distance travelled", "training step", "KL from the untrained model", whole="x")
        end = f" KL at the end {kl[-1][1]:.2g}." if kl else ""
        return picture(
            figure, f"{method_label(method)} over {plural(len(trained), 'step')}. {panels.policy_words(trained)}{end}"
        )


@dataclass(frozen=True)
class MeasuredPolicy:
    """A policy trained on judged rubrics, against the untrained one on passages that it was not trained on.

    Attributes:
        domain: Whose documents and questions.
        way: How it was trained.
        judged: Rubrics that it was trained with.
        passages: Held passages.
        kl: From the untrained policy, in nats a token.
        spread: Standard deviation of the influence of valid pairs within a passage.
        gain: Mean difference of reward.
        low: Lower end of its 95% interval over passages.
        high: Its upper end.
    """

    domain: str
    way: str
    judged: int
    passages: int
    kl: float
    spread: float
    gain: float
    low: float
    high: float


def policies_figure(rows: Sequence[MeasuredPolicy]) -> Picture:
    """What trained policies gained on passages that they were not trained on, in standard deviations of influence."""
    with drawing(0.32 * len(rows) + 1.3) as figure:
        axes = figure.subplots()
        names, told = [f"{row.domain}, {row.way}" for row in rows], []
        for place, row in enumerate(rows):
            gain, low, high = (value / row.spread for value in (row.gain, row.low, row.high))
            axes.plot([low, high], [place, place], color=variant_color("policy"), linewidth=2.4)
            axes.scatter([gain], [place], s=38, color=variant_color("policy"), zorder=3)
            told.append(f"{names[place]} {gain:+.2f} [{low:+.2f}, {high:+.2f}]")
        axes.axvline(0.0, color=SOFT, linewidth=1, linestyle=DASHED)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(round_ticks())
        unit = "reward gained on held passages, in standard deviations of influence (95% interval)"
        finish(axes, "Trained rubric policies against untrained ones", unit, "", grid="x")
        return picture(figure, f"{unit[0].upper()}{unit[1:]}: {'; '.join(told)}.")


def _draw_groups(axes: Axes, groups: Groups, title: str) -> None:
    color = variant_color("policy")
    for place, members in enumerate(groups.values()):
        for filled, face, edge in ((True, color, color), (False, GROUND, SOFT)):
            rewards = [reward for reward, valid in members if valid == filled]
            # Equal rewards (such as the penalty) are spread, so that each is visible.
            heights = [place + 0.09 * (index - (len(rewards) - 1) / 2) for index in range(len(rewards))]
            axes.scatter(rewards, heights, s=30, facecolors=face, edgecolors=edge, linewidths=1.1, zorder=3)
        mean = statistics.fmean(reward for reward, _ in members)
        axes.plot([mean, mean], [place - 0.33, place + 0.33], color=INK, linewidth=2.0, zorder=2)
    axes.set_yticks(range(len(groups)), [cut(name, 22) for name in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(round_ticks())
    finish(axes, title, "reward\n(hollow: invalid; black bar: mean)", "", grid="x")


def rewards_figure(groups: Groups) -> Picture:
    """Rewards of some pairs, one line per group; hollow dots are invalid pairs."""
    with drawing(0.55 * len(groups) + 1.2, width=7.4) as figure:
        _draw_groups(figure.subplots(), groups, "Rewards")
        means = ", ".join(f"{name} {statistics.fmean(r for r, _ in members):.3g}" for name, members in groups.items())
        return picture(figure, f"Mean reward: {means}.")


def costs_figure(costs: Mapping[str, float], title: str) -> Picture:
    """Costs in US dollars with several services, cheapest first."""
    ordered = sorted(costs.items(), key=lambda item: item[1])
    with drawing(0.36 * max(1, len(ordered)) + 1.0, width=7.4) as figure:
        axes = figure.subplots()
        if not ordered:
            say(axes, "no price is known")
            return picture(figure, "No price is known.")
        bars = axes.barh([name for name, _ in ordered], [cost for _, cost in ordered], color=BLUE, height=0.62)
        axes.bar_label(bars, [f"{cost:.2f}" for _, cost in ordered], padding=4, fontsize=9)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.1)
        finish(axes, title, "US dollars", "", grid="x")
        costs_text = ", ".join(f"{name} {cost:.2f}" for name, cost in ordered)
        return picture(figure, f"Cost of {title} in US dollars: {costs_text}.")


def variants_figure(influence: Mapping[str, Sequence[float]], *, zero_gradient: float | None = None) -> Picture:
    """The influence of each variant's valid pairs."""
    by_variant = {variant: list(values) for variant, values in influence.items() if len(values)}
    with drawing(0.56 * max(1, len(by_variant)) + 1.0, width=7.4) as figure:
        axes = figure.subplots()
        if not by_variant:
            say(axes, "no valid pair")
            return picture(figure, "No variant has a valid pair.")
        influence_panel(axes, by_variant, zero_gradient)
        return picture(figure, panels.influence_words(by_variant))


def training_figure(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Training loss of the target on each variant's pairs, from their histories."""
    with drawing(3.0, width=7.4) as figure:
        axes = figure.subplots()
        ends = {}
        for variant, history in histories.items():
            rows = [row for row in history if row.get("loss") is not None]
            axes.plot(
                [row["step"] for row in rows],
                [row["loss"] for row in rows],
                color=variant_color(variant),
                linewidth=1.8,
                marker="o" if len(rows) <= 40 else "",
                markersize=3.5,
                label=variant_label(variant),
            )
            ends[variant] = (rows[0]["loss"], rows[-1]["loss"])
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        finish(axes, "Fine-tuning", "step", "training loss, nats", whole="x")
        changes = ", ".join(f"{variant_label(name)} {a:.2f} to {b:.2f}" for name, (a, b) in ends.items())
        return picture(figure, f"Training loss, first to last step: {changes}.")


def evaluation_figure(evaluation: Sequence[MetricRow], *, confidence: float = 0.95) -> Picture:
    """Every metric of every variant with its interval, from the rows of `evaluation.json`."""
    with drawing(evaluation_height(evaluation)) as figure:
        evaluation_panels(figure, evaluation, confidence)
        return picture(figure, f"Evaluation. {panels.evaluation_words(evaluation)}")


@dataclass(frozen=True)
class RunNumbers:
    """Numbers for the picture of a run; missing ones are empty.

    Attributes:
        influence: For each variant, the influence of its valid pairs.
        prompt: Rows of the prompt optimiser's history.
        policy: Rows of the policy's history.
        evaluation: Rows of `evaluation.json`.
        zero_gradient: Influence of a sample without any gradient.
    """

    influence: Mapping[str, Sequence[float]] = field(default_factory=dict)
    prompt: Sequence[Mapping[str, Any]] = ()
    policy: Sequence[Mapping[str, Any]] = ()
    evaluation: Sequence[MetricRow] = ()
    zero_gradient: float | None = None
    confidence: float = 0.95


def run_figure(numbers: RunNumbers, title: str = "") -> Picture:
    """Draws a run: influence and reward above, evaluation below; leaves out missing parts."""
    influence = {variant: list(values) for variant, values in numbers.influence.items() if len(values)}
    candidates, trained = panels.scored(numbers.prompt, "score"), panels.scored(numbers.policy, "reward")
    drawn: list[tuple[float, Callable[[Axes], None]]] = []
    words = []
    if influence:
        drawn.append((1.25, lambda axes: influence_panel(axes, influence, numbers.zero_gradient)))
        words.append(panels.influence_words(influence))
    if candidates:
        drawn.append((1.0, lambda axes: history_panel(axes, candidates)))
        words.append(panels.prompt_words(candidates))
    if trained:
        drawn.append((1.0, lambda axes: history_panel(axes, trained, of_policy=True)))
        words.append(panels.policy_words(trained))
    least = 4.0 if all(panels.compared_and_rejected(candidates)) else 3.0
    heights = [max(least, 0.56 * len(influence) + 1.0)] if drawn else []
    heights += [evaluation_height(numbers.evaluation)] if numbers.evaluation else []
    with drawing(sum(heights, 0.45 if title else 0.1) if heights else 1.0, width=10.5) as figure:
        if title:
            figure.suptitle(title, x=0.012, ha="left", fontsize=12)
        if not heights:
            figure.text(0.5, 0.4, "nothing to draw yet", ha="center")
            return picture(figure, "An empty picture.")
        rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if drawn:
            grid = rows[0].subplots(1, len(drawn), width_ratios=[width for width, _ in drawn], squeeze=False)
            for axes, (_, draw) in zip(grid[0], drawn, strict=True):
                draw(axes)
        if numbers.evaluation:
            evaluation_panels(rows[-1], numbers.evaluation, numbers.confidence)
            words.append(panels.evaluation_words(numbers.evaluation))
        return picture(figure, " ".join(words))


def influence_panel(axes: Axes, influence: Mapping[str, Sequence[float]], zero_gradient: float | None) -> None:
    """The influence of each variant's pairs, for a notebook."""
    panels.draw_influence(axes, influence, zero_gradient, narrow=True)
    axes.set_title("Influence of the valid pairs")
    dashed = "; dashed: zero gradient" if zero_gradient is not None else ""
    axes.set_xlabel(f"influence (box: middle half;\nbar: median{dashed})")


def history_panel(axes: Axes, rows: Sequence[Mapping[str, Any]], *, of_policy: bool = False) -> None:
    """The search for a guiding text, or the training of the policy, for a notebook."""
    if of_policy:
        panels.draw_policy(axes, rows)
        axes.set_title("Rubric policy")
        legend_below(axes)
    else:
        panels.draw_prompt(axes, rows)
        # Room for the line that says on how many passages.
        axes.set_title("Guiding text (prompt search)", pad=19)


def evaluation_height(evaluation: Sequence[MetricRow]) -> float:
    """Height of `evaluation_panels`, in inches."""
    return 0.46 * len({row["variant"] for row in evaluation}) + 1.2


def evaluation_panels(figure: Figure | Any, evaluation: Sequence[MetricRow], confidence: float) -> None:
    """Every metric of every variant with its interval, one panel for each metric."""
    metrics = list(dict.fromkeys(row["metric"] for row in evaluation))
    note = f"bars: {confidence:.0%} bootstrap intervals over questions"
    if any(differs(row) for row in evaluation):
        note += ";  *: the paired difference to the target as it came excludes 0"
    figure.supxlabel(note, fontsize=8.5, color=SOFT)
    grid = figure.subplots(1, len(metrics), squeeze=False)
    for axes, metric in zip(grid[0], metrics, strict=True):
        rows = [row for row in evaluation if row["metric"] == metric]
        panels.draw_intervals(axes, rows, value_text=lambda row: f"{row['value']:.2f}{'*' if differs(row) else ''}")
        axes.set_title(metric_label(metric))
        axes.set_xlabel(plural(rows[0]["n"], "test question"))
