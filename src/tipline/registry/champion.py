"""The champion: which version it is, the history of its changes and decisions, and its files in models/champion/.

MLflow keeps no history of an alias (https://github.com/mlflow/mlflow/issues/2169), so each change is one tag of the
registered model, never overwritten.
"""

import contextlib
import getpass
import logging
import os
import secrets
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from tipline import files
from tipline.config import Settings
from tipline.errors import TiplineError, hide_secrets, shorten_text
from tipline.model import artifact
from tipline.paths import Paths
from tipline.registry import location, model_versions, runs, store
from tipline.registry.store import Client, Version

log = logging.getLogger(__name__)

TAG = "tipline.champion."  # followed by the UTC time and a random suffix, so that keys are in the order of changes
DECISION = "tipline.decision."  # likewise; what the gate said of a challenger
TEXT_LETTERS = 1100  # two texts; a registry on PostgreSQL takes 5,000 letters of a tag, and JSON may double them
# What ref.json says: name, version (None if not registered), run, digest; months for a model that has them in a tag.
Ref: TypeAlias = dict[str, Any]


Record = TypeVar("Record", bound=BaseModel)


class Champion(BaseModel):
    version: int
    digest: str


class Change(BaseModel, populate_by_name=True):
    """A change of champion, the value of a tag."""

    before: Champion | None = Field(validation_alias="from", serialization_alias="from")  # None for the first champion
    after: Champion = Field(validation_alias="to", serialization_alias="to")
    how: str  # promote, rollback, first, or external: made elsewhere, in MLflow's page for example, and noticed later
    by: str | None = None
    reason: str | None = None
    verdict: str | None = None  # what the gate said


class Decision(BaseModel, frozen=True):
    """The answer of the gate on a challenger and some test months, the value of a tag."""

    months: tuple[str, ...]
    challenger: str  # digests
    champion: str
    promote: bool


# ---- history ----


def list_changes(client: Client, name: str) -> list[Change]:
    return list_records(client, name, TAG, Change)


def list_records(client: Client, name: str, prefix: str, kind: type[Record]) -> list[Record]:
    """Return what the tags of a registered model with a prefix say, oldest first; skip tags that someone has edited."""
    model, records = store.find_model(client, name), list[Record]()
    for key, value in sorted(model.tags.items()) if model else ():
        if key.startswith(prefix):
            with contextlib.suppress(ValidationError):
                records.append(kind.model_validate_json(value))
    return records


def add_record(client: Client, name: str, prefix: str, record: BaseModel) -> None:
    key = f"{prefix}{datetime.now(UTC):%Y-%m-%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"
    client.set_registered_model_tag(name, key, record.model_dump_json(by_alias=True))


def list_former_champions(changes: Sequence[Change]) -> list[Champion]:
    """Return the champions in order of time, but for those that a rollback has taken back."""
    champions: list[Champion] = []
    for change in changes:
        while change.how == "rollback" and champions and champions[-1].digest != change.after.digest:
            champions.pop()
        if not champions or champions[-1].digest != change.after.digest:
            champions.append(change.after)
    return champions


def count_decisions(client: Client, name: str, decision: Decision) -> tuple[int, int]:
    """Record a decision, unless these models had one on these months; return how many others used them, and refused."""
    decisions = list_records(client, name, DECISION, Decision)
    if decision not in decisions:
        with store.skip_if_forbidden():
            add_record(client, name, DECISION, decision)
    pairs = {(one.challenger, one.champion): one.promote for one in decisions if {*one.months} & {*decision.months}}
    pairs.pop((decision.challenger, decision.champion), None)
    return len(pairs), list(pairs.values()).count(False)


def change_champion(client: Client, version: Version, how: str, reason: str | None = None) -> None:
    """Move the alias, then record the change; if this ends in between, `register` records an external change."""
    client.set_registered_model_alias(version.name, model_versions.CHAMPION, str(version.version))
    record_change(client, version, how, reason)


def record_external_change(client: Client, version: Version) -> None:
    """Record a champion, unless the history ends with it, it was never adopted, or this user may not write."""
    changes, digest = list_changes(client, version.name), version.tags.get(store.DIGEST)
    if digest and (not changes or changes[-1].after.digest != digest):
        with store.skip_if_forbidden():
            record_change(client, version, "external")


def record_change(client: Client, version: Version, how: str, reason: str | None = None) -> None:
    by = None
    if how != "external":
        with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
            by = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    verdict, changes = version.tags.get(model_versions.VERDICT), list_changes(client, version.name)
    change = Change(
        before=changes[-1].after if changes else None,
        after=Champion(version=int(version.version), digest=version.tags[store.DIGEST]),
        how=how,
        by=by,
        reason=reason and shorten_text(reason, TEXT_LETTERS),
        verdict=verdict and shorten_text(verdict, TEXT_LETTERS),
    )
    add_record(client, version.name, TAG, change)


def find_previous_champion(changes: Sequence[Change], digest: str | None) -> Champion | None:
    """Return the champion before the one of this digest, or None; each rollback takes one change back.

    A digest of None stands for a champion that was never adopted: it is not in the history.
    """
    champions = list_former_champions(changes)
    if digest is None:
        return champions[-1] if champions else None
    return champions[-2] if len(champions) > 1 and champions[-1].digest == digest else None


# ---- the version that scores ----


