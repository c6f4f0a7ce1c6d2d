"""record: curve, evaluation and months mirrored into MLflow, each once.

Runs at every `dvc repro`, because DVC brings reports back from its cache without running the stages that made them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tipline import files, modelfiles, registry, tracking
from tipline.layout import month_folder
from tipline.tracking import Entry

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)

AGAIN = "Run: dvc repro"


def run(settings: Settings, layout: Layout) -> None:
    """Make the runs that are not there yet."""
    with tracking.connect(layout) as client:
        entries = [curve(settings, layout), evaluation(settings, layout), *months(settings, layout)]
        for entry in entries:
            tracking.record(client, layout, entry)
        describe_challenger(client, settings, layout)
    log.info("MLflow has the learning curve, the evaluation and %s months", len(entries) - 2)


def curve(settings: Settings, layout: Layout) -> Entry:
    """The study as a parent run, with lines over the sizes, and each size as a child."""
    decision = files.read_json(layout.learning_curve.with_suffix(".json"), AGAIN)
    params = {"estimator": settings.train.estimator, "columns": ", ".join(settings.model.columns)}
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
        f"{settings.train.estimator}: {decision['rows']:,} rows",
        files.digest_of(decision | {"sizes": [repeatable(size) for size in decision["sizes"]]}),
        params | {name: decision[name] for name in ("min_gain", "rows", "segment")},
        {"chosen_rows": decision["rows"], "bytes_a_row": decision["bytes_a_row"]},
        {"mlflow.note.content": "\n\n".join(filter(None, (decision["reason"], decision["sanity"])))},
        {size["rows"]: figures(size) for size in decision["sizes"]},
        [layout.learning_curve, layout.learning_curve.with_suffix(".png")],
        children,
    )


def figures(size: dict[str, Any]) -> dict[str, Any]:
    """The figures of a size, as metrics."""
    return {name: value for name, value in size.items() if name != "rows"}


def repeatable(size: dict[str, Any]) -> dict[str, Any]:
    """The figures of a size that are the same when the study is made again: all but the seconds of a fit."""
    return {name: value for name, value in size.items() if name != "fit_seconds"}


def evaluation(settings: Settings, layout: Layout) -> Entry:
    """Challenger, champion, baseline and majority on the months kept for it."""
    report = files.read_json(layout.evaluation, AGAIN)
    digests = {role: modelfiles.digest_in(folder) for role, folder in models(layout).items()}
    kinds = ("challenger", "champion", "baseline", "majority")
    return Entry(
        "evaluate",
        f"{settings.train.estimator} on {', '.join(report['months'])}",
        files.digest_of([report, digests]),
        {"months": ", ".join(report["months"]), "rows": report["rows"]}
        | {f"{role}_digest": digest[:12] for role, digest in digests.items()},
        {f"{kind}.{name}": value for kind in kinds for name, value in report[kind].items()} | of_gate(report["gate"]),
        {"mlflow.note.content": f"{report['verdict']} {report['gate']['words']}"},
        artifacts=[layout.evaluation, layout.evaluation.with_suffix(".png")],
    )


def of_gate(verdict: dict[str, Any]) -> dict[str, float | None]:
    """The gate's figures."""
    gain = verdict["gain"] or {"value": None, "lower": None}
    figures = {"gain": gain["value"], "gain_lower": gain["lower"], "power": verdict["power"]}
    return {f"gate.{name}": value for name, value in {**figures, "promote": float(verdict["promote"])}.items()}


def models(layout: Layout) -> dict[str, Any]:
    """The folders of the two models."""
    return {"challenger": layout.challenger, "champion": layout.champion}


def months(settings: Settings, layout: Layout) -> list[Entry]:
    """A run for each scored month; scored again with another model it is another run."""
    figures = files.read_json(layout.monitoring / "months.json", AGAIN)
    return [of_month(layout, month) for month in figures if month["month"] in settings.months]


def of_month(layout: Layout, month: dict[str, Any]) -> Entry:
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
        f"{month['month']}, version {version}",
        files.digest_of([month, receipt["key"]]),
        params | {"model_digest": receipt["key"]["model"][:12]},
        values | psi,
        {"mlflow.note.content": f"{month['verdict']}: {month['reason']}", "tipline.verdict": month["verdict"]},
        artifacts=[layout.monitoring / name for name in ("index.html", "monitoring.png")],
    )


def describe_challenger(client: MlflowClient, settings: Settings, layout: Layout) -> None:
    """Put the challenger's evaluation on its training run too: that is where models are compared."""
    found = registry.versions(client, settings.register_.name, modelfiles.digest_in(layout.challenger))
    report = files.read_json(layout.evaluation, AGAIN)
    values = {f"evaluate.{name}": value for name, value in report["challenger"].items()}
    for version in found[:1]:
        describe_verdict(client, version, report)
        if "evaluate.log_loss" not in client.get_run(version.run_id).data.metrics:
            tracking.log_batch(client, version.run_id, values, {"evaluate.months": ", ".join(report["months"])})
            client.log_artifact(version.run_id, str(layout.evaluation.with_suffix(".png")))
            # In words too, where a person looks before promoting.
            client.set_tag(version.run_id, "tipline.worth", report["worth"])
            client.set_model_version_tag(version.name, str(version.version), "tipline.worth", report["worth"])


def describe_verdict(client: MlflowClient, version: ModelVersion, report: dict[str, Any]) -> None:
    """Put the gate's verdict on a version and its run; a champion keeps the one that it was promoted with."""
    made, words = report["made"], report["gate"]["words"]
    if made["challenger"] == made["champion"] or version.tags.get(registry.VERDICT) == words:
        return
    tracking.log_batch(client, version.run_id, of_gate(report["gate"]), {})
    client.set_tag(version.run_id, registry.VERDICT, words)
    client.set_model_version_tag(version.name, str(version.version), registry.VERDICT, words)
