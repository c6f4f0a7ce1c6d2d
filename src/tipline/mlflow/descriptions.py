"""What is said of a model where models are compared and promoted: on its training run and on its version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tipline import files, pyfunc
from tipline.errors import hide
from tipline.mlflow import card, champion, registry, tracking
from tipline.mlflow.entries import AGAIN, NOTE, evaluated, link_to
from tipline.models import modelfiles
from tipline.months import contract

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.layout import Layout
    from tipline.mlflow.entries import Model
    from tipline.mlflow.tracking import Client, Version
    from tipline.params import Settings


def facts(settings: Settings, layout: Layout, model: Model, role: str, links: Mapping[str, str]) -> card.Facts:
    """All that is told of a model."""
    report, target = files.read_json(layout.evaluation, AGAIN), settings.model.target
    scored = champion.scored(layout, settings.months, model.digest)
    return card.Facts(
        model.digest,
        files.read_json(model.folder / pyfunc.SPEC, AGAIN),
        files.read_json_if_any(model.folder / modelfiles.TRAINING) or {},
        report,
        role,
        report["gate"]["words"] if role == "challenger" else model.version and model.version.tags.get(registry.VERDICT),
        hide(settings.source),
        contract.load(layout.root / settings.contract).columns[target].meaning,
        [month for month in files.read_json(layout.monitoring / "months.json", AGAIN) if month["month"] in scored],
        model.run.data.tags if model.run else {},
        {**links, **({"training": link_to("training", model.run)} if model.run else {})},
    )


def describe(client: Client, layout: Layout, model: Model, told: card.Facts) -> None:
    """Put a model's evaluation on its training run, where models are compared; what is there already is left."""
    if run := model.run:
        values = evaluated(told.report, told.role)
        new = {name: value for name, value in values.items() if value not in {None, run.data.metrics.get(name)}}
        if new:
            tracking.log_batch(client, run.info.run_id, new, {})
            client.log_artifact(run.info.run_id, str(layout.evaluation.with_suffix(".png")))
        note = card.merged(run.data.tags.get(NOTE), card.note(told, model.link))
        tags = {NOTE: note, "evaluate.months": ", ".join(told.report["months"])}
        for name, value in changed(tags, run.data.tags).items():
            client.set_tag(run.info.run_id, name, value)
    if model.version is not None and not layout.temporary:
        describe_version(client, model.version, told)


def describe_version(client: Client, version: Version, told: card.Facts) -> None:
    """Put a model's card and the gate's verdict on its version; a champion keeps the one that it was promoted with."""
    report = told.report
    tags = {"tipline.worth": report["worth"]} if told.digest == report["made"]["challenger"] else {}
    if told.role == "challenger":
        tags[registry.VERDICT] = report["gate"]["words"]
    registry.tag(client, version, changed(tags, version.tags))
    text = card.merged(version.description, card.version(told))
    if text != version.description:
        client.update_model_version(version.name, str(version.version), text)


def changed(wanted: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    """The tags that are to be set."""
    return {name: value for name, value in wanted.items() if there.get(name) != value}


def introduce(client: Client, settings: Settings) -> None:
    """Say what the registered model is, unless somebody has."""
    name = settings.register_.name
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, card.model(settings.model.target))
