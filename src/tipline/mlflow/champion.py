"""The champion: the version that is it, also where the registry has lost it, and its files in models/champion/."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

from tipline import files
from tipline.errors import TiplineError, hide
from tipline.layout import month_folder
from tipline.mlflow import promotions, registry, tracking, trouble
from tipline.models import modelfiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tipline.layout import Layout
    from tipline.mlflow.tracking import Client, Version
    from tipline.params import Settings

log = logging.getLogger(__name__)

# What ref.json says of a model: name, version (None where it is not registered), run and digest.
Ref = dict[str, Any]


def current(layout: Layout) -> Ref | None:
    """The champion that this workspace scores with so far."""
    found: Ref | None = files.read_json_if_any(layout.ref)
    return found


def held(layout: Layout, digest: str) -> bool:
    """Whether models/champion/ holds the model of this digest."""
    return modelfiles.digest_if_any(layout.champion) == digest


def last(layout: Layout, name: str) -> Ref | None:
    """The champion that was written down last, else the one that scores here; None where there never was one."""
    here = current(layout)
    return promotions.last(layout, name) or (here if here and here["name"] == name else None)


def refill(client: Client, layout: Layout, name: str) -> None:
    """Register the champion that is kept here, where the registry has none: before the challenger, as it was once."""
    lost = last(layout, name)
    if lost and registry.by_alias(client, name) is None and held(layout, lost["digest"]):
        registry.ensure_version(client, layout, name, layout.champion)


def followed(client: Client, settings: Settings, layout: Layout, challenger: Ref) -> Version | None:
    """The version to score with: the pinned one, else the alias's; None for a model that has no version."""
    name, wanted = settings.register_.name, settings.score.version
    if isinstance(wanted, int):
        pinned = registry.by_number(client, name, wanted, "params.yaml, score.version")
        return registry.adopt(client, settings, layout, pinned)
    champion = registry.by_alias(client, name)
    if champion is None:
        return first(client, layout, challenger)
    if layout.temporary:  # an experiment's settings are not what a version is adopted by
        registry.digest_of(champion)
        return champion
    champion = registry.adopt(client, settings, layout, champion)
    with trouble.permitted():  # who may only read leaves it to others to write a change down
        promotions.notice(client, layout, champion)
    return champion


def first(client: Client, layout: Layout, challenger: Ref) -> Version | None:
    """Give the registry a champion: the one that was written down last, or that scores here, or else the challenger.

    Raises
    ------
    TiplineError
        Where there was a champion, and neither the registry nor this clone has it any more.
    """
    name = challenger["name"]
    here, lost = current(layout), last(layout, name)
    if here and lost and here["digest"] != lost["digest"] and here["name"] == name:
        raise two(layout, name, here, lost)
    wanted = lost or challenger
    found = registry.of_digest(client, name, wanted["digest"])
    if found is None and wanted["digest"] != challenger["digest"] and not held(layout, wanted["digest"]):
        raise nowhere(layout, name, wanted)
    if found is None or layout.temporary:
        return found
    if lost is None:
        promotions.change(client, layout, "first", None, found)
        log.info("there was no champion: version %s is it now", found.version)
        return found
    registry.promote(client, found)
    promotions.notice(client, layout, found)
    log.info("the registry had no champion: it was given the one of before, as version %s", found.version)
    return found


def two(layout: Layout, name: str, here: Ref, lost: Ref) -> TiplineError:
    """The error for files and log that name two champions, where the registry names none."""
    kept, written = (f"version {one['version']} (digest {one['digest'][:12]})" for one in (here, lost))
    what = f"MLflow's registry has no champion of {name}: models/champion/ has {kept}, this file ends with {written}."
    todo = 'Pull the lines of other clones (git pull), or say which: tipline promote VERSION --force "reason"'
    return TiplineError(what, str(layout.promotions), todo)


def nowhere(layout: Layout, name: str, lost: Ref) -> TiplineError:
    """The error for a champion that cannot be had: no other model may score in its name."""
    digest = lost["digest"][:12]
    what = f"The champion of {name} (digest {digest}) is neither in MLflow's registry nor in models/champion/."
    todo = (
        "Bring it back: dvc pull, or name its registry in MLFLOW_TRACKING_URI, or check out the commit that trained it "
        'and dvc repro there. Or begin anew with the newest version: tipline promote --force "reason"'
    )
    return TiplineError(what, f"{hide(tracking.store(layout))}, {layout.promotions}", todo)


def ref_of(layout: Layout, champion: Version | None, challenger: Ref) -> Ref:
    """What ref.json is to say.

    Of a copy whose registry has none: the champion whose files are here, or else the challenger.
    """
    if champion is not None:
        return registry.named(champion)
    return challenger | (last(layout, challenger["name"]) or {}) | {"version": None}


def place(layout: Layout, champion: Version | None, ref: Ref) -> None:
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


def scored(layout: Layout, months: Sequence[str], digest: str | None) -> list[str]:
    """The months whose predictions are those of a model."""
    receipts = ((month, month_folder(layout.predictions, month) / files.RECEIPT) for month in months)
    read = ((month, files.read_json_if_any(path)) for month, path in receipts)
    return [month for month, receipt in read if receipt and receipt["key"]["model"] == digest]


def follows(settings: Settings) -> str:
    """What the next `dvc repro` makes of a change of champion."""
    pinned = settings.score.version
    if isinstance(pinned, int):
        return f"But score.version in params.yaml pins version {pinned}: `dvc repro` goes on scoring with that."
    return "`dvc repro` scores with it."
