"""Bring MLflow up to date with the reports: learning curve, evaluation and months, and the cards of the models."""

from tipline import files
from tipline.config import Settings
from tipline.model import artifact
from tipline.paths import Paths, month_folder
from tipline.registry import model_card, runs
from tipline.registry.store import Client


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
