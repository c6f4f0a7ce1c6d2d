"""`tipline rollback`: the champion before this one scores again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline.errors import TiplineError, UsageError
from tipline.mlflow import champion, promotions, registry, tracking

if TYPE_CHECKING:
    from tipline.layout import Layout
    from tipline.mlflow.tracking import Client, Version
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout, reason: str | None = None) -> None:
    """Make the version champion that was it before the present one; the gate is not asked.

    Raises
    ------
    UsageError
        Where there was none before.
    TiplineError
        Where the registry has lost it, or its files.
    """
    name = settings.register_.name
    with tracking.connect(layout) as client, tracking.alone(layout):
        now = registry.by_alias(client, name)
        if now is None:
            raise UsageError(f"{name} has no champion.", "MLflow's registry", "Run: dvc repro register")
        promotions.bring_back(layout)
        promotions.notice(client, layout, now)
        back = before(client, layout, now)
        registry.contents(back)  # only files that are those of the digest may score
        verdict = back.tags.get(registry.VERDICT)
        promotions.change(client, layout, promotions.ROLLBACK, now, back, verdict, reason)
    moved = f"version {back.version} again, it was version {now.version}"
    log.info("champion of %s: %s. %s", name, moved, champion.follows(settings))
    months = ", ".join(champion.scored(layout, settings.months, now.tags.get(tracking.DIGEST)))
    if months:
        log.info("version %s had scored %s", now.version, months)


def before(client: Client, layout: Layout, now: Version) -> Version:
    """The version that was champion before."""
    digest = now.tags.get(tracking.DIGEST)
    was = promotions.before(layout, now.name, digest) if digest else promotions.last(layout, now.name)
    if was is None:
        what = f"This file names no champion before version {now.version}."
        raise UsageError(what, str(layout.promotions), "Name the version that is to score: tipline promote VERSION")
    found = registry.of_digest(client, now.name, was["digest"])
    if found is None:
        lost = f"version {was['version']} (digest {was['digest'][:12]})"
        what = f"MLflow's registry has lost the champion before version {now.version}: {lost}."
        todo = (
            "Check out the commit that trained it, then: dvc checkout && tipline register && git checkout - && "
            "tipline rollback. Or name another version: tipline promote VERSION"
        )
        raise TiplineError(what, f"the registered model {now.name}", todo)
    return found
