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
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Run, Version

END = "*Written by `tipline record`; text below this line is kept.*"
DESCRIPTION_LETTERS = 5000  # a registry on PostgreSQL takes no more
FILTERS: dict[str, Callable[[Any], str]] = {
    "number": lambda value: "-" if value is None else f"{value:.4f}",
    "percent": lambda value: "-" if value is None else f"{value:.1%}",
    "thousands": lambda value: f"{value:,.0f}",
}


@dataclass(frozen=True)
class ModelEntry:
    """The challenger or the champion, and what MLflow has of it; a trial in an experiment's copy has no version."""

    role: str
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


def find_entry(client: Client, paths: Paths, name: str, role: str) -> ModelEntry:
    """Look the challenger or the champion up in MLflow."""
    folder: Path = getattr(paths, role)
    digest, experiment = artifact.read_digest(folder), store.ensure_experiment(client, paths, "train")
    version = model_versions.find_version(client, name, digest)
    return ModelEntry(role, folder, digest, version, store.find_runs(client, experiment, digest).get(digest))


def describe_model(
    client: Client, settings: Settings, paths: Paths, entry: ModelEntry, links: Mapping[str, str]
) -> None:
    """Bring a model's training run and version up to date; an experiment's copy leaves versions alone.

    `links` are links to the runs of the evaluation and, by month, of the months.
    """
    report, run, version = files.read_json(paths.evaluation, runs.TODO), entry.run, entry.version
    tested, figures, skill = ", ".join(report["months"]), report[entry.role], FILTERS["percent"]
    verdict = version.tags.get(model_versions.VERDICT) if version else None  # the champion keeps that of its promotion
    tags = {"tipline.worth": report["worth"]} if entry.digest == report["made"]["challenger"] else {}
    if entry.role == "challenger":
        verdict = tags[model_versions.VERDICT] = report["gate"]["words"]
    facts = collect_facts(settings, paths, entry) | {"report": report, "verdict": verdict, "links": links}
    if run is not None:  # where models are compared
        metrics = runs.collect_test_metrics(report, entry.role)
        changed = {name: value for name, value in metrics.items() if value not in {None, run.data.metrics.get(name)}}
        if changed:
            runs.log_metrics(client, run.info.run_id, {0: changed}, {})
            client.log_artifact(run.info.run_id, str(paths.evaluation.with_suffix(".png")))
        note = f"{entry.link}: skill {skill(figures['skill'])} on {tested} over the rate by {facts['baseline']}."
        text = merge_text(run.data.tags.get(runs.NOTE), f"{note} {verdict or ''}".strip())
        for name, value in {runs.NOTE: text, "test.months": tested}.items():
            if run.data.tags.get(name) != value:
                client.set_tag(run.info.run_id, name, value)
    if version is not None and not paths.is_experiment_copy:
        model_versions.tag_version(client, version, tags)
        text = merge_text(version.description, render_card(facts))
        if text != version.description:
            client.update_model_version(version.name, str(version.version), text)


def collect_facts(settings: Settings, paths: Paths, entry: ModelEntry) -> dict[str, Any]:
    """Return what the card says beside the report."""
    spec = files.read_json(entry.folder / pyfunc.SPEC, runs.TODO)
    training = files.try_read_json(entry.folder / artifact.TRAINING) or {}
    months, schema = (
        files.read_json(paths.monitoring / "months.json", runs.TODO),
        load_schema(paths.root / settings.schema_),
    )
    scored = champion.list_scored_months(paths, settings.months, entry.digest)
    return {
        "role": entry.role,
        "digest": entry.digest,
        "name": training.get("name") or spec.get("name") or entry.digest[:12],
        "spec": spec,
        "training": training,
        "baseline": " and ".join(get_baseline_columns(spec["baseline"])),
        "months": [month for month in months if month["month"] in scored],
        "source": hide_secrets(settings.source),
        "meanings": {name: schema.columns[name].meaning for name in spec["target_columns"] if name in schema.columns},
        "tags": entry.run.data.tags if entry.run else {},
        "training_link": runs.format_run_link("training", entry.run) if entry.run else None,
    }


def render_card(facts: Mapping[str, Any]) -> str:
    """Return the card of a version as Markdown; MLflow's list of versions shows its first line.

    In lists, because MLflow's page draws tables without space between their columns.
    """
    loader = PackageLoader("tipline.registry", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)  # noqa: S701 (Markdown)
    environment.filters |= FILTERS
    return environment.get_template("model_card.md.j2").render(facts).strip()


def merge_text(existing: str | None, text: str) -> str:
    """Replace tipline's part of a description; what a person wrote is kept below it."""
    before, end, after = (existing or "").partition(END)
    kept = after.strip() if end else before.strip()
    ending = f"\n\n{END}" + (f"\n\n{kept}" if kept else "")
    return text[: max(DESCRIPTION_LETTERS - len(ending), 0)] + ending
