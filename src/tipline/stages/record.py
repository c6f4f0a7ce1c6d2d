"""record: learning curve, evaluation and months in MLflow, each once, and the cards of challenger and champion.

Runs at every `dvc repro`, because DVC may restore reports from its cache without running the stages that make them.
"""

import logging

from tipline.config import Settings
from tipline.errors import format_count
from tipline.model import artifact  # noqa: F401 (before tipline.registry, see register)
from tipline.paths import Paths
from tipline.registry import model_card, runs, store

log = logging.getLogger(__name__)

NO_ACCESS = "new results were not logged. Ask someone with access to run `dvc repro record`."


def run(settings: Settings, paths: Paths) -> None:
    """Create the runs that are missing, and bring descriptions up to date."""
    with store.connect_store(paths) as client, store.lock_store(paths), store.skip_if_forbidden(NO_ACCESS):
        find, name = model_card.find_entry, settings.model.name
        entries = {role: find(client, paths, name, role) for role in ("challenger", "champion")}
        months = runs.describe_months(paths, entries["champion"].link)
        evaluation = runs.describe_evaluation(settings, paths, {role: entry.link for role, entry in entries.items()})
        runs.ensure_runs(client, paths, "learning_curve", runs.describe_curve(settings, paths))
        shown = runs.ensure_runs(client, paths, "evaluate", evaluation)
        shown += runs.ensure_runs(client, paths, "monitor", *months.values())
        labels = ["evaluation", *months]
        links = {label: runs.format_run_link(label, run) for label, run in zip(labels, shown, strict=True)}
        # One model in both folders is described as the champion. An experiment's copy leaves the champion alone.
        for entry in {entry.digest: entry for entry in entries.values()}.values():
            if entry.role == "challenger" or not paths.is_experiment_copy:
                model_card.describe_model(client, settings, paths, entry, links)
        log.info("MLflow has the learning curve, the evaluation and %s", format_count(len(months), "month"))
