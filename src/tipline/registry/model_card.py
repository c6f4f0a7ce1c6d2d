"""The model card of a version, as MLflow's page shows it: from the files of the model and of its evaluation.

In lists, because MLflow's page draws tables without space between their columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tipline.ingest.columns import get_baseline_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

END = "*Written by `tipline record`; what stands below this line is kept.*"
# What a registry on PostgreSQL takes of a description.
LIMIT = 5000
MONTHS = 6
LINEAGE = {"git": "tipline.git", "DVC stage": "dvc.stage", "DVC experiment": "dvc.exp"}


@dataclass(frozen=True)
class Facts:
    """What a card is written from."""

    digest: str
    spec: Mapping[str, Any]  # model.json
    training: Mapping[str, Any]  # training.json; empty for a model that tipline did not make
    report: Mapping[str, Any]  # reports/evaluation.json
    role: str  # which of the two it is in the report
    verdict: str | None  # what the gate said of it last, None where it was never asked
    source: str  # where the months come from
    meaning: str  # what the schema says of the target
    months: Sequence[Mapping[str, Any]]  # those of reports/monitoring/months.json that it has scored
    tags: Mapping[str, str]  # of its training run
    links: Mapping[str, str]  # markdown, to the runs of its training, its evaluation and, by month, its months


def render_version_card(facts: Facts) -> str:
    """The card, in markdown; its first line is all that the list of versions shows."""
    figures, judged_on = facts.report[facts.role], ", ".join(facts.report["months"])
    sections = {
        "Figures": [*trained(facts), *evaluated(facts)],
        "Calibration": calibration(facts),
        "The gate": [facts.verdict or "Not asked: it was the first, or is judged against itself."],
        "Months scored": list(scored(facts)),
        "Data": list(data(facts)),
        "Limits": list(limits(facts)),
        "Lineage": list(lineage(facts)),
    }
    first = f"skill {percent(figures['skill'])} on {judged_on}: {name(facts)}"
    return "\n\n".join([first, *(section(title, lines) for title, lines in sections.items() if lines)])


def section(title: str, lines: Sequence[str]) -> str:
    """A heading and a list."""
    return f"### {title}\n\n" + "\n".join(f"- {line}" for line in lines)


def render_run_note(facts: Facts, link: str) -> str:
    """What is said on the run of its training."""
    skill = f"skill {percent(facts.report[facts.role]['skill'])} on {', '.join(facts.report['months'])}"
    return " ".join(filter(None, (f"{link}: {skill} over the tip rate by {by(facts)}.", facts.verdict)))


def render_model_description(target: str) -> str:
    """What is said of the registered model as a whole."""
    return (
        f"How likely `{target}` of a trip is to be above zero. The version that has the alias `champion` scores: move "
        "it, and the next `dvc repro` follows. Each version's description is its card."
    )


def merge_note(there: str | None, text: str) -> str:
    """A description with our text in it brought up to date; what a person wrote is kept, below it."""
    before, end, after = (there or "").partition(END)
    kept = after.strip() if end else before.strip()
    ending = f"\n\n{END}" + (f"\n\n{kept}" if kept else "")
    return text[: max(LIMIT - len(ending), 0)] + ending


def name(facts: Facts) -> str:
    """What the model is called."""
    return str(facts.training.get("name") or facts.spec.get("name") or facts.digest[:12])


def by(facts: Facts) -> str:
    """What the baseline goes by."""
    return " and ".join(get_baseline_columns(facts.spec["baseline"]))


def trained(facts: Facts) -> Iterator[str]:
    """Figures on the training rows."""
    if facts.training:
        found = {key.removeprefix("train."): value for key, value in facts.training["metrics"].items()}
        yield told("training", facts.training["params"]["months"], facts.training["params"]["rows"], found)


def evaluated(facts: Facts) -> Iterator[str]:
    """Figures on the months kept for it, by group too."""
    report = facts.report
    found = {**report[facts.role], "baseline_log_loss": report["baseline"]["log_loss"]}
    yield told("evaluation", ", ".join(report["months"]), report["rows"], found)
    yield f"The baseline is the tip rate by {by(facts)}; skill is what the model takes off its log-loss."
    skills = {group: of[facts.role] for group, of in report["groups"].items() if of[facts.role] is not None}
    if skills:
        yield "Skill by group: " + ", ".join(f"{group} {percent(skill)}" for group, skill in skills.items())


def told(kind: str, months: str, rows: int, of: Mapping[str, float | None]) -> str:
    """A line of figures."""
    losses = f"log-loss {number(of['log_loss'])}, the baseline's {number(of['baseline_log_loss'])}"
    return f"**{kind}**, {months}, {rows:,} rows: {losses}, **skill {percent(of['skill'])}**, AUC {number(of['auc'])}"


def calibration(facts: Facts) -> list[str]:
    """How it was calibrated, and how many tips it expects for those that there were."""
    method, tips = (facts.spec.get("calibration") or {}).get("method"), facts.report["tips"][facts.role]
    lines = [f"{method}, fitted on {', '.join(facts.spec['months']['validation'])}" if method else "none was fitted"]
    if tips:
        ratio = f"ratio {number(tips['ratio'])} ({number(tips['lower'])} to {number(tips['upper'])}, 95%, by day)"
        lines.append(
            f"on the evaluation's rows: {tips['expected']:,.0f} tips expected, {tips['there']:,.0f} there; {ratio}"
        )
    return lines


def scored(facts: Facts) -> Iterator[str]:
    """The last months."""
    if len(facts.months) > MONTHS:
        yield f"{len(facts.months)} months, of which the last {MONTHS}:"
    for month in facts.months[-MONTHS:]:
        words = f"{month['rows']:,} rows, skill {percent(month['skill'])}, {month['verdict']}"
        drifted = f"; drift: {month['drifted'].replace(';', ',')}" if month["drifted"] else ""
        yield f"{facts.links.get(month['month'], month['month'])}: {words}{drifted}"


def data(facts: Facts) -> Iterator[str]:
    """Where the rows come from, and what each month was for."""
    yield f"source: {facts.source}"
    made_on = {**(facts.spec.get("months") or {}), "test": facts.report["months"]}
    yield "; ".join(f"{role}: {', '.join(months)}" for role, months in made_on.items() if months)
    yield "columns: " + ", ".join(feature["name"] for feature in facts.spec["features"])


def limits(facts: Facts) -> Iterator[str]:
    """What it cannot know."""
    yield f"It predicts whether `{facts.spec['target']}` is above zero: {facts.meaning}."
    yield (
        f"Judged on {', '.join(facts.report['months'])} alone: says nothing of months to come, whose prices, vendors "
        "or habits may be others; reports/monitoring/ tells of drift."
    )
    small = [group for group, of in facts.report["groups"].items() if of[facts.role] is None]
    if small:
        yield f"Not judged by itself: {', '.join(small)}."
    yield from facts.training.get("warnings", ())


def lineage(facts: Facts) -> Iterator[str]:
    """What it was made from, by what, where."""
    if not facts.training:
        yield "not made by tipline"
    yield f"digest `{facts.digest}`"
    if "data" in facts.training:
        yield f"training sample `{facts.training['data']}`"
    yield from (f"{what}: {facts.tags[tag]}" for what, tag in LINEAGE.items() if tag in facts.tags)
    if "libraries" in facts.training:
        yield ", ".join(f"{package} {number}" for package, number in facts.training["libraries"].items())
    yield from (link for label, link in facts.links.items() if label in {"training", "evaluation"})


def number(value: float | None) -> str:
    """A figure."""
    return "-" if value is None else f"{value:.4f}"


def percent(value: float | None) -> str:
    """A share."""
    return "-" if value is None else f"{value:.1%}"
