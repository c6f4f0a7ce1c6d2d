"""record: curve, evaluation and months mirrored into MLflow, each once.

Runs at every `dvc repro`, because DVC brings reports back from its cache without running the stages that made them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline.errors import counted
from tipline.mlflow import descriptions, entries, tracking, trouble
from tipline.mlflow.entries import Model

if TYPE_CHECKING:
    from tipline.layout import Layout
    from tipline.mlflow.tracking import Client
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Make the runs that are not there yet, and bring the words on runs and versions up to date."""
    not_allowed = "what is new is not recorded; who may: dvc repro record"
    with tracking.connect(layout) as client, tracking.alone(layout), trouble.permitted(not_allowed):
        count = mirror(client, settings, layout)
        log.info("MLflow has the learning curve, the evaluation and %s", counted(count, "month"))


def mirror(client: Client, settings: Settings, layout: Layout) -> int:
    """Make the runs, tell of both models where they are compared; return how many months there are."""
    folders = {"challenger": layout.challenger, "champion": layout.champion}
    both = {role: Model.of(client, settings, layout, folder) for role, folder in folders.items()}
    entries.record(client, layout, entries.curve(settings, layout))
    months = entries.months(settings, layout, both["champion"])
    shown = {"evaluation": entries.evaluation(settings, layout, both), **months}
    runs = {label: client.get_run(entries.record(client, layout, entry)) for label, entry in shown.items()}
    links = {label: entries.link_to(label, run) for label, run in runs.items()}
    # One model in both places is told of as the champion; an experiment's copy of the project leaves that alone.
    for role in {model.digest: role for role, model in both.items()}.values():
        if role == "challenger" or not layout.temporary:
            told = descriptions.facts(settings, layout, both[role], role, links)
            descriptions.describe(client, layout, both[role], told)
    if not layout.temporary:
        descriptions.introduce(client, settings)
    return len(months)
