"""Bring MLflow up to date: challenger, champion, learning curve, evaluation and months, and the cards of the models."""

import logging
import os

from tipline import files
from tipline.config import Settings
from tipline.model import artifact
from tipline.paths import Paths, month_folder
from tipline.registry import champion, location, model_card, model_versions, runs, store
from tipline.registry.store import Client

log = logging.getLogger(__name__)

NO_ACCESS = "the challenger was not registered. Ask someone with access to run `dvc repro register`."
NO_REPORTS = "the reports were not logged. Ask someone with access to run `dvc repro register`."


def update_registry(settings: Settings, paths: Paths) -> None:
    """Register the challenger, follow the champion, and log reports that the store has lost."""
    before = files.try_read_json(paths.champion_ref)
    with store.connect_store(paths) as client, store.lock_store(paths):
        challenger = register_challenger(client, paths, settings.model.name)
        version = champion.resolve_champion(client, settings, paths, challenger["digest"])
        now = champion.update_champion_folder(paths, version, challenger)
        if are_current(paths):  # nothing is missing, unless the store lost it or DVC restored the reports
            with store.skip_if_forbidden(NO_REPORTS):
                record_reports(client, settings, paths)
        keep_state(client, settings, paths)
    log.info("challenger: %s %s; champion: %s", settings.model.name, format_ref(challenger), format_ref(now))
    if before and before["digest"] != now["digest"]:
        scored = champion.read_scored_digests(paths)
        months = ", ".join(month for month in settings.months if scored.get(month) == before["digest"])
        old, new = (f"{format_ref(ref)} ({ref['digest'][:8]})" for ref in (before, now))
        again = f"; {months}, scored by the old one, will be scored again" if months else ""
        log.info("the champion moved from %s to %s%s", old, new, again)


def keep_state(client: Client, settings: Settings, paths: Paths) -> None:
    """Let `register` leave the database closed until it changes; nothing may be missing in it."""
    state = location.describe_state(settings, paths)  # before the look at the champion, or a change might go unseen
    version, ref = model_versions.get_champion(client, settings.model.name), files.try_read_json(paths.champion_ref)
    is_followed = version is not None and champion.describe_version(version) == ref
    if state and (is_followed or isinstance(settings.score.model, int)):
        files.write_json(paths.registered, {"state": state})


def register_challenger(client: Client, paths: Paths, name: str) -> champion.Ref:
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


def record_reports(client: Client, settings: Settings, paths: Paths) -> int:
    """Create the runs that are missing and update descriptions; return the number of months."""
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
    return len(months)


def are_current(paths: Paths) -> bool:
    """Whether the reports show the models and predictions that are there now, and so no stage will replace them."""
    curve = files.try_read_json(paths.learning_curve.with_suffix(".json"))
    report, months = files.try_read_json(paths.evaluation), files.try_read_json(paths.monitoring / "months.json")
    if not (curve and report and months):
        return False
    made = {role: artifact.try_read_digest(getattr(paths, role)) for role in ("challenger", "champion")}
    manifests = [month_folder(paths.predictions, month["month"]) / files.MANIFEST for month in months]
    keys = [(files.try_read_json(path) or {}).get("key") for path in manifests]
    return report["made"] == made and [month.get("made_from") for month in months] == list(map(files.hash_json, keys))
