"""download: fetch the published files of the months, and their labels, with manifests that say where from."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.contrib.logging import logging_redirect_tqdm

from tipline import files
from tipline.config import Settings
from tipline.errors import NotPublishedError
from tipline.ingest import source
from tipline.ingest.readers import LABELS
from tipline.months import run_months
from tipline.paths import Paths

log = logging.getLogger(__name__)


def run(settings: Settings, paths: Paths, months: Sequence[str] = ()) -> None:
    """Fetch the months that data/raw/ does not have from this source, and labels that it does not have.

    `months` are fetched even if they are there. Raises NotPublishedError if the source does not have a month,
    TiplineError if it cannot be fetched or is not a published month, or if another process is fetching it.
    """
    for path in paths.raw("").glob("*"):
        if path.name.removesuffix(".json") not in settings.months:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with logging_redirect_tqdm():
        run_months(
            "download", settings.months, months, lambda name, force: fetch_month(settings, paths, name, force=force)
        )


def fetch_month(settings: Settings, paths: Paths, month: str, *, force: bool) -> bool:
    """Fetch a month and its labels, with `force` even if they are there; return whether something was fetched."""
    parts, folder, manifest = paths.staging / "parts", paths.raw(month), paths.raw_manifest(month)
    with files.hold_lock(parts / f"{month}.lock", "fetching this month"):
        fetched = files.try_read_json(manifest) or {}
        labels = fetched.pop("labels", None)
        demo, home = settings.demo.model_dump(), paths.workspace
        is_kept = not force and source.is_kept(settings.source, month, home, folder, fetched, demo, manifest)
        has_labels, labels_are_kept = check_labels(settings, paths, month, labels, force=force)
        if is_kept and labels_are_kept:
            return False
        with (
            files.replace_file(manifest) as new_manifest,
            files.replace_folder(folder, paths.staging / "raw") as staged,
        ):
            if is_kept:
                shutil.copytree(folder, staged, ignore=shutil.ignore_patterns(LABELS), dirs_exist_ok=True)
            else:
                fetched = source.fetch_month(settings.source, month, staged, home, demo, parts / f"{month}.part")
            if has_labels:
                address, part = str(settings.labels.source), parts / f"{month}.labels.part"
                labels = source.fetch_month(address, month, staged / LABELS, home, {}, part)
                fetched["labels"] = labels
            files.write_json(new_manifest, fetched)  # renamed after the folder
    for one in [fetched, *([labels] if has_labels else [])]:
        log.info("%s: %s bytes from %s", month, f"{one['bytes']:,}", one["address"])
    return True


def check_labels(
    settings: Settings, paths: Paths, month: str, known: Mapping[str, Any] | None, *, force: bool
) -> tuple[bool, bool]:
    """Return whether the labels' source has the month, and whether the labels that are `known` still are the ones."""
    address, home = settings.labels.source, paths.workspace
    if address is None:
        return False, known is None
    if known is None or force:
        try:
            source.check_published(address, month, home)
        except NotPublishedError:
            if known is not None:  # not removed without a word
                raise
            log.info("%s: no labels yet", month)
            return False, True
    folder, manifest = paths.raw(month) / LABELS, paths.raw_manifest(month)
    is_kept = not force and known is not None and source.is_kept(address, month, home, folder, known, {}, manifest)
    return True, is_kept
