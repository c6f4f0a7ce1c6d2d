"""The study on real trips of 2009 (1 in 1,000): `python docs/simulations/real_curve.py`.

Fits on January, scores on February, both models. Writes the pictures and, in docs/statistics.md, the table.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tipline import config
from tipline.paths import Paths
from tipline.stages import download, learning_curve, prepare, sample

ROOT = Path(__file__).parents[2]
TRIPS = ROOT.parent / "shared" / "tlc" / "tiny2009" / "yellow_{month}.parquet"
PAGE = ROOT / "docs" / "statistics.md"
MARKS = ("<!-- real trips -->", "<!-- /real trips -->")
MONTHS = {"2009-01": "train", "2009-02": "validation", "2009-03": "test"}
ESTIMATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "lr": ("logistic_regression", {"C": 1.0}),
    "hgb": ("hist_gradient_boosting", {}),
}
HEAD = "| model | rows | skill on February | AUC on February | behind the largest (bound) |\n|---|---|---|---|---|"


def project(folder: Path) -> Paths:
    """A project of three months, whole."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values |= {"months": list(MONTHS), "source": str(TRIPS), "schema": str(ROOT / values["schema"])}
    values["sample"] |= {"months": MONTHS, "rows": 20_000}
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    shutil.copyfile(ROOT / "features.py", folder / "features.py")
    paths = Paths(folder)
    settings = config.load_settings(paths.params)
    for month in MONTHS:
        for stage in (download, prepare, sample):
            stage.run(settings, paths, month)
    return paths


def decision(paths: Paths, short: str) -> dict[str, Any]:
    """Make the study with one of the models; keep its picture."""
    values = yaml.safe_load(paths.params.read_text(encoding="utf-8"))
    values["train"] |= dict(zip(("estimator", "params"), ESTIMATORS[short], strict=True))
    paths.params.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    learning_curve.run(config.load_settings(paths.params), paths)
    picture = ROOT / "docs" / "images" / f"learning_curve_real_{short}.png"
    shutil.copyfile(paths.learning_curve.with_suffix(".png"), picture)
    found: dict[str, Any] = json.loads(paths.learning_curve.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def lines(short: str, found: dict[str, Any]) -> list[str]:
    """A line of the table for each size."""

    def skill(size: dict[str, Any]) -> str:
        low, mean, high = (100 * size[name] for name in ("skill_low", "skill", "skill_high"))
        return f"{mean:.1f}% ({low:.1f} to {high:.1f})"

    return [
        f"| {short} | {size['rows']:,} | {skill(size)} | {size['auc']:.4f} | "
        f"{size['behind_largest']:.4f} ({size['behind_largest_upper']:.4f}) |"
        for size in found["sizes"]
    ]


def words(short: str, found: dict[str, Any]) -> str:
    """What the study says of a model."""
    fitted = found["fitted_curve"]
    low, skill, high = (f"{fitted[name][-1]:.1%}" for name in ("low", "skill", "high"))
    return (
        f"- {ESTIMATORS[short][0]}: {found['reason']} The fitted curve (misses {fitted['misses']} of the sizes) has a "
        f"skill of {skill} ({low} to {high}) at {fitted['rows'][-1]:,} rows."
    )


def main() -> None:
    """Make both studies."""
    with tempfile.TemporaryDirectory() as folder:
        paths = project(Path(folder))
        found = {short: decision(paths, short) for short in ESTIMATORS}
    told = [words(short, one) for short, one in found.items()]
    table = [HEAD, *(row for short, one in found.items() for row in lines(short, one)), "", *told]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    text = "\n".join([MARKS[0], *table, MARKS[1]])
    PAGE.write_text(before + text + rest.partition(MARKS[1])[2], encoding="utf-8")


if __name__ == "__main__":
    main()
