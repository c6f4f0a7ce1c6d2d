"""register: the challenger as a run and a version in MLflow, and the champion's files in models/champion/.

Runs at every `dvc repro`, because DVC cannot see that an alias was moved or a store was lost. What exists is not
created again.
"""

import logging
import os

from tipline import files
from tipline.config import Settings
from tipline.model import artifact  # before tipline.registry: beside MLflow it would import pandas and MLflow's models
from tipline.paths import Paths
from tipline.registry import champion, model_versions, reports, runs, store

log = logging.getLogger(__name__)

NO_ACCESS = "the challenger was not registered. Ask someone with access to run `dvc repro register`."
NO_REPORTS = "the reports were not logged. Ask someone with access to run `dvc repro register`."


def run(settings: Settings, paths: Paths) -> None:
    before = files.try_read_json(paths.champion_ref)
    with store.connect_store(paths) as client, store.lock_store(paths):
        challenger = register_challenger(client, paths, settings.model.name)
        version = champion.resolve_champion(client, settings, paths, challenger["digest"])
        now = champion.update_champion_folder(paths, version, challenger)
        if reports.are_current(paths):  # nothing is missing, unless the store lost it or DVC restored the reports
            with store.skip_if_forbidden(NO_REPORTS):
                reports.record_reports(client, settings, paths)
    log.info("challenger: %s %s; champion: %s", settings.model.name, format_ref(challenger), format_ref(now))
    if before and before["digest"] != now["digest"]:
        scored = champion.read_scored_digests(paths)
        months = ", ".join(month for month in settings.months if scored.get(month) == before["digest"])
        old, new = (f"{format_ref(ref)} ({ref['digest'][:8]})" for ref in (before, now))
        again = f"; {months}, scored by the old one, will be scored again" if months else ""
        log.info("the champion moved from %s to %s%s", old, new, again)


def register_challenger(client: store.Client, paths: Paths, name: str) -> champion.Ref:
    """Return the challenger as MLflow has it; an experiment in a copy of the project creates no version."""
    digest, run_id = artifact.read_digest(paths.challenger), None
    with store.skip_if_forbidden(NO_ACCESS):
        run = runs.ensure_training_run(client, paths, paths.challenger)
        if experiment := os.environ.get("DVC_EXP_NAME"):
            client.set_tag(run.info.run_id, runs.DVC_EXPERIMENT, experiment)
        run_id = run.info.run_id
        if not paths.is_experiment_copy:
            model_versions.register_run(client, name, run)
    version = model_versions.find_version(client, name, digest)
    unregistered = {"name": name, "version": None, "run": run_id, "digest": digest, "months": None}
    return champion.describe_version(version) if version else unregistered


def format_ref(ref: champion.Ref) -> str:
    return "not registered" if ref["version"] is None else f"version {ref['version']}"
