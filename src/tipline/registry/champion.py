"""The champion: which version it is, how a registry that lost it gets it back, and its files in models/champion/."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

import yaml

from tipline import files
from tipline.errors import TiplineError, hide_secrets
from tipline.model import artifact
from tipline.paths import month_folder
from tipline.registry import history, model_versions, store

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Version

log = logging.getLogger(__name__)

# What ref.json says: name, version (None if not registered), run, digest; months for a model that has them in a tag.
Ref = dict[str, Any]


def read_champion_ref(paths: Paths) -> Ref | None:
    """Return models/champion/ref.json: the champion that this workspace scores with so far."""
    ref: Ref | None = files.try_read_json(paths.champion_ref)
    return ref


def describe_version(version: Version) -> Ref:
    """Return what ref.json says about a version."""
    champion = {"version": int(version.version), "run": version.run_id, "digest": version.tags.get(store.DIGEST)}
    return {"name": version.name, **champion, "months": model_versions.get_months(version)}


def restore_champion(client: Client, paths: Paths, name: str) -> Version | None:
    """Give a registry without a champion the last one back; return it, or None if nothing has it any more.

    The last champion is the one at the end of the history, or without a history the one in models/champion/.
    """
    changes, ref = history.list_changes(client, name), read_champion_ref(paths)
    digest = changes[-1].after.digest if changes else ref["digest"] if ref and ref["name"] == name else None
    if digest is None:
        return None
    version = model_versions.find_version(client, name, digest)
    if version is None and artifact.try_read_digest(paths.champion) == digest:
        version = model_versions.ensure_version(client, paths, name, paths.champion)
    if version is not None:
        if changes:
            client.set_registered_model_alias(name, model_versions.CHAMPION, str(version.version))
        else:
            history.change_champion(client, None, version, "first", "restored from models/champion/", None)
        log.info("MLflow had no champion; version %s, the last one, is champion again.", version.version)
    return version


def resolve_champion(client: Client, settings: Settings, paths: Paths, challenger: Ref) -> Version | None:
    """Return the version to score with: the pinned one, the champion, or if there never was one the challenger.

    Returns None in an experiment's copy, and for a user without write access, if nothing is registered yet.
    """
    name, wanted = settings.model.name, settings.score.model
    if isinstance(wanted, int):
        pinned = model_versions.get_version(client, name, wanted, "params.yaml, score.model")
        return model_versions.adopt_version(client, settings, paths, pinned)
    champion = model_versions.get_champion(client, name)
    if paths.is_experiment_copy:  # a trial must not adopt or record anything
        if champion is not None:
            model_versions.get_digest(champion)
        return champion
    if champion is not None:
        champion = model_versions.adopt_version(client, settings, paths, champion)
        history.record_external_change(client, champion)
        return champion
    check_first_champion(client, paths, name, challenger["digest"])
    version = model_versions.find_version(client, name, challenger["digest"])
    if version is not None:
        history.change_champion(client, None, version, "first", None, None)
        log.info("There was no champion; version %s is the first.", version.version)
    return version


def check_first_champion(client: Client, paths: Paths, name: str, digest: str) -> None:
    """Refuse a model as the first champion if there are signs of another one, for example in a clone before a pull."""
    sign = find_lost_champion(client, paths, name, digest)
    if sign is not None:
        what = f"MLflow has no champion of {name}, but there was one: {sign}."
        todo = (
            "To keep it, name its registry in MLFLOW_TRACKING_URI or run `dvc pull`, then `dvc repro`. "
            'To start over with the model trained here: tipline promote --force "starting over"'
        )
        raise TiplineError(what, hide_secrets(store.get_store_address(paths)), todo)


def find_lost_champion(client: Client, paths: Paths, name: str, digest: str) -> str | None:
    """Return what shows that another model than this one was champion, or None."""
    changes, ref = history.list_changes(client, name), read_champion_ref(paths)
    if not changes and ref and ref["name"] != name:
        return None  # `model.name` was changed: what is left belongs to the other name
    signs = {"MLflow's history ends with it": changes[-1].after.digest if changes else None}
    signs["models/champion/ref.json names it"] = ref["digest"] if ref else None
    for path in sorted(paths.predictions.glob(f"month=*/{files.MANIFEST}")):
        signs[f"it has scored {path.parent.name} in data/predictions"] = read_scored_digest(path)
    signs = {sign: other for sign, other in signs.items() if other not in {None, digest}}
    locked, is_remote = read_locked_champion(paths)
    if not signs and locked not in {None, digest}:
        own = store.get_database_path(paths) == paths.workspace / store.DATABASE
        versions = model_versions.list_versions(client, name)
        if own and not is_remote and all(version.tags.get(store.DIGEST) == digest for version in versions):
            log.info("Starting over: nothing is left of the champion in dvc.lock (%s).", str(locked)[:12])
        else:
            signs["dvc.lock names it"] = locked
    return next((f"{sign} (digest {str(other)[:12]})" for sign, other in signs.items()), None)


def read_locked_champion(paths: Paths) -> tuple[str | None, bool]:
    """Return the digest of the champion in dvc.lock, and whether only a DVC remote may have its files."""
    config = paths.root / ".dvc" / "config"
    try:
        stages = yaml.load((paths.root / "dvc.lock").read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]
        digest = stages["score"]["params"]["models/champion/ref.json"]["digest"]
        hashes = [str(out["md5"]) for out in stages["register"]["outs"] if out["path"] == "models/champion"]
    except (OSError, LookupError, TypeError, ValueError, yaml.YAMLError):  # missing, or with conflict markers
        return None, False
    cached = any((paths.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).exists() for md5 in hashes)
    return digest, config.is_file() and "remote" in config.read_text(encoding="utf-8") and not cached


def build_ref(paths: Paths, version: Version | None, challenger: Ref) -> Ref:
    """Return what ref.json is to say; without a version, the champion whose files are here, or the challenger."""
    if version is not None:
        return describe_version(version)
    ref = read_champion_ref(paths)
    return (ref if ref and ref["name"] == challenger["name"] else challenger) | {"version": None}


def write_champion_folder(paths: Paths, version: Version | None, ref: Ref) -> None:
    """Bring models/champion/ up to date: the model's files if they differ, ref.json if it differs."""
    if artifact.try_read_digest(paths.champion) == ref["digest"]:
        if read_champion_ref(paths) != ref:
            files.write_json(paths.champion_ref, ref)
        return
    with files.replace_folder(paths.champion, paths.staging / "models") as folder:
        if version is None or ref["digest"] == artifact.try_read_digest(paths.challenger):
            for name in (*artifact.FILES, artifact.TRAINING):
                shutil.copyfile(paths.challenger / name, folder / name)
        else:
            model_versions.download_files(version, folder)
        files.write_json(folder / paths.champion_ref.name, ref)


def read_scored_digest(manifest: Path) -> str | None:
    """Return the digest of the model that a month was scored with."""
    digest: str | None = (files.try_read_json(manifest) or {}).get("key", {}).get("model")
    return digest


def list_scored_months(paths: Paths, months: Sequence[str], digest: str | None) -> list[str]:
    """Return the months whose predictions are those of a model."""
    manifests = ((month, month_folder(paths.predictions, month) / files.MANIFEST) for month in months)
    return [month for month, path in manifests if digest and read_scored_digest(path) == digest]


def describe_next_repro(settings: Settings | None) -> str:
    """Say what the next `dvc repro` makes of a change of champion."""
    pinned = settings.score.model if settings else None
    if isinstance(pinned, int):
        return f"But score.model in params.yaml pins version {pinned}: `dvc repro` scores with that one."
    return "`dvc repro` scores with it."
