"""register: the challenger as a run and a version in MLflow, and the champion's files here.

Runs at every `dvc repro`, because an alias can move without DVC seeing it. What is there already is not made again.
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from tipline import files
from tipline.errors import TiplineError
from tipline.mlflow import promotions, registry, tracking
from tipline.models import modelfiles

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)

# What ref.json says of a model: name, version (None where it is not registered), run and digest.
Ref = dict[str, Any]


def run(settings: Settings, layout: Layout) -> None:
    """Register the challenger, resolve the champion, keep its files in models/champion/."""
    before = current(layout)
    with tracking.connect(layout) as client, tracking.alone(layout):
        if not layout.temporary:
            promotions.bring_back(layout)
            refill(client, layout, settings.register_.name, before)
        challenger = mirrored(client, settings, layout)
        champion = followed(client, settings, layout, challenger, before)
        ref = named(champion) if champion else unregistered(layout, challenger, before)
        place(layout, champion, ref)
    log.info("challenger: %s %s; champion: %s", ref["name"], numbered(challenger), numbered(ref))
    if before and before["digest"] != ref["digest"]:
        tell_of_move(settings, layout, before, ref)


def refill(client: MlflowClient, layout: Layout, name: str, before: Ref | None) -> None:
    """Register the champion that is kept here, where the registry has none: before the challenger, as it was once."""
    lost = lost_champion(layout, name, before)
    if lost and registry.by_alias(client, name) is None and held(layout, lost["digest"]):
        registry.ensure_version(client, layout, name, layout.champion, [])


def current(layout: Layout) -> Ref | None:
    """The champion that this workspace scores with so far."""
    found: Ref | None = files.read_json_if_any(layout.ref)
    return found


def named(version: ModelVersion) -> Ref:
    """A version as ref.json has it."""
    digest = registry.digest_of(version)
    return {"name": version.name, "version": int(version.version), "run": version.run_id, "digest": digest}


def numbered(ref: Ref) -> str:
    """A model's version, in words."""
    return f"version {ref['version']}" if ref["version"] is not None else "not registered"


def mirrored(client: MlflowClient, settings: Settings, layout: Layout) -> Ref:
    """The challenger as MLflow has it now.

    An experiment in a copy of the project leaves a run and a model, no version: a sweep of fifty is no fifty versions.
    """
    name, digest = settings.register_.name, modelfiles.digest_in(layout.challenger)
    trained = None
    try:
        if not layout.temporary:
            return named(registry.ensure_version(client, layout, name, layout.challenger, pictures(layout)))
        trained = registry.training_run(client, layout, layout.challenger, pictures(layout)).info.run_id
    except MlflowException as error:
        if not tracking.forbidden(error):
            raise
        log.warning("you may not write to MLflow: the challenger is not registered; who may: dvc repro register")
    found = registry.versions(client, name, digest)
    return named(found[-1]) if found else {"name": name, "version": None, "run": trained, "digest": digest}


def pictures(layout: Layout) -> list[Path]:
    """What is shown with a training."""
    return [layout.learning_curve.with_suffix(".png")]


def followed(
    client: MlflowClient, settings: Settings, layout: Layout, challenger: Ref, before: Ref | None
) -> ModelVersion | None:
    """The version to score with: the pinned one, else the alias's; None for a challenger that has no version."""
    name, wanted = settings.register_.name, settings.score.version
    if isinstance(wanted, int):
        pinned = registry.by_number(client, name, wanted, "params.yaml, score.version")
        return registry.adopt(client, settings, layout, pinned)
    champion = registry.by_alias(client, name)
    if champion is None:
        return first(client, layout, challenger, before)
    if layout.temporary:  # an experiment's settings are not what a version is adopted by
        registry.digest_of(champion)
        return champion
    champion = registry.adopt(client, settings, layout, champion)
    notice(client, layout, champion)
    return champion


def notice(client: MlflowClient, layout: Layout, champion: ModelVersion) -> None:
    """Write down a change of champion that was made elsewhere; who may only read leaves that to others."""
    try:
        promotions.notice(client, layout, champion)
    except MlflowException as error:
        if not tracking.forbidden(error):
            raise


