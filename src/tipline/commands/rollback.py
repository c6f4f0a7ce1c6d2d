"""`tipline rollback`: make the previous champion the champion again."""

import logging

from tipline.config import PartialSettings
from tipline.errors import UsageError
from tipline.paths import Paths
from tipline.registry import champion, model_versions, store

log = logging.getLogger(__name__)


def run(settings: PartialSettings, paths: Paths, reason: str | None = None) -> None:
    """Make the previous champion the champion again, without asking the gate.

    Raises UsageError if there is no champion, if there was none before it, or if the registry has lost that one.
    """
    name = settings.model_name
    if name is None:
        raise settings.problem or UsageError("model.name is missing.", str(paths.params), "Add it.")
    where, todo = f"the registered model {name}", "Name the version that is to score: tipline promote VERSION"
    with store.connect_store(paths) as client, store.lock_store(paths):
        now = model_versions.get_champion(client, name)
        if now is None:
            raise UsageError(f"{name} has no champion.", where, "Run: dvc repro register")
        champion.record_external_change(client, now)
        changes = champion.list_changes(client, name)
        previous = champion.find_previous_champion(changes, now.tags.get(store.DIGEST))
        if previous is None:
            raise UsageError(f"MLflow's history has no champion before version {now.version}.", where, todo)
        version = model_versions.find_version(client, name, previous.digest or "")
        if version is None:
            lost = f"version {previous.version} (digest {(previous.digest or '')[:12]})"
            what = f"MLflow's registry has lost the champion before version {now.version}: {lost}."
            raise UsageError(what, where, todo)
        model_versions.read_files(version)  # only files of the registered digest may score
        champion.change_champion(client, version, "rollback", reason)
    moved = f"version {version.version} again, it was version {now.version}"
    log.info("champion of %s: %s. Next: dvc repro", name, moved)
