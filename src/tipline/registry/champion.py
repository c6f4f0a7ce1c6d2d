"""The champion: the version that is it, also where the registry has lost it, and its files in models/champion/."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import TiplineError, hide_secrets
from tipline.model import artifact
from tipline.paths import month_folder
from tipline.registry import client_errors, history, model_versions, store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.registry.store import Client, Version

log = logging.getLogger(__name__)

# What ref.json says of a model: name, version (None where it is not registered), run and digest.
Ref = dict[str, Any]


def read_champion_ref(paths: Paths) -> Ref | None:
    """The champion that this workspace scores with so far."""
    found: Ref | None = files.try_read_json(paths.champion_ref)
    return found


def held(paths: Paths, digest: str) -> bool:
    """Whether models/champion/ holds the model of this digest."""
    return artifact.try_read_digest(paths.champion) == digest


def find_last_champion(paths: Paths, name: str) -> Ref | None:
    """The champion that was written down last, else the one that scores here; None where there never was one."""
    here = read_champion_ref(paths)
    return history.read_last_champion(paths, name) or (here if here and here["name"] == name else None)


def refill_registry(client: Client, paths: Paths, name: str) -> None:
    """Register the champion that is kept here, where the registry has none: before the challenger, as it was once."""
    lost = find_last_champion(paths, name)
    if lost and model_versions.get_champion(client, name) is None and held(paths, lost["digest"]):
        model_versions.ensure_version(client, paths, name, paths.champion)


def resolve_champion(client: Client, settings: Settings, paths: Paths, challenger: Ref) -> Version | None:
    """The version to score with: the pinned one, else the alias's; None for a model that has no version."""
    name, wanted = settings.model.name, settings.score.model
    if isinstance(wanted, int):
        pinned = model_versions.get_version(client, name, wanted, "params.yaml, score.version")
        return model_versions.adopt_version(client, settings, paths, pinned)
    champion = model_versions.get_champion(client, name)
    if champion is None:
        return first(client, paths, challenger)
    if paths.is_experiment_copy:  # an experiment's settings are not what a version is adopted by
        model_versions.get_digest(champion)
        return champion
    champion = model_versions.adopt_version(client, settings, paths, champion)
    with client_errors.skip_if_forbidden():  # who may only read leaves it to others to write a change down
        history.record_external_change(client, paths, champion)
    return champion


def first(client: Client, paths: Paths, challenger: Ref) -> Version | None:
    """Give the registry a champion: the one that was written down last, or that scores here, or else the challenger.

    Raises
    ------
    TiplineError
        Where there was a champion, and neither the registry nor this clone has it any more.
    """
    name = challenger["name"]
    here, lost = read_champion_ref(paths), find_last_champion(paths, name)
    if here and lost and here["digest"] != lost["digest"] and here["name"] == name:
        raise two(paths, name, here, lost)
    wanted = lost or challenger
    found = model_versions.find_version(client, name, wanted["digest"])
    if found is None and wanted["digest"] != challenger["digest"] and not held(paths, wanted["digest"]):
        raise nowhere(paths, name, wanted)
    if found is None or paths.is_experiment_copy:
        return found
    if lost is None:
        history.change_champion(client, paths, "first", None, found)
        log.info("there was no champion: version %s is it now", found.version)
        return found
    model_versions.set_champion(client, found)
    history.record_external_change(client, paths, found)
    log.info("the registry had no champion: it was given the one of before, as version %s", found.version)
    return found


def two(paths: Paths, name: str, here: Ref, lost: Ref) -> TiplineError:
    """The error for files and log that name two champions, where the registry names none."""
    kept, written = (f"version {one['version']} (digest {one['digest'][:12]})" for one in (here, lost))
    what = f"MLflow's registry has no champion of {name}: models/champion/ has {kept}, this file ends with {written}."
    todo = 'Pull the lines of other clones (git pull), or say which: tipline promote VERSION --force "reason"'
    return TiplineError(what, str(history.promotions_file(paths)), todo)


def nowhere(paths: Paths, name: str, lost: Ref) -> TiplineError:
    """The error for a champion that cannot be had: no other model may score in its name."""
    digest = lost["digest"][:12]
    what = f"The champion of {name} (digest {digest}) is neither in MLflow's registry nor in models/champion/."
    todo = (
        "Bring it back: dvc pull, or name its registry in MLFLOW_TRACKING_URI, or check out the commit that trained it "
        'and dvc repro there. Or begin anew with the newest version: tipline promote --force "reason"'
    )
    return TiplineError(what, f"{hide_secrets(store.get_store_address(paths))}, {history.promotions_file(paths)}", todo)


def build_ref(paths: Paths, champion: Version | None, challenger: Ref) -> Ref:
    """What ref.json is to say.

    Of a copy whose registry has none: the champion whose files are here, or else the challenger.
    """
    if champion is not None:
        return model_versions.describe_version(champion)
    return challenger | (find_last_champion(paths, challenger["name"]) or {}) | {"version": None}


def write_champion_folder(paths: Paths, champion: Version | None, ref: Ref) -> None:
    """Bring models/champion/ to the champion: its files if they are others, ref.json if it says something else."""
    if held(paths, ref["digest"]):
        if read_champion_ref(paths) != ref:
            files.write_json(paths.champion_ref, ref)
        return
    with files.replace_folder(paths.champion, paths.staging / "models") as folder:
        if champion is None or ref["digest"] == artifact.read_digest(paths.challenger):
            for name in (*artifact.FILES, artifact.TRAINING):
                shutil.copyfile(paths.challenger / name, folder / name)
        else:
            model_versions.download_files(champion, folder)
        files.write_json(folder / paths.champion_ref.name, ref)


def list_scored_months(paths: Paths, months: Sequence[str], digest: str | None) -> list[str]:
    """The months whose predictions are those of a model."""
    manifests = ((month, month_folder(paths.predictions, month) / files.MANIFEST) for month in months)
    read = ((month, files.try_read_json(path)) for month, path in manifests)
    return [month for month, manifest in read if manifest and manifest["key"]["model"] == digest]


def describe_next_repro(settings: Settings | None) -> str:
    """What the next `dvc repro` makes of a change of champion."""
    pinned = settings.score.model if settings else None
    if isinstance(pinned, int):
        return f"But score.version in params.yaml pins version {pinned}: `dvc repro` goes on scoring with that."
    return "`dvc repro` scores with it."
