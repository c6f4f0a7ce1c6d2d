"""The champion: which version it is, how a registry that lost it gets it back, and its files in models/champion/."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from tipline import files
from tipline.errors import TiplineError, hide_secrets
from tipline.model import artifact
from tipline.paths import month_folder
from tipline.registry import history, model_versions, store

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    try:
        months = model_versions.get_months(version)
    except ValueError as error:
        log.warning(
            "%s has an unusable tag %s: %s", model_versions.format_version(version), model_versions.MONTHS, error
        )
        months = None
    digest, number = version.tags.get(store.DIGEST), int(version.version)
    return {"name": version.name, "version": number, "run": version.run_id, "digest": digest, "months": months}


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
        model_versions.set_champion(client, version)
        if not changes:
            history.record_change(client, None, version, "first", reason="restored from models/champion/")
        log.info("MLflow had no champion; version %s, the last one, is champion again.", version.version)
    return version


def resolve_champion(client: Client, settings: Settings, paths: Paths, challenger: Ref) -> Version | None:
    """Return the version to score with: the pinned one, the champion, or the first one there is.

    Returns
    -------
    Version or None
        None in an experiment's copy, or for a user without write access, where nothing is registered yet.

    Raises
    ------
    TiplineError
        There was another champion, and neither the registry nor models/champion/ has it.
    """
    name, wanted = settings.model.name, settings.score.model
    if isinstance(wanted, int):
        pinned = model_versions.get_version(client, name, wanted, "params.yaml, score.model")
        return model_versions.adopt_version(client, settings, paths, pinned)
    champion = model_versions.get_champion(client, name)
    if paths.is_experiment_copy:  # a trial must not adopt, restore or record anything
        return champion
    if champion is not None:
        champion = model_versions.adopt_version(client, settings, paths, champion)
        history.record_external_change(client, champion, champion.tags.get(model_versions.VERDICT))
        return champion
    check_first_champion(client, paths, name, challenger["digest"])
    version = model_versions.find_version(client, name, challenger["digest"])
    if version is not None:
        model_versions.set_champion(client, version)
        history.record_change(client, None, version, "first")
        log.info("There was no champion; version %s is the first.", version.version)
    return version


def check_first_champion(client: Client, paths: Paths, name: str, digest: str) -> None:
    """Refuse a model as the first champion if there are signs of another champion.

    Raises
    ------
    TiplineError
        MLFLOW_TRACKING_URI is wrong, or this is a clone before `dvc pull`, for example. The message names both ways on.
    """
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
    locked = read_locked_champion(paths)
    if not signs and locked.digest not in {None, digest}:
        own = store.get_database_path(paths) == paths.workspace / store.DATABASE
        versions = model_versions.list_versions(client, name)
        if own and not locked.is_remote and all(version.tags.get(store.DIGEST) == digest for version in versions):
            log.info("Starting over: nothing is left of the champion in dvc.lock (%s).", str(locked.digest)[:12])
        else:
            signs["dvc.lock names it"] = locked.digest
    return next((f"{sign} (digest {str(other)[:12]})" for sign, other in signs.items()), None)


class LockedChampion(NamedTuple):
    """The champion that dvc.lock was written with, and whether only a DVC remote may have its files."""

    digest: str | None
    is_remote: bool


def read_locked_champion(paths: Paths) -> LockedChampion:
    """Read dvc.lock; a file that is missing or has conflict markers names no champion."""
    try:
        stages = yaml.load((paths.root / "dvc.lock").read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]
        digest = stages["score"]["params"]["models/champion/ref.json"]["digest"]
        hashes = [str(out["md5"]) for out in stages["register"]["outs"] if out["path"] == "models/champion"]
        config = (paths.root / ".dvc" / "config").read_text(encoding="utf-8")
    except (OSError, LookupError, TypeError, ValueError, yaml.YAMLError):
        return LockedChampion(None, is_remote=False)
    cached = any((paths.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).exists() for md5 in hashes)
    return LockedChampion(digest, "remote" in config and not cached)


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
            model_versions.get_digest(version)
            model_versions.download_files(version, folder)
        files.write_json(folder / paths.champion_ref.name, ref)


def read_scored_digest(manifest: Any) -> str | None:  # noqa: ANN401
    """Return the digest of the model that a month was scored with, by its manifest."""
    content = files.try_read_json(manifest)
    key = content.get("key") if isinstance(content, dict) else None
    return key.get("model") if isinstance(key, dict) else None


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


def change_champion(
    client: Client, now: Version | None, new: Version, how: history.How, *, reason: str | None, verdict: str | None
) -> None:
    """Move the alias and record the change; if that ends in between, `register` records an external change."""
    before = history.describe_champion(now) if now else None
    model_versions.set_champion(client, new)
    history.record_change(client, before, new, how, reason=reason, verdict=verdict)
