"""What MLflow's pages say about a model: figures and a note on its training run, a card on its version."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from tipline import files
from tipline.config import Settings
from tipline.errors import hide_secrets
from tipline.ingest.schema import load_schema
from tipline.model import artifact, pyfunc
from tipline.paths import Paths
from tipline.registry import champion, model_versions, runs, store

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
    digest: str
    version: store.Version | None
    run: store.Run | None

    @property
    def link(self) -> str:
        """A link to the version's page, or else to the run's; the digest without either."""
        if self.version is not None:
            name, number = self.version.name, self.version.version
            return f"[{name} version {number}](#/models/{quote(name)}/versions/{number})"
        return runs.format_run_link(self.run.info.run_name, self.run) if self.run else self.digest[:12]


def find_entry(client: store.Client, paths: Paths, name: str, role: str) -> ModelEntry:
    digest = artifact.read_digest(getattr(paths, role))
    run = store.find_runs(store.ensure_experiment(client, paths, "train"), digest).get(digest)
    return ModelEntry(role, digest, model_versions.find_version(client, name, digest), run)


def describe_model(
    client: store.Client, settings: Settings, paths: Paths, entry: ModelEntry, links: Mapping[str, str]
) -> None:
    """Bring a model's run and version up to date; `links` are links to the runs of the evaluation and of the months."""
    report, run, version = files.read_json(paths.evaluation, runs.TODO), entry.run, entry.version
    verdict = version.tags.get(model_versions.VERDICT) if version else None  # the champion keeps that of its promotion
    if entry.role == "challenger":
        verdict = report["gate"]["words"]
    if run is not None:  # where models are compared
        for name, value in runs.collect_test_metrics(report, entry.role).items():
            if value not in {None, run.data.metrics.get(name)}:
                client.log_metric(run.info.run_id, name, value)
        tested, skill = ", ".join(report["months"]), FILTERS["percent"](report[entry.role]["skill"])
        note = f"{entry.link}: skill {skill} on {tested} over the baseline. {verdict or ''}"
        tags = {runs.NOTE: merge_text(run.data.tags.get(runs.NOTE), note), "test.months": tested}
        for name, text in tags.items():
            if text != run.data.tags.get(name):
                client.set_tag(run.info.run_id, name, text)
        links = {**links, "training": runs.format_run_link("training", run)}
    if version is not None and not paths.is_experiment_copy:
        model_versions.tag_version(client, version, {model_versions.VERDICT: verdict} if verdict else {})
        card = render_card(settings, paths, entry, report=report, verdict=verdict, links=links)
        text = merge_text(version.description, card)
        if text != version.description:
            client.update_model_version(version.name, str(version.version), text)


def render_card(settings: Settings, paths: Paths, entry: ModelEntry, **values: Any) -> str:  # noqa: ANN401 (Jinja's)
    """Return the card of a model; `values` are passed to the template beside those that are read here."""
    folder, schema = getattr(paths, entry.role), load_schema(paths.root / settings.schema_)
    spec = files.read_json(folder / pyfunc.SPEC, runs.TODO)
    scored = champion.read_scored_digests(paths)
    months = files.read_json(paths.monitoring / "months.json", runs.TODO)
    loader = PackageLoader("tipline.registry", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)  # noqa: S701 (Markdown)
    environment.filters |= FILTERS
    card = environment.get_template("model_card.md.j2").render(
        role=entry.role,
        digest=entry.digest,
        spec=spec,
        training=files.try_read_json(folder / artifact.TRAINING) or {},
        baseline=" and ".join(spec["baseline"]["by"]),
        months=[month for month in months if scored.get(month["month"]) == entry.digest],
        source=hide_secrets(settings.source),
        meanings={name: schema.columns[name].meaning for name in spec["target_columns"] if name in schema.columns},
        tags=entry.run.data.tags if entry.run else {},
        **values,
    )
    return card.strip()


def merge_text(existing: str | None, text: str) -> str:
    """Replace tipline's part of a description; what a person wrote is kept below it."""
    before, end, after = (existing or "").partition(END)
    kept = after.strip() if end else before.strip()
    ending = f"\n\n{END}" + (f"\n\n{kept}" if kept else "")
    return text.strip()[: max(DESCRIPTION_LETTERS - len(ending), 0)] + ending
