"""evaluate: challenger and champion on the `evaluate` months, beside majority and baseline; the gate's verdict."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tipline import files
from tipline.models import comparison, modelfiles
from tipline.pages import plots

if TYPE_CHECKING:
    from tipline.layout import Layout
    from tipline.params import Settings

log = logging.getLogger(__name__)


def run(settings: Settings, layout: Layout) -> None:
    """Write reports/evaluation.json and its picture."""
    contents = {"challenger": modelfiles.read(layout.challenger), "champion": modelfiles.read(layout.champion)}
    if ref := files.read_json_if_any(layout.ref):
        modelfiles.check(contents["champion"], ref["digest"])
    made_on = {role: spec.get("months") for role, spec in comparison.specs_of(contents).items()}
    report, compared = comparison.compare(settings, layout, contents, made_on)
    files.write_json(layout.evaluation, report)
    plots.evaluation(layout.evaluation.with_suffix(".png"), report, compared.scores, compared.tipped)
    log.info("%s\n%s", report["verdict"], report["gate"]["words"])
