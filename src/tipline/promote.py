"""`tipline promote`: which version scores from now on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline import registry, tracking
from tipline.errors import UsageError

if TYPE_CHECKING:
    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout, number: int | None) -> None:
    """Make a version the champion, by default the newest.

    Raises
    ------
    UsageError
        Where there is no such version, or one that cannot score prepared trips.
    """
    name = settings.register_.name
    with tracking.connect(layout) as client:
        if number is None:
            versions = registry.versions(client, name)
            if not versions:
                raise UsageError(f"{name} has no versions yet.", "MLflow's registry", "Run: dvc repro register")
            version = versions[0]
        else:
            version = registry.by_number(client, name, number, "MLflow's registry")
        version = registry.adopt(client, settings, layout, version)
        before = registry.by_alias(client, name)
        registry.promote(client, version)
    was = f", it was version {before.version}" if before else ""
    log.info("champion of %s: version %s%s. `dvc repro` scores with it.", name, version.version, was)
