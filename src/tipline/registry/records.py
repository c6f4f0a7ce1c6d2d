"""What MLflow shows of curve, evaluation and months: each an entry, made from the reports, that is recorded once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tipline import files
from tipline.model import artifact
from tipline.paths import month_folder
from tipline.registry import model_versions, store, training_runs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Run, Version

AGAIN = "Run: dvc repro"
NOTE = "mlflow.note.content"
MONITOR = "monitor"
FIGURES = ("log_loss", "skill", "auc")
# Figures of the learning curve that MLflow's page, which draws each, would be long with.
IN_TABLE = (".brier", ".segment.auc", "well_specified_nats")


@dataclass(frozen=True)
class Entry:
    """What one run in MLflow shows."""

    experiment: str
    name: str
    digest: str  # of what the run tells: a run with this digest is not made again
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    series: Mapping[int, Mapping[str, float | None]] = field(default_factory=dict)  # by step, drawn as a line
    artifacts: Sequence[Path] = ()
    children: Sequence[Entry] = ()  # shown below this one


def record_entry(client: Client, paths: Paths, entry: Entry, parent: str | None = None) -> str:
    """Mirror an entry into MLflow unless a run with its digest is there; return the run's id."""
    experiment = store.ensure_experiment(client, paths, entry.experiment)
    found = store.find_run(client, experiment, entry.digest, parent)
    if found is not None and store.is_finished(found):
        if entry.experiment != MONITOR:  # no experiment has scored these months
            store.add_experiment_name(client, found)
        return str(found.info.run_id)
    below = {store.PARENT: parent} if parent else {}
    tags = {**store.collect_lineage("record"), store.DIGEST: entry.digest, **entry.tags, **below}
    with store.open_run(client, experiment, entry.name, tags, found) as run:
        store.log_batch(client, run, entry.metrics, entry.params)
        for step, metrics in entry.series.items():
            store.log_batch(client, run, metrics, {}, step)
        for path in entry.artifacts:
            client.log_artifact(run, str(path))
        for child in entry.children:
            record_entry(client, paths, child, run)
    return run


@dataclass(frozen=True)
class Model:
    """Challenger or champion, and what MLflow has of it: an experiment's challenger has no version."""

    folder: Path
    digest: str
    version: Version | None
    run: Run | None

    @classmethod
    def of(cls, client: Client, settings: Settings, paths: Paths, folder: Path) -> Model:
        """The model in a folder."""
        digest = artifact.read_digest(folder)
        version = model_versions.find_version(client, settings.model.name, digest)
        experiment = store.ensure_experiment(client, paths, training_runs.EXPERIMENT)
        return cls(folder, digest, version, store.find_run(client, experiment, digest))

    @property
    def link(self) -> str:
        """To the version's page, else to the run's; in words where there is neither."""
        if self.version is not None:
            name, number = self.version.name, self.version.version
            return f"[{name} version {number}](#/models/{quote(name)}/versions/{number})"
        return format_run_link(self.run.info.run_name, self.run) if self.run else self.digest[:12]


def format_run_link(text: str, run: Run) -> str:
    """To a run's page."""
    return f"[{text}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"


def build_curve_entry(settings: Settings, paths: Paths) -> Entry:
    """The study as a parent run, with lines over the sizes, and each size as a child."""
    decision = files.read_json(paths.learning_curve.with_suffix(".json"), AGAIN)
    params = artifact.describe_settings(settings) | {"months": ", ".join(settings.sample.get_months("train"))}
    # All but the seconds of a fit, which are others when the study is made again.
    sizes = {
        size["rows"]: {name: value for name, value in size.items() if name != "fit_seconds"}
        for size in decision["sizes"]
    }
    figures = {size["rows"]: shown(size) for size in decision["sizes"]}
    return Entry(
        "learning_curve",
        artifact.format_title(settings, decision["rows"]),
        files.hash_json(decision | {"sizes": list(sizes.values())}),
        params | {name: decision[name] for name in ("min_gain", "rows", "segment")},
        {f"{of}.baseline_log_loss": decision["baseline"][f"{of}.log_loss"] for of in ("held_out", "validation")},
        {NOTE: "\n\n".join(filter(None, (decision["reason"], decision["sanity"])))},
        figures,
        [paths.learning_curve, paths.learning_curve.with_suffix(".png")],
        [
            Entry("learning_curve", f"{rows:,} rows", files.hash_json(size), {"rows": rows, **params}, figures[rows])
            for rows, size in sizes.items()
        ],
    )


