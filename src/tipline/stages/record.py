"""record: curve, evaluation and months mirrored into MLflow, each once.

Runs at every `dvc repro`, because DVC brings reports back from its cache without running the stages that made them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlflow.exceptions import MlflowException

from tipline import files, pyfunc
from tipline.layout import month_folder
from tipline.mlflow import card, promotions, registry, tracking
from tipline.mlflow.tracking import Entry
from tipline.models import modelfiles
from tipline.months import contract

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mlflow.entities import Run, RunInfo
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)

AGAIN = "Run: dvc repro"
NOTE = "mlflow.note.content"
FIGURES = ("log_loss", "skill", "auc")
# Figures of the learning curve that MLflow's page, which draws each, would be long with.
IN_TABLE = (".brier", ".segment.auc", "well_specified_nats")


def run(settings: Settings, layout: Layout) -> None:
    """Make the runs that are not there yet, and bring the words on runs and versions up to date."""
    with tracking.connect(layout) as client, tracking.alone(layout):
        try:
            count = mirror(client, settings, layout)
        except MlflowException as error:
            if not tracking.forbidden(error):
                raise
            log.warning("you may not write to MLflow: what is new is not recorded; who may: dvc repro record")
            return
    log.info("MLflow has the learning curve, the evaluation and %s months", count)


@dataclass(frozen=True)
class Model:
    """One of the two models, and what MLflow has of it: an experiment's challenger has no version."""

    folder: Path
    digest: str
    version: ModelVersion | None
    run: Run | None

    @property
    def link(self) -> str:
        """To the version's page, else to the run's; in words where there is neither."""
        if self.version is not None:
            name, number = self.version.name, self.version.version
            return f"[{name} version {number}](#/models/{quote(name)}/versions/{number})"
        return link_to(self.run.info.run_name, self.run.info) if self.run else self.digest[:12]


def link_to(text: str, run: RunInfo) -> str:
    """To a run's page."""
    return f"[{text}](#/experiments/{run.experiment_id}/runs/{run.run_id})"


def mirror(client: MlflowClient, settings: Settings, layout: Layout) -> int:
    """Make the runs, tell of both models where they are compared; return how many months there are."""
    both = {role: found(client, settings, layout, folder) for role, folder in models(layout).items()}
    tracking.record(client, layout, curve(settings, layout))
    entries = {"evaluation": evaluation(settings, layout, both), **months(settings, layout, both["champion"])}
    runs = {label: tracking.record(client, layout, entry) for label, entry in entries.items()}
    links = {label: link_to(label, client.get_run(run).info) for label, run in runs.items()}
    # One model in both places is told of as the champion; an experiment's copy of the project leaves that alone.
    for role in {model.digest: role for role, model in both.items()}.values():
        if role == "challenger" or not layout.temporary:
            describe(client, layout, both[role], facts(settings, layout, both[role], role, links))
    if not layout.temporary:
        introduce(client, settings)
    return len(entries) - 1


def found(client: MlflowClient, settings: Settings, layout: Layout, folder: Path) -> Model:
    """What MLflow has of the model in a folder."""
    digest = modelfiles.digest_in(folder)
    versions = registry.versions(client, settings.register_.name, digest)
    run = tracking.find_run(client, tracking.experiment(client, layout, "train"), digest)
    return Model(folder, digest, versions[-1] if versions else None, run)


def curve(settings: Settings, layout: Layout) -> Entry:
    """The study as a parent run, with lines over the sizes, and each size as a child."""
    decision = files.read_json(layout.learning_curve.with_suffix(".json"), AGAIN)
    params = modelfiles.told(settings) | {"months": ", ".join(settings.sample.of("fit"))}
    children = [
        Entry(
            "learning_curve",
            f"{size['rows']:,} rows",
            files.digest_of(repeatable(size)),
            {"rows": size["rows"], **params},
            figures(size),
        )
        for size in decision["sizes"]
    ]
    return Entry(
        "learning_curve",
        modelfiles.title(settings, decision["rows"]),
        files.digest_of(decision | {"sizes": [repeatable(size) for size in decision["sizes"]]}),
        params | {name: decision[name] for name in ("min_gain", "rows", "segment")},
        {f"{of}.baseline_log_loss": decision["baseline"][f"{of}.log_loss"] for of in ("held_out", "size")},
        {NOTE: "\n\n".join(filter(None, (decision["reason"], decision["sanity"])))},
        {size["rows"]: figures(size) for size in decision["sizes"]},
        [layout.learning_curve, layout.learning_curve.with_suffix(".png")],
        children,
    )


def figures(size: dict[str, Any]) -> dict[str, Any]:
    """The figures of a size, as metrics; those that only few will look for are in the run's table."""
    return {name: value for name, value in size.items() if name != "rows" and not name.endswith(IN_TABLE)}


def repeatable(size: dict[str, Any]) -> dict[str, Any]:
    """The figures of a size that are the same when the study is made again: all but the seconds of a fit."""
    return {name: value for name, value in size.items() if name != "fit_seconds"}


def evaluation(settings: Settings, layout: Layout, both: Mapping[str, Model]) -> Entry:
    """Challenger, champion, baseline and majority on the months kept for it."""
    report = files.read_json(layout.evaluation, AGAIN)
    digests = {role: model.digest for role, model in both.items()}
    links = " · ".join(f"{role}: {model.link}" for role, model in both.items())
    of_champion = {f"evaluate.champion_{name}": report["champion"][name] for name in FIGURES}
    majority = {"evaluate.majority_log_loss": report["majority"]["log_loss"]}
    return Entry(
        "evaluate",
        f"{settings.train.estimator} on {', '.join(report['months'])}",
        files.digest_of([report, digests]),
        {"months": ", ".join(report["months"]), "rows": report["rows"]}
        | {f"{role}_digest": digest[:12] for role, digest in digests.items()},
        evaluated(report, "challenger") | of_champion | majority | of_gate(report["gate"]),
        {NOTE: f"{report['verdict']} {report['gate']['words']}\n\n{links}"},
        artifacts=[layout.evaluation, layout.evaluation.with_suffix(".png")],
    )


