"""`tipline rollback`: make the previous champion the champion again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline.errors import TiplineError, UsageError
from tipline.registry import champion, history, model_versions, store

if TYPE_CHECKING:
    from tipline.config import PartialSettings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Version

log = logging.getLogger(__name__)


def run(settings: PartialSettings, paths: Paths, reason: str | None = None) -> None:
    """Make the previous champion the champion again, without asking the gate.

    Raises UsageError if there is no champion or none before it, TiplineError if the registry has lost that one.
    """
    name = settings.model_name
    if name is None:
        raise settings.problem or UsageError("model.name is missing.", str(paths.params), "Add it.")
    with store.connect_store(paths) as client, store.lock_store(paths):
        now = model_versions.get_champion(client, name)
        if now is None:
            raise UsageError(f"{name} has no champion.", "MLflow's registry", "Run: dvc repro register")
        history.record_external_change(client, now)
        previous = find_previous_version(client, now)
        model_versions.read_files(previous)  # only files of the registered digest may score
        verdict = previous.tags.get(model_versions.VERDICT)
        history.change_champion(client, now, previous, "rollback", reason, verdict)
    moved = f"version {previous.version} again, it was version {now.version}"
    log.info("champion of %s: %s. %s", name, moved, champion.describe_next_repro(settings.settings))
    months = champion.list_scored_months(paths, settings.months, now.tags.get(store.DIGEST))
    if months:
        log.info("version %s had scored %s", now.version, ", ".join(months))


def find_previous_version(client: Client, now: Version) -> Version:
    """Return the version that was champion before."""
    where, todo = f"the registered model {now.name}", "Name the version that is to score: tipline promote VERSION"
    changes = history.list_changes(client, now.name)
    previous = history.find_previous_champion(changes, now.tags.get(store.DIGEST))
    if previous is None:
        raise UsageError(f"MLflow's history has no champion before version {now.version}.", where, todo)
    version = model_versions.find_version(client, now.name, previous.digest or "")
    if version is None:
        lost = f"version {previous.version} (digest {(previous.digest or '')[:12]})"
        what = f"MLflow's registry has lost the champion before version {now.version}: {lost}."
        again = "Check out the commit that trained it and run: dvc checkout && tipline register. Then roll back again."
        raise TiplineError(what, where, f"{again} Or name another version: tipline promote VERSION")
    return version
