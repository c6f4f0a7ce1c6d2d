"""`tipline rollback`: the champion before this one scores again."""

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
    """Make the version champion that was it before the present one; the gate is not asked.

    Raises
    ------
    UsageError
        Where there was none before.
    TiplineError
        Where the registry has lost it, or its files.
    """
    name = settings.model_name or ""
    with store.connect_store(paths) as client, store.lock_store(paths):
        now = model_versions.get_champion(client, name)
        if now is None:
            raise UsageError(f"{name} has no champion.", "MLflow's registry", "Run: dvc repro register")
        history.restore_lost_lines(paths)
        history.record_external_change(client, paths, now)
        back = before(client, paths, now)
        model_versions.read_files(back)  # only files that are those of the digest may score
        verdict = back.tags.get(model_versions.VERDICT)
        history.change_champion(client, paths, history.ROLLBACK, now, back, verdict, reason)
    moved = f"version {back.version} again, it was version {now.version}"
    log.info("champion of %s: %s. %s", name, moved, champion.describe_next_repro(settings.settings))
    months = ", ".join(champion.list_scored_months(paths, settings.months, now.tags.get(store.DIGEST)))
    if months:
        log.info("version %s had scored %s", now.version, months)


def before(client: Client, paths: Paths, now: Version) -> Version:
    """The version that was champion before."""
    digest = now.tags.get(store.DIGEST)
    was = (
        history.find_previous_champion(paths, now.name, digest)
        if digest
        else history.read_last_champion(paths, now.name)
    )
    if was is None:
        what = f"This file names no champion before version {now.version}."
        raise UsageError(
            what, str(history.promotions_file(paths)), "Name the version that is to score: tipline promote VERSION"
        )
    found = model_versions.find_version(client, now.name, was["digest"])
    if found is None:
        lost = f"version {was['version']} (digest {was['digest'][:12]})"
        what = f"MLflow's registry has lost the champion before version {now.version}: {lost}."
        todo = (
            "Check out the commit that trained it, then: dvc checkout && tipline register && git checkout - && "
            "tipline rollback. Or name another version: tipline promote VERSION"
        )
        raise TiplineError(what, f"the registered model {now.name}", todo)
    return found