def evaluated(report: Mapping[str, Any], role: str) -> dict[str, float | None]:
    """A model's figures on the months kept for it, by the names that those of the training have."""
    of_model = {f"evaluate.{name}": report[role][name] for name in FIGURES}
    return of_model | {"evaluate.baseline_log_loss": report["baseline"]["log_loss"]}


def of_gate(verdict: dict[str, Any]) -> dict[str, float | None]:
    """The gate's figures."""
    gain = verdict["gain"] or {"value": None, "lower": None}
    figures = {"gain": gain["value"], "gain_lower": gain["lower"]}
    return {f"gate.{name}": value for name, value in {**figures, "promote": float(verdict["promote"])}.items()}


def models(layout: Layout) -> dict[str, Any]:
    """The folders of the two models."""
    return {"challenger": layout.challenger, "champion": layout.champion}


def months(settings: Settings, layout: Layout, champion: Model) -> dict[str, Entry]:
    """A run for each scored month; scored again with another model it is another run."""
    figures = files.read_json(layout.monitoring / "months.json", AGAIN)
    return {month["month"]: of_month(layout, month, champion) for month in figures if month["month"] in settings.months}


def of_month(layout: Layout, month: dict[str, Any], champion: Model) -> Entry:
    """The figures of one month, and what they were made from."""
    receipt = files.read_json(month_folder(layout.predictions, month["month"]) / files.RECEIPT, AGAIN)
    # The champion's number, not the receipt's: a registry that was lost has given the same model another one.
    version = files.read_json(layout.ref, AGAIN)["version"]
    of_features = {**month["drift"]["features"], "score": month["drift"]["score"]} if month["drift"] else {}
    psi = {f"psi.{name}": found["psi"] for name, found in of_features.items()}
    values = {name: value for name, value in month.items() if isinstance(value, (int, float))}
    params = {"month": month["month"], "role": month["role"] or "-", "version": version}
    return Entry(
        "monitor",
        f"{month['month']}, " + (f"version {version}" if version is not None else f"model {champion.digest[:12]}"),
        files.digest_of([month, receipt["key"]]),
        params | {"model_digest": receipt["key"]["model"][:12]},
        values | psi,
        {NOTE: f"{month['verdict']}: {month['reason']}\n\n{champion.link}", "tipline.verdict": month["verdict"]},
        artifacts=[layout.monitoring / name for name in ("index.html", "monitoring.png")],
    )


# ---- in words, where models are compared and promoted ----


def facts(settings: Settings, layout: Layout, model: Model, role: str, links: Mapping[str, str]) -> card.Facts:
    """All that is told of a model."""
    report, target = files.read_json(layout.evaluation, AGAIN), settings.model.target
    scored = promotions.scored_by(layout, settings.months, model.digest)
    return card.Facts(
        model.digest,
        files.read_json(model.folder / pyfunc.SPEC, AGAIN),
        files.read_json_if_any(model.folder / modelfiles.TRAINING) or {},
        report,
        role,
        report["gate"]["words"] if role == "challenger" else model.version and model.version.tags.get(registry.VERDICT),
        tracking.without_password(settings.source),
        contract.load(layout.root / settings.contract).columns[target].meaning,
        [month for month in files.read_json(layout.monitoring / "months.json", AGAIN) if month["month"] in scored],
        model.run.data.tags if model.run else {},
        {**links, **({"training": link_to("training", model.run.info)} if model.run else {})},
    )


def describe(client: MlflowClient, layout: Layout, model: Model, told: card.Facts) -> None:
    """Put a model's evaluation on its training run, where models are compared; what is there already is left."""
    run, values = model.run, evaluated(told.report, told.role)
    if told.role == "challenger":
        values |= of_gate(told.report["gate"])
    if run is not None:
        new = {name: value for name, value in values.items() if value not in {None, run.data.metrics.get(name)}}
        if new:
            tracking.log_batch(client, run.info.run_id, new, {})
            client.log_artifact(run.info.run_id, str(layout.evaluation.with_suffix(".png")))
        note = card.merged(run.data.tags.get(NOTE), card.note(told, model.link))
        tags = {NOTE: note, "evaluate.months": ", ".join(told.report["months"])}
        for name, value in changed(tags, run.data.tags):
            client.set_tag(run.info.run_id, name, value)
    if model.version is not None and not layout.temporary:
        describe_version(client, model.version, told)


def describe_version(client: MlflowClient, version: ModelVersion, told: card.Facts) -> None:
    """Put a model's card and the gate's verdict on its version; a champion keeps the one that it was promoted with."""
    name, number, report = version.name, str(version.version), told.report
    tags = {"tipline.worth": report["worth"]} if told.digest == report["made"]["challenger"] else {}
    if told.role == "challenger":
        tags[registry.VERDICT] = report["gate"]["words"]
    for tag, value in changed(tags, version.tags):
        client.set_model_version_tag(name, number, tag, value)
    text = card.merged(version.description, card.version(told))
    if text != version.description:
        client.update_model_version(name, number, text)


def changed(wanted: Mapping[str, str], there: Mapping[str, str]) -> list[tuple[str, str]]:
    """The tags that are to be set."""
    return [(name, value) for name, value in wanted.items() if there.get(name) != value]


def introduce(client: MlflowClient, settings: Settings) -> None:
    """Say what the registered model is, unless somebody has."""
    name = settings.register_.name
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, card.model(settings.model.target))
