"""record: curve, evaluation and months mirrored into MLflow, each once.

Runs at every `dvc repro`, because DVC brings reports back from its cache without running the stages that made them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline.errors import format_count
from tipline.registry import client_errors, descriptions, records, store
from tipline.registry.records import Model

if TYPE_CHECKING:
    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths) -> None:
    """Make the runs that are not there yet, and bring the words on runs and versions up to date."""
    not_allowed = "what is new is not recorded; who may: dvc repro record"
    with store.connect_store(paths) as client, store.lock_store(paths), client_errors.skip_if_forbidden(not_allowed):
        count = mirror(client, settings, paths)
        log.info("MLflow has the learning curve, the evaluation and %s", format_count(count, "month"))


def mirror(client: Client, settings: Settings, paths: Paths) -> int:
    """Make the runs, tell of both models where they are compared; return how many months there are."""
    folders = {"challenger": paths.challenger, "champion": paths.champion}
    both = {role: Model.of(client, settings, paths, folder) for role, folder in folders.items()}
    records.record_entry(client, paths, records.build_curve_entry(settings, paths))
    months = records.build_month_entries(settings, paths, both["champion"])
    shown = {"evaluation": records.build_evaluation_entry(settings, paths, both), **months}
    runs = {label: client.get_run(records.record_entry(client, paths, entry)) for label, entry in shown.items()}
    links = {label: records.format_run_link(label, run) for label, run in runs.items()}
    # One model in both places is told of as the champion; an experiment's copy of the project leaves that alone.
    for role in {model.digest: role for role, model in both.items()}.values():
        if role == "challenger" or not paths.is_experiment_copy:
            told = descriptions.collect_facts(settings, paths, both[role], role, links)
            descriptions.describe_model(client, paths, both[role], told)
    if not paths.is_experiment_copy:
        descriptions.describe_registered_model(client, settings)
    return len(months)
