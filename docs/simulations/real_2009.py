"""Fit on January 2009, watch all of 2009: the pipeline on Arrow's 1-in-1000 sample of the real trips.

    python docs/simulations/real_2009.py ../shared/tlc/tiny2009

writes the table into docs/statistics.md, between its markers, and the page into the folder that `--keep` names.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tipline import config
from tipline.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT = Path(__file__).parents[2]
MONTHS = [f"2009-{month:02d}" for month in range(1, 13)]
STAGES = ("learning_curve", "train", "register", "evaluate", "score", "monitor")
JANUARY = 14_092
MARKERS = ("<!-- real_2009.py: begin -->", "<!-- real_2009.py: end -->")
COLUMNS = (
    "month",
    "rows",
    "positive rate",
    "expected",
    "skill",
    "estimated skill",
    "over the month's own rates",
    "AUC",
    "flagged",
    "verdict",
)


def main() -> None:
    """Run the stages in a folder of their own, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("months", type=Path, help="folder of yellow_2009-MM.parquet")
    parser.add_argument("--keep", type=Path, help="where the reports are copied to")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = project(Path(folder), arguments.months.resolve())
        run(paths)
        months = json.loads((paths.monitoring / "months.json").read_text(encoding="utf-8"))
        if arguments.keep:
            shutil.copytree(paths.monitoring, arguments.keep, dirs_exist_ok=True)
    insert(ROOT / "docs" / "statistics.md", table(months))


def project(folder: Path, months: Path) -> Paths:
    """A project on the real months, fitted on all rows of January."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values |= {"months": MONTHS, "source": f"{months}/yellow_{{month}}.parquet"}
    values["schema"] = str(ROOT / values["schema"])
    values["sample"] |= {"months": dict(zip(MONTHS, ("train", "validation", "test"), strict=False)), "rows": 20_000}
    values["train"] |= {"rows": JANUARY}
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    for name in ("dvc.yaml", "features.py"):
        shutil.copyfile(ROOT / name, folder / name)
    return Paths(folder)


def run(paths: Paths) -> None:
    """Run the stages one after the other, as `dvc repro` would."""
    settings = config.load_settings(paths.params)
    for stage in ("download", "prepare", "sample"):
        for month in settings.sample.months if stage == "sample" else MONTHS:
            importlib.import_module(f"tipline.stages.{stage}").run(settings, paths, month)
    for stage in STAGES:
        importlib.import_module(f"tipline.stages.{stage}").run(settings, paths)


def table(months: list[Mapping[str, Any]]) -> Iterator[str]:
    """The months as a table in Markdown."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---|" + "---:|" * 7 + "---|---|"
    for month in months:
        flags = flagged(month)
        last = f"{month['auc']:.4f} | {', '.join(flags) or '-'} | {month['verdict']}"
        figures = f"{month['rows']:,} | {month['positive_rate']:.1%} | {month['mean_probability']:.1%}"
        skills = " | ".join(ranged(month, name) for name in ("skill", "estimated_skill", "refitted_skill"))
        yield f"| {month['month']} | {figures} | {skills} | {last} |"


def flagged(month: Mapping[str, Any]) -> list[str]:
    """What drifted, with its PSI."""
    found = {**month["drift"]["features"], "score": month["drift"]["score"]}
    return [f"{name} {of['psi']:.2f}" for name, of in found.items() if of["flagged"]]


def ranged(month: Mapping[str, Any], name: str) -> str:
    """A figure with its bounds."""
    return f"{month[name]:.1%} ({month[name + '_low']:.1%} to {month[name + '_high']:.1%})"


def insert(page: Path, lines: Iterator[str]) -> None:
    """Put lines between the markers of a page."""
    before, rest = page.read_text(encoding="utf-8").split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    inside = "\n".join(["", "", *lines, "", ""])
    page.write_text(before + MARKERS[0] + inside + MARKERS[1] + after, encoding="utf-8")


if __name__ == "__main__":
    main()