def first(client: MlflowClient, layout: Layout, challenger: Ref, before: Ref | None) -> ModelVersion | None:
    """Give the registry a champion: the one that was written down last, or that scores here, or else the challenger.

    Raises
    ------
    TiplineError
        Where there was a champion, and neither the registry nor this clone has it any more.
    """
    name = challenger["name"]
    lost = lost_champion(layout, name, before)
    if before and lost and before["digest"] != lost["digest"] and before["name"] == name:
        raise two(layout, name, before, lost)
    wanted = lost or challenger
    here = held(layout, wanted["digest"])
    found = registry.versions(client, name, wanted["digest"])
    if not found and not here and wanted["digest"] != challenger["digest"]:
        raise nowhere(layout, name, wanted)
    if not found or layout.temporary:
        return found[-1] if found else None
    if lost is None:
        promotions.change(client, layout, "first", None, found[-1])
        log.info("there was no champion: version %s is it now", found[-1].version)
        return found[-1]
    registry.promote(client, found[-1])
    promotions.notice(client, layout, found[-1])
    log.info("the registry had no champion: it was given the one of before, as version %s", found[-1].version)
    return found[-1]


def two(layout: Layout, name: str, before: Ref, lost: Ref) -> TiplineError:
    """The error for files and log that name two champions, where the registry names none."""
    here, there = (f"version {one['version']} (digest {one['digest'][:12]})" for one in (before, lost))
    what = f"MLflow's registry has no champion of {name}; models/champion/ is {here}, the log's last is {there}."
    todo = 'Pull the lines of other clones (git pull), or say which: tipline promote VERSION --force "reason"'
    return TiplineError(what, str(layout.promotions), todo)


def lost_champion(layout: Layout, name: str, before: Ref | None) -> Ref | None:
    """The champion that was written down last, or that scores here."""
    return promotions.last(layout, name) or (before if before and before["name"] == name else None)


def unregistered(layout: Layout, challenger: Ref, before: Ref | None) -> Ref:
    """The champion of a copy whose registry has none: the one whose files are here, or else the challenger."""
    lost = lost_champion(layout, challenger["name"], before)
    return challenger | (lost or {}) | {"version": None}


def nowhere(layout: Layout, name: str, lost: Ref) -> TiplineError:
    """The error for a champion that cannot be had: no other model may score in its name."""
    digest = lost["digest"][:12]
    what = f"The champion of {name} (digest {digest}) is neither in MLflow's registry nor in models/champion/."
    todo = (
        "Bring it back: dvc pull, or name its registry in MLFLOW_TRACKING_URI, or check out the commit that trained it "
        'and dvc repro there. Or begin anew with the newest version: tipline promote --force "reason"'
    )
    return TiplineError(what, f"{tracking.without_password(tracking.store(layout))}, {layout.promotions}", todo)


def tell_of_move(settings: Settings, layout: Layout, before: Ref, ref: Ref) -> None:
    """Say that another model scores now, and which months the one before had scored."""
    months = ", ".join(promotions.scored_by(layout, settings.months, before["digest"]))
    was, now = (f"{numbered(one)} ({one['digest'][:8]})" for one in (before, ref))  # a lost registry counts anew
    again = f"; {months}, scored by the former, are scored again" if months else ""
    log.info("the champion moved from %s to %s%s", was, now, again)


def place(layout: Layout, champion: ModelVersion | None, ref: Ref) -> None:
    """Bring models/champion/ to the champion: its files if they are others, ref.json if it says something else."""
    if held(layout, ref["digest"]):
        if current(layout) != ref:
            files.write_json(layout.ref, ref)
        return
    with files.replacing_folder(layout.champion, layout.staging / "models") as folder:
        if champion is None or ref["digest"] == modelfiles.digest_in(layout.challenger):
            for name in (*modelfiles.FILES, modelfiles.TRAINING):
                shutil.copyfile(layout.challenger / name, folder / name)
        else:
            registry.fetch(champion, folder)
        files.write_json(folder / layout.ref.name, ref)


def held(layout: Layout, digest: str) -> bool:
    """Whether models/champion/ holds the model of this digest."""
    try:
        return modelfiles.digest_in(layout.champion) == digest
    except TiplineError:
        return False
