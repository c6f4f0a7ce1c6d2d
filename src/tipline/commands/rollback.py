"""`tipline rollback`: the champion before this one scores again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline.commands import promote
from tipline.errors import TiplineError, UsageError
from tipline.mlflow import promotions, registry, tracking

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
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
        champion = registry.by_alias(client, name)
        if champion is None:
            raise UsageError(f"{name} has no champion.", "MLflow's registry", "Run: dvc repro register")
        promotions.bring_back(layout)
        promotions.notice(client, layout, champion)
        back = before(client, layout, champion)
        promote.fetched(back)  # only files that are those of the digest may score
        verdict = back.tags.get(registry.VERDICT)
        promotions.change(client, layout, promotions.ROLLBACK, champion, back, verdict, reason)
    was, follows = champion.version, promote.follows(settings)
    log.info("champion of %s: version %s again, it was version %s. %s", name, back.version, was, follows)
    months = ", ".join(promotions.scored_by(layout, settings.months, champion.tags.get(tracking.DIGEST)))
    if months:
        log.info("version %s had scored %s", champion.version, months)


def before(client: MlflowClient, layout: Layout, champion: ModelVersion) -> ModelVersion:
    """The version that was champion before."""
    digest = champion.tags.get(tracking.DIGEST)
    was = promotions.before(layout, champion.name, digest) if digest else promotions.last(layout, champion.name)
    if was is None:
        what = f"No champion before version {champion.version} is written down."
        raise UsageError(what, str(layout.promotions), "Name the version that is to score: tipline promote VERSION")
    found = registry.versions(client, champion.name, was["digest"])
    if not found:
        what = f"The registry has lost the champion before: version {was['version']}, digest {was['digest'][:12]}."
        todo = "Check out the commit that trained it, dvc checkout, tipline register, come back, and roll back again."
        raise TiplineError(what, champion.name, todo)
    return found[-1]
