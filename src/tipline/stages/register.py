"""register: the challenger as a run and a version in MLflow, and the champion's files here.

Runs at every `dvc repro`, because an alias can move without DVC seeing it. What is there already is not made again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline.model import artifact
from tipline.registry import champion, client_errors, history, model_versions, store, training_runs

if TYPE_CHECKING:
    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.champion import Ref
    from tipline.registry.store import Client

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths) -> None:
    """Register the challenger, resolve the champion, keep its files in models/champion/."""
    before = champion.read_champion_ref(paths)
    with store.connect_store(paths) as client, store.lock_store(paths):
        if not paths.is_experiment_copy:
            history.restore_lost_lines(paths)
            champion.refill_registry(client, paths, settings.model.name)
        challenger = mirrored(client, settings, paths)
        version = champion.resolve_champion(client, settings, paths, challenger)
        now = champion.build_ref(paths, version, challenger)
        champion.write_champion_folder(paths, version, now)
    log.info("challenger: %s %s; champion: %s", now["name"], numbered(challenger), numbered(now))
    if before and before["digest"] != now["digest"]:
        tell_of_move(settings, paths, before, now)


def mirrored(client: Client, settings: Settings, paths: Paths) -> Ref:
    """The challenger as MLflow has it now.

    An experiment in a copy of the project leaves a run and a model, no version: a sweep of fifty is no fifty versions.
    """
    name, digest, trained = settings.model.name, artifact.read_digest(paths.challenger), None
    with client_errors.skip_if_forbidden("the challenger is not registered; who may: dvc repro register"):
        if not paths.is_experiment_copy:
            return model_versions.describe_version(model_versions.ensure_version(client, paths, name, paths.challenger))
        trained = training_runs.ensure_run(client, paths, paths.challenger).info.run_id
    found = model_versions.find_version(client, name, digest)
    return (
        model_versions.describe_version(found)
        if found
        else {"name": name, "version": None, "run": trained, "digest": digest}
    )


def numbered(ref: Ref) -> str:
    """A model's version, in words."""
    return f"version {ref['version']}" if ref["version"] is not None else "not registered"


def tell_of_move(settings: Settings, paths: Paths, before: Ref, now: Ref) -> None:
    """Say that another model scores now, and which months the one before had scored."""
    months = ", ".join(champion.list_scored_months(paths, settings.months, before["digest"]))
    there, here = (f"{numbered(one)} ({one['digest'][:8]})" for one in (before, now))  # a lost registry counts anew
    again = f"; {months}, scored by the former, are scored again" if months else ""
    log.info("the champion moved from %s to %s%s", there, here, again)
