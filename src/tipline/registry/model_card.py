"""What MLflow's pages say about a model: figures and a note on its training run, a card on its version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from tipline import files
from tipline.errors import hide_secrets
from tipline.ingest.columns import get_baseline_columns
from tipline.ingest.schema import load_schema
from tipline.model import artifact, pyfunc
from tipline.registry import champion, model_versions, runs, store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Run, Version

END = "*Written by `tipline record`; text below this line is kept.*"
# A registry on PostgreSQL takes so many letters of a description.
DESCRIPTION_LETTERS = 5000
FILTERS = {
    "number": lambda value: "-" if value is None else f"{value:.4f}",
    "percent": lambda value: "-" if value is None else f"{value:.1%}",
    "thousands": lambda value: f"{value:,.0f}",
}


@dataclass(frozen=True)
class ModelEntry:
    """A model in models/, and what MLflow has of it: a model trained in an experiment's copy has no version."""

    folder: Path
    digest: str
    version: Version | None
    run: Run | None

    @property
    def link(self) -> str:
        """A link to the version's page, or else to the run's; the digest without either."""
        if self.version is not None:
            name, number = self.version.name, self.version.version
            return f"[{name} version {number}](#/models/{quote(name)}/versions/{number})"
        return runs.format_run_link(self.run.info.run_name, self.run) if self.run else self.digest[:12]


def find_entry(client: Client, paths: Paths, name: str, folder: Path) -> ModelEntry:
    """Look a model up in MLflow."""
    digest, experiment = artifact.read_digest(folder), store.ensure_experiment(client, paths, "train")
    version = model_versions.find_version(client, name, digest)
    return ModelEntry(folder, digest, version, store.find_runs(client, experiment, digest).get(digest))


def describe_model(
    client: Client, settings: Settings, paths: Paths, entry: ModelEntry, role: str, links: Mapping[str, str]
) -> None:
    """Bring a model's training run and version up to date; an experiment's copy leaves versions alone.

    Parameters
    ----------
    role
        `challenger` or `champion`: which of the two the model is in reports/evaluation.json.
    links
        Links to the runs of the evaluation and, by month, of the months.
    """
    report = files.read_json(paths.evaluation, runs.TODO)
    facts = collect_facts(settings, paths, entry, report, role) | {"links": links}
    if entry.run is not None:
        describe_run(client, paths, entry.run, report, role, f"{entry.link}: {facts['summary']}")
    if entry.version is not None and not paths.is_experiment_copy:
        tags = {"tipline.worth": report["worth"]} if entry.digest == report["made"]["challenger"] else {}
        tags |= {model_versions.VERDICT: facts["verdict"]} if role == "challenger" else {}
        model_versions.tag_version(client, entry.version, tags)
        text = merge_text(entry.version.description, render_card(facts))
        if text != entry.version.description:
            client.update_model_version(entry.version.name, str(entry.version.version), text)


def describe_run(client: Client, paths: Paths, run: Run, report: Mapping[str, Any], role: str, note: str) -> None:
    """Put the evaluation on a training run, where models are compared."""
    metrics, run_id = runs.collect_test_metrics(report, role), run.info.run_id
    changed = {name: value for name, value in metrics.items() if value not in {None, run.data.metrics.get(name)}}
    if changed:
        runs.log_metrics(client, run_id, {0: changed})
        client.log_artifact(run_id, str(paths.evaluation.with_suffix(".png")))
    tags = {runs.NOTE: merge_text(run.data.tags.get(runs.NOTE), note), "test.months": ", ".join(report["months"])}
    for name, value in tags.items():
        if run.data.tags.get(name) != value:
            client.set_tag(run_id, name, value)


def collect_facts(
    settings: Settings, paths: Paths, entry: ModelEntry, report: Mapping[str, Any], role: str
) -> dict[str, Any]:
    """Return what the card is rendered from."""
    spec = files.read_json(entry.folder / pyfunc.SPEC, runs.TODO)
    training = files.try_read_json(entry.folder / artifact.TRAINING) or {}
    scored = champion.list_scored_months(paths, settings.months, entry.digest)
    months, baseline = (
        files.read_json(paths.monitoring / "months.json", runs.TODO),
        get_baseline_columns(spec["baseline"]),
    )
    skills = {group: figures[role] for group, figures in report["groups"].items()}
    # The champion keeps the verdict of its promotion.
    kept = entry.version.tags.get(model_versions.VERDICT) if entry.version else None
    verdict = report["gate"]["words"] if role == "challenger" else kept
    skill, tested = FILTERS["percent"](report[role]["skill"]), ", ".join(report["months"])
    return {
        "digest": entry.digest,
        "name": training.get("name") or spec.get("name") or entry.digest[:12],
        "summary": f"skill {skill} on {tested} over the rate by {' and '.join(baseline)}. {verdict or ''}".strip(),
        "verdict": verdict,
        "spec": spec,
        "training": training,
        "report": report,
        "figures": {**report[role], "baseline_log_loss": report["baseline"]["log_loss"]},
        "skills": {group: value for group, value in skills.items() if value is not None},
        "unjudged": [group for group, value in skills.items() if value is None],
        "baseline": " and ".join(baseline),
        "calibration": (spec.get("calibration") or {}).get("method"),
        "tips": report["tips"][role],
        "months": [month for month in months if month["month"] in scored],
        "roles": {**(spec.get("months") or {}), "test": report["months"]},
        "source": hide_secrets(settings.source),
        "meaning": load_schema(paths.root / settings.schema_).columns[settings.model.target].meaning,
        "tags": entry.run.data.tags if entry.run else {},
        "training_link": runs.format_run_link("training", entry.run) if entry.run else None,
    }


def render_card(facts: Mapping[str, Any]) -> str:
    """Return the card of a version as Markdown; MLflow's list of versions shows its first line.

    In lists, because MLflow's page draws tables without space between their columns.
    """
    environment = Environment(
        loader=PackageLoader("tipline.registry", "."),
        autoescape=False,  # noqa: S701 (Markdown; MLflow's page removes HTML)
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= FILTERS
    return environment.get_template("model_card.md.j2").render(facts).strip()


def merge_text(existing: str | None, text: str) -> str:
    """Replace tipline's part of a description; what a person wrote is kept below it."""
    before, end, after = (existing or "").partition(END)
    kept = after.strip() if end else before.strip()
    ending = f"\n\n{END}" + (f"\n\n{kept}" if kept else "")
    return text[: max(DESCRIPTION_LETTERS - len(ending), 0)] + ending


def describe_registered_model(client: Client, settings: Settings) -> None:
    """Describe the registered model, unless someone has."""
    name = settings.model.name
    if not client.get_registered_model(name).description:
        client.update_registered_model(
            name,
            f"The probability that `{settings.model.target}` of a trip is above zero. The version with the alias "
            "`champion` scores: move it, and the next `dvc repro` follows. Each version's description is its card.",
        )