def find_champion(client: Client, paths: Paths, name: str) -> Version | None:
    """Return the champion; a registry that has lost it gets the last one of its history or models/champion/ back."""
    if version := model_versions.get_champion(client, name):
        return version
    changes, ref = list_changes(client, name), files.try_read_json(paths.champion_ref)
    digest = changes[-1].after.digest if changes else ref["digest"] if ref and ref["name"] == name else None
    version = model_versions.find_version(client, name, digest) if digest else None
    if version is None and digest and artifact.try_read_digest(paths.champion) == digest:
        version = model_versions.register_run(client, name, runs.ensure_training_run(client, paths, paths.champion))
    if version is not None:
        if changes:
            client.set_registered_model_alias(name, model_versions.CHAMPION, str(version.version))
        else:
            change_champion(client, version, "first", "restored from models/champion/")
        log.info("MLflow had no champion; version %s, the last one, is champion again.", version.version)
    return version


def resolve_champion(client: Client, settings: Settings, paths: Paths, digest: str) -> Version | None:
    """Return the version to score with: the pinned one, the champion, or if there never was one the challenger.

    Returns None if nothing is registered and this user or this copy may not register it. `digest` is the challenger's.
    """
    name, wanted = settings.model.name, settings.score.model
    if isinstance(wanted, int):
        pinned = model_versions.get_version(client, name, wanted, "params.yaml, score.model")
        return model_versions.adopt_version(client, settings, paths, pinned)
    if paths.is_experiment_copy:  # a trial must not adopt or record anything
        return model_versions.get_champion(client, name)
    if version := find_champion(client, paths, name):
        version = model_versions.adopt_version(client, settings, paths, version)
        record_external_change(client, version)
        return version
    check_first_champion(client, paths, name, digest)
    if version := model_versions.find_version(client, name, digest):
        change_champion(client, version, "first")
        log.info("There was no champion; version %s is the first.", version.version)
    return version


def check_first_champion(client: Client, paths: Paths, name: str, digest: str) -> None:
    """Refuse a model as the first champion if there are signs of another one, for example in a clone before a pull."""
    changes, ref = list_changes(client, name), files.try_read_json(paths.champion_ref)
    if not changes and ref and ref["name"] != name:
        return  # `model.name` was changed: what is left belongs to the other name
    signs = {"MLflow's history ends with it": changes[-1].after.digest if changes else None}
    signs["models/champion/ref.json names it"] = ref["digest"] if ref else None
    for month, scored in read_scored_digests(paths).items():
        signs[f"it has scored month={month} in data/predictions"] = scored
    locked, is_elsewhere = read_locked_champion(paths)
    if is_elsewhere or location.get_database_path(paths) != paths.workspace / location.DATABASE:
        signs["dvc.lock names it"] = locked
    for sign, other in signs.items():
        if other not in {None, digest}:
            what = f"MLflow has no champion of {name}, but there was one: {sign} (digest {str(other)[:12]})."
            todo = (
                "To keep it, name its registry in MLFLOW_TRACKING_URI or run `dvc pull`, then `dvc repro`. "
                'To start over with the model trained here: tipline promote --force "starting over"'
            )
            raise TiplineError(what, hide_secrets(location.get_store_address(paths)), todo)
    if locked not in {None, digest}:
        log.info("Starting over: nothing is left of the champion in dvc.lock (%s).", str(locked)[:12])


def read_locked_champion(paths: Paths) -> tuple[str | None, bool]:
    """Return the digest of the champion in dvc.lock, and whether only a DVC remote may have its files."""
    config = paths.root / ".dvc" / "config"
    try:
        stages = yaml.load((paths.root / "dvc.lock").read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]
        digest = stages["score"]["params"]["models/champion/ref.json"]["digest"]
        hashes = [str(out["md5"]) for out in stages["register"]["outs"] if out["path"] == "models/champion"]
    except (OSError, LookupError, TypeError, ValueError, yaml.YAMLError):  # missing, or with conflict markers
        return None, False
    is_cached = any((paths.root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).exists() for md5 in hashes)
    return digest, config.is_file() and "remote" in config.read_text(encoding="utf-8") and not is_cached


# ---- models/champion/ ----


def describe_version(version: Version) -> Ref:
    champion = {"version": int(version.version), "run": version.run_id, "digest": model_versions.get_digest(version)}
    return {"name": version.name, **champion, "months": model_versions.get_months(version)}


def update_champion_folder(paths: Paths, version: Version | None, challenger: Ref) -> Ref:
    """Bring models/champion/ up to date with a version, else with what is there or the challenger; return its ref."""
    now, digest = files.try_read_json(paths.champion_ref), artifact.try_read_digest(paths.champion)
    is_kept = now and (now["name"], now["digest"]) == (challenger["name"], digest)
    ref = describe_version(version) if version else (now if now and is_kept else challenger) | {"version": None}
    if digest != ref["digest"]:
        with files.replace_folder(paths.champion, paths.staging / "models") as folder:
            is_here = version is None or ref["digest"] == challenger["digest"]
            with contextlib.nullcontext(paths.challenger) if is_here else model_versions.open_files(version) as source:
                shutil.copytree(source, folder, dirs_exist_ok=True)
            files.write_json(folder / paths.champion_ref.name, ref)
    elif now != ref:
        files.write_json(paths.champion_ref, ref)
    return ref


def read_scored_digests(paths: Paths) -> dict[str, str | None]:
    """Return, by month in data/predictions, the digest of the model that scored it."""
    manifests = sorted(paths.predictions.glob(f"month=*/{files.MANIFEST}"))
    return {
        path.parent.name.removeprefix("month="): (files.try_read_json(path) or {}).get("key", {}).get("model")
        for path in manifests
    }
