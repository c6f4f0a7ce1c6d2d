"""What is said of a model where models are compared and promoted: on its training run and on its version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tipline import files
from tipline.errors import hide_secrets
from tipline.ingest.schema import load_schema
from tipline.model import artifact, pyfunc
from tipline.registry import champion, model_card, model_versions, store
from tipline.registry.records import AGAIN, NOTE, collect_evaluation_metrics, format_run_link

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.records import Model
    from tipline.registry.store import Client, Version


def collect_facts(
    settings: Settings, paths: Paths, model: Model, role: str, links: Mapping[str, str]
) -> model_card.Facts:
    """All that is told of a model."""
    report, target = files.read_json(paths.evaluation, AGAIN), settings.model.target
    scored = champion.list_scored_months(paths, settings.months, model.digest)
    return model_card.Facts(
        model.digest,
        files.read_json(model.folder / pyfunc.SPEC, AGAIN),
        files.try_read_json(model.folder / artifact.TRAINING) or {},
        report,
        role,
        report["gate"]["words"]
        if role == "challenger"
        else model.version and model.version.tags.get(model_versions.VERDICT),
        hide_secrets(settings.source),
        load_schema(paths.root / settings.schema_).columns[target].meaning,
        [month for month in files.read_json(paths.monitoring / "months.json", AGAIN) if month["month"] in scored],
        model.run.data.tags if model.run else {},
        {**links, **({"training": format_run_link("training", model.run)} if model.run else {})},
    )


def describe_model(client: Client, paths: Paths, model: Model, told: model_card.Facts) -> None:
    """Put a model's evaluation on its training run, where models are compared; what is there already is left."""
    if run := model.run:
        values = collect_evaluation_metrics(told.report, told.role)
        new = {name: value for name, value in values.items() if value not in {None, run.data.metrics.get(name)}}
        if new:
            store.log_batch(client, run.info.run_id, new, {})
            client.log_artifact(run.info.run_id, str(paths.evaluation.with_suffix(".png")))
        note = model_card.merge_note(run.data.tags.get(NOTE), model_card.render_run_note(told, model.link))
        tags = {NOTE: note, "test.months": ", ".join(told.report["months"])}
        for name, value in changed(tags, run.data.tags).items():
            client.set_tag(run.info.run_id, name, value)
    if model.version is not None and not paths.is_experiment_copy:
        describe_version(client, model.version, told)


def describe_version(client: Client, version: Version, told: model_card.Facts) -> None:
    """Put a model's card and the gate's verdict on its version; a champion keeps the one that it was promoted with."""
    report = told.report
    tags = {"tipline.worth": report["worth"]} if told.digest == report["made"]["challenger"] else {}
    if told.role == "challenger":
        tags[model_versions.VERDICT] = report["gate"]["words"]
    model_versions.tag_version(client, version, changed(tags, version.tags))
    text = model_card.merge_note(version.description, model_card.render_version_card(told))
    if text != version.description:
        client.update_model_version(version.name, str(version.version), text)


def changed(wanted: Mapping[str, str], there: Mapping[str, str]) -> dict[str, str]:
    """The tags that are to be set."""
    return {name: value for name, value in wanted.items() if there.get(name) != value}


def describe_registered_model(client: Client, settings: Settings) -> None:
    """Say what the registered model is, unless somebody has."""
    name = settings.model.name
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, model_card.render_model_description(settings.model.target))
