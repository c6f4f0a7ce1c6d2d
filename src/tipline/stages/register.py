"""register: the challenger as a run and a version in MLflow, and the champion's files here.

Runs at every `dvc repro`, because an alias can move without DVC seeing it. What is there already is not made again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline.mlflow import champion, promotions, registry, tracking, training, trouble
from tipline.models import modelfiles

if TYPE_CHECKING:
    from tipline.layout import Layout
    from tipline.mlflow.champion import Ref
    from tipline.mlflow.tracking import Client
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Register the challenger, resolve the champion, keep its files in models/champion/."""
    before = champion.current(layout)
    with tracking.connect(layout) as client, tracking.alone(layout):
        if not layout.temporary:
            promotions.bring_back(layout)
            champion.refill(client, layout, settings.register_.name)
        challenger = mirrored(client, settings, layout)
        version = champion.followed(client, settings, layout, challenger)
        now = champion.ref_of(layout, version, challenger)
        champion.place(layout, version, now)
    log.info("challenger: %s %s; champion: %s", now["name"], numbered(challenger), numbered(now))
    if before and before["digest"] != now["digest"]:
        tell_of_move(settings, layout, before, now)


def mirrored(client: Client, settings: Settings, layout: Layout) -> Ref:
    """The challenger as MLflow has it now.

    An experiment in a copy of the project leaves a run and a model, no version: a sweep of fifty is no fifty versions.
    """
    name, digest, trained = settings.register_.name, modelfiles.digest_in(layout.challenger), None
    with trouble.permitted("the challenger is not registered; who may: dvc repro register"):
        if not layout.temporary:
            return registry.named(registry.ensure_version(client, layout, name, layout.challenger))
        trained = training.ensure_run(client, layout, layout.challenger).info.run_id
    found = registry.of_digest(client, name, digest)
    return registry.named(found) if found else {"name": name, "version": None, "run": trained, "digest": digest}


def numbered(ref: Ref) -> str:
    """A model's version, in words."""
    return f"version {ref['version']}" if ref["version"] is not None else "not registered"


def tell_of_move(settings: Settings, layout: Layout, before: Ref, now: Ref) -> None:
    """Say that another model scores now, and which months the one before had scored."""
    months = ", ".join(champion.scored(layout, settings.months, before["digest"]))
    there, here = (f"{numbered(one)} ({one['digest'][:8]})" for one in (before, now))  # a lost registry counts anew
    again = f"; {months}, scored by the former, are scored again" if months else ""
    log.info("the champion moved from %s to %s%s", there, here, again)
