"""record: learning curve, evaluation and months in MLflow, each once, and the cards of challenger and champion.

Runs at every `dvc repro`, because DVC may restore reports from its cache without running the stages that make them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline.errors import format_count
from tipline.model import artifact  # noqa: F401 (before tipline.registry, see register)
from tipline.registry import client_errors, model_card, runs, store

if TYPE_CHECKING:
    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths) -> None:
    """Create the runs that are missing, and bring descriptions up to date."""
    warning = "new results were not logged. Ask someone with access to run `dvc repro record`."
    with store.connect_store(paths) as client, store.lock_store(paths), client_errors.skip_if_forbidden(warning):
        count = record_results(client, settings, paths)
        log.info("MLflow has the learning curve, the evaluation and %s", format_count(count, "month"))


def record_results(client: Client, settings: Settings, paths: Paths) -> int:
    """Create runs and descriptions; return the number of months."""
    folders = {"challenger": paths.challenger, "champion": paths.champion}
    entries = {
        role: model_card.find_entry(client, paths, settings.model.name, folder) for role, folder in folders.items()
    }
    links, digests = ({role: getattr(entry, name) for role, entry in entries.items()} for name in ("link", "digest"))
    months = runs.describe_months(settings, paths, links["champion"])
    runs.ensure_runs(client, paths, [runs.describe_curve(settings, paths)])
    evaluated = runs.ensure_runs(client, paths, [runs.describe_evaluation(settings, paths, links, digests)])
    monitored = runs.ensure_runs(client, paths, list(months.values()))
    shown = dict(zip(["evaluation", *months], [*evaluated, *monitored], strict=True))
    run_links = {label: runs.format_run_link(label, run) for label, run in shown.items()}
    # One model in both folders is described as the champion. An experiment's copy leaves the champion alone.
    for role in {digest: role for role, digest in digests.items()}.values():
        if role == "challenger" or not paths.is_experiment_copy:
            model_card.describe_model(client, settings, paths, entries[role], role, run_links)
    if not paths.is_experiment_copy:
        model_card.describe_registered_model(client, settings)
    return len(months)