def shown(size: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a size, as metrics; those that only few will look for are in the run's table."""
    return {name: value for name, value in size.items() if name != "rows" and not name.endswith(IN_TABLE)}


def build_evaluation_entry(settings: Settings, paths: Paths, both: Mapping[str, Model]) -> Entry:
    """Challenger, champion, baseline and majority on the months kept for it."""
    report = files.read_json(paths.evaluation, AGAIN)
    digests = {role: model.digest for role, model in both.items()}
    links = " · ".join(f"{role}: {model.link}" for role, model in both.items())
    of_champion = {f"test.champion_{name}": report["champion"][name] for name in FIGURES}
    majority = {"test.majority_log_loss": report["majority"]["log_loss"]}
    return Entry(
        "evaluate",
        f"{settings.train.estimator} on {', '.join(report['months'])}",
        files.hash_json([report, digests]),
        {"months": ", ".join(report["months"]), "rows": report["rows"]}
        | {f"{role}_digest": digest[:12] for role, digest in digests.items()},
        collect_evaluation_metrics(report, "challenger") | of_champion | majority,
        {NOTE: f"{report['verdict']} {report['gate']['words']}\n\n{links}"},
        artifacts=[paths.evaluation, paths.evaluation.with_suffix(".png")],
    )


def collect_evaluation_metrics(report: Mapping[str, Any], role: str) -> dict[str, float | None]:
    """A model's figures on the months kept for it, by the names that those of the training have; the gate's, too."""
    of_model = {f"test.{name}": report[role][name] for name in FIGURES}
    of_model["test.baseline_log_loss"] = report["baseline"]["log_loss"]
    if role != "challenger":
        return of_model
    verdict = report["gate"]
    gain = verdict["gain"] or {"value": None, "lower": None}
    return of_model | {
        "gate.gain": gain["value"],
        "gate.gain_lower": gain["lower"],
        "gate.promote": float(verdict["promote"]),
    }


def build_month_entries(settings: Settings, paths: Paths, champion: Model) -> dict[str, Entry]:
    """A run for each scored month; scored again with another model it is another run."""
    figures = files.read_json(paths.monitoring / "months.json", AGAIN)
    return {month["month"]: of_month(paths, month, champion) for month in figures if month["month"] in settings.months}


def of_month(paths: Paths, month: Mapping[str, Any], champion: Model) -> Entry:
    """The figures of one month, and what they were made from."""
    manifest = files.read_json(month_folder(paths.predictions, month["month"]) / files.MANIFEST, AGAIN)
    # The champion's number, not the manifest's: a registry that was lost has given the same model another one.
    version = files.read_json(paths.champion_ref, AGAIN)["version"]
    of_features = {**month["drift"]["features"], "score": month["drift"]["score"]} if month["drift"] else {}
    psi = {f"psi.{name}": found["psi"] for name, found in of_features.items()}
    values = {name: value for name, value in month.items() if isinstance(value, (int, float))}
    params = {"month": month["month"], "role": month["role"] or "-", "version": version}
    return Entry(
        MONITOR,
        f"{month['month']}, " + (f"version {version}" if version is not None else f"model {champion.digest[:12]}"),
        files.hash_json([month, manifest["key"]]),
        params | {"model_digest": manifest["key"]["model"][:12]},
        values | psi,
        {NOTE: f"{month['verdict']}: {month['reason']}\n\n{champion.link}", "tipline.verdict": month["verdict"]},
        artifacts=[paths.monitoring / name for name in ("index.html", "monitoring.png")],
    )
