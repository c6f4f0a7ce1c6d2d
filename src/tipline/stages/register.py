"""register: the challenger as a run and a version in MLflow, and the champion's files here.

Runs at every `dvc repro`, because an alias can move without DVC seeing it. What is there already is not made again.
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

from tipline import files, modelfiles, registry, tracking
from tipline.errors import TiplineError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Register the challenger, resolve the champion, keep its files in models/champion/."""
    name = settings.register_.name
    before = current(layout)
    with tracking.connect(layout) as client:
        refill(client, layout, name, before)
        pictures = [layout.learning_curve.with_suffix(".png")]
        challenger = registry.ensure_version(client, layout, name, layout.challenger, pictures)
        champion = registry.adopt(client, settings, layout, resolve(client, settings, challenger))
        ref = {
            "name": name,
            "version": int(champion.version),
            "run": champion.run_id,
            "digest": registry.digest_of(champion),
        }
        place(layout, champion, ref)
    log.info("challenger: %s version %s; champion: version %s", name, challenger.version, champion.version)
    if before and before["digest"] != ref["digest"]:
        log.info(
            "the champion moved from version %s to %s: every month is scored again", before["version"], ref["version"]
        )


def current(layout: Layout) -> dict[str, Any] | None:
    """The champion that this workspace scores with so far."""
    found: dict[str, Any] | None = files.read_json_if_any(layout.ref)
    return found


def refill(client: MlflowClient, layout: Layout, name: str, before: dict[str, Any] | None) -> None:
    """Give a registry that has lost its champion the one that is kept here."""
    if before is None or before["name"] != name or registry.by_alias(client, name) is not None:
        return
    version = registry.ensure_version(client, layout, name, layout.champion, [])
    registry.promote(client, version)
    log.info("the registry had no champion: it was given the one in models/champion/, as version %s", version.version)


def resolve(client: MlflowClient, settings: Settings, challenger: ModelVersion) -> ModelVersion:
    """The version to score with: the pinned one, else the alias's; the first version becomes champion."""
    name, wanted = settings.register_.name, settings.score.version
    if isinstance(wanted, int):
        return registry.by_number(client, name, wanted, "params.yaml, score.version")
    champion = registry.by_alias(client, name)
    if champion is None:
        registry.promote(client, challenger)
        log.info("there was no champion: version %s is it now", challenger.version)
        return challenger
    return champion


def place(layout: Layout, champion: ModelVersion, ref: dict[str, Any]) -> None:
    """Bring models/champion/ to the champion: its files if they are others, ref.json if it says something else."""
    if held(layout, ref["digest"]):
        if current(layout) != ref:
            files.write_json(layout.ref, ref)
        return
    with files.replacing_folder(layout.champion, layout.staging / "models") as folder:
        if ref["digest"] == modelfiles.digest_in(layout.challenger):
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
