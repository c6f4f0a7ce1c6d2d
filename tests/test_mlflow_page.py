"""MLflow's own page in a browser, on plain `mlflow ui`: what a person sees of runs and versions, and a promotion there.

The pictures of README and docs come from here:
`TIPLINE_PICTURES=docs/images pytest tests/test_mlflow_page.py`, with larger months, in about five minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from mlflow.tracking import MlflowClient

from tests import stories, tour, workbench
from tests.conftest import forget_store, settings_values
from tests.servers import Program
from tests.stories import Story
from tipline import cluster
from tipline.paths import Paths
from tipline.registry import champion

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page


pytestmark = [pytest.mark.in_order, *workbench.MLFLOW_WARNINGS]  # a promotion by clicking is the end of it
NAME = "tip-probability"
PICTURES = os.environ.get("TIPLINE_PICTURES")
LARGE = {"demo": {"rows": 50_000}, "sample": {"rows": 40_000}, "learning_curve": {"smallest": 500, "sizes": 6}}
# What the page shows of itself only, on a first visit.
QUIET = """
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
"""
ROWS = 40_000 if PICTURES else 2500
# A question on which derived columns and boosting do better than a linear model.
LARGE_TIP: dict[str, Any] = {"target": "tip_amount > 2", "features": "add_features"}
LARGE_TIP |= {"columns": [*settings_values()["model"]["columns"], "dropoff_datetime"]}
LARGE_TIP |= {"categorical": ["vendor", "payment_type", "weekday"]}
BOOSTING: dict[str, Any] = {"estimator": "lightgbm.LGBMClassifier", "rows": ROWS, "params": {"num_leaves": 7}}
FEW: dict[str, Any] = {"estimator": "logistic_regression", "rows": 2000, "params": {"C": 0.1}}
FEW_COLUMNS = {"columns": ["payment_type", "fare_amount"], "features": None, "categorical": None}
FIRST = r"[\d,]+x8 C=1\.0 logistic_regression"
NAMES = [FIRST, f"{ROWS:,}x8 num_leaves=7 lightgbm.LGBMClassifier", "2,000x2 C=0.1 logistic"]


@dataclass
class Shown:
    """A project of three models, its page, and what is in its store."""

    story: Story
    page: Page
    address: str
    client: MlflowClient

    def go(self, place: str, text: str) -> None:
        """Open a place of the page and wait for a text there."""
        self.page.goto("about:blank")  # or the same place again would show what it showed
        self.page.goto(f"{self.address}/#/{place}")
        self.page.get_by_text(text, exact=False).first.wait_for()

    def text(self) -> str:
        return self.page.inner_text("body")

    def runs(self, experiment: str) -> list[Any]:
        """The runs of an experiment, oldest first."""
        found = self.client.get_experiment_by_name(f"tipline/{experiment}")
        assert found is not None
        return list(self.client.search_runs([found.experiment_id], order_by=["attributes.start_time"]))

    def picture(self, name: str) -> None:
        """Keep a picture, if they are wanted, of the page without its menu."""
        if PICTURES:
            time.sleep(2)  # charts come in sliding
            clip = {"x": 200, "y": 10, "width": 1000, "height": 780}
            self.page.screenshot(path=Path(PICTURES, f"{name}.png"), clip=clip)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A project as DVC knows it, in which three models were trained; the first is champion."""
    sections: dict[str, Any] = {"months": list(workbench.MONTHS), "model": LARGE_TIP} | (LARGE if PICTURES else {})
    story = stories.start(tmp_path_factory.mktemp("page") / "project", **sections)
    paths = Paths(story.root)
    shutil.copyfile(request.getfixturevalue("mlflow_template"), story.root / "mlflow.db")
    with pytest.MonkeyPatch.context() as monkeypatch, forget_store():
        for name in ("MLFLOW_REGISTRY_URI", "DVC_ROOT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(cluster.ADDRESS, request.getfixturevalue("dask_address"))
        workbench.run_to(paths, "record")
        for sections in ({"train": BOOSTING}, {"train": FEW, "model": FEW_COLUMNS}):
            workbench.change_settings(paths, **sections)
            workbench.run(paths, "train", "register", "evaluate", "record")
    stories.dvc(story, "commit", "--force", "--quiet")
    return story


@pytest.fixture(scope="module")
def shown(story: Story, browser: Browser) -> Iterator[Shown]:
    """The page of plain `mlflow ui` in the project."""
    store, server = f"sqlite:///{story.root / 'mlflow.db'}", Program(story.root.parent)
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.add_init_script(QUIET)
    context.set_default_timeout(60_000)
    command = ("mlflow", "ui", "--host", "127.0.0.1", "--port", str(server.port), "--workers", "1")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # two processes instead of ten
        monkeypatch.setenv("MLFLOW_MODEL_CATALOG_URI", "")
        with workbench.running(*command, folder=story.root, printed=story.root.parent / "ui.log"):
            workbench.wait_for(server.listens, 120)
            yield Shown(story, context.new_page(), f"http://{server.place}", MlflowClient(store, store))


def row_of(page: Page, name: str) -> list[str]:
    """The cells of a row of the comparison, by its first one."""
    row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True)).first
    return [cell.strip() for cell in row.inner_text().split("\t")]


def test_three_models_are_compared_side_by_side(shown: Shown) -> None:
    runs = shown.runs("train")
    of_runs = quote(json.dumps([run.info.run_id for run in runs]))
    experiment = runs[0].info.experiment_id
    shown.go(f"compare-runs?runs={of_runs}&experiments={quote(json.dumps([experiment]))}", "Run details")
    shown.page.get_by_text("Visualizations").click()
    seen = shown.text()
    for name in NAMES:
        assert re.search(name, seen), name
    estimators = [FEW["estimator"], BOOSTING["estimator"], FEW["estimator"]]
    assert row_of(shown.page, "estimator")[1:] == estimators
    assert row_of(shown.page, "rows")[2:] == [str(ROWS), "2000"]
    assert row_of(shown.page, "columns")[3] == "payment_type, fare_amount"
    # The same names for training and evaluation of every model; few enough to be read at once.
    figures = ("log_loss", "baseline_log_loss", "skill", "auc")
    names = {f"{part}.{figure}" for part in ("train", "test") for figure in figures}
    assert all(name in seen for name in names)
    assert all(names <= run.data.metrics.keys() for run in runs)
    assert all(len(run.data.params) <= 6 and len(run.data.metrics) <= 11 for run in runs)
    shown.page.get_by_text("Run details").click()
    shown.picture("mlflow_compare")


def test_the_learning_curve_is_a_line_over_the_rows(shown: Shown) -> None:
    study = shown.runs("learning_curve")[0]
    shown.go(f"experiments/{study.info.experiment_id}/runs/{study.info.run_id}/model-metrics", "Model metrics")
    shown.page.get_by_placeholder("Search metric charts").fill("skill$")
    shown.page.get_by_text("skill", exact=True).first.wait_for()
    shown.page.locator(".scatterlayer .points path").first.wait_for()
    sizes = len(workbench.read_json(shown.story.root / "reports/learning_curve.json")["sizes"])
    assert shown.page.locator(".scatterlayer").first.locator(".points path").count() == sizes
    assert re.search(FIRST, shown.text())


def test_a_version_has_a_card_whose_links_lead_to_its_runs(shown: Shown) -> None:
    shown.go(f"models/{NAME}/versions/1", "Months scored")
    seen = shown.text()
    shown.page.get_by_text("@ champion").first.wait_for()
    report = workbench.read_json(shown.story.root / "reports/evaluation.json")
    for words in ("Figures", "Calibration", "The gate", "Data", "Limits", "Lineage", "source: demo"):
        assert words in seen, words
    assert f"skill {report['champion']['skill']:.1%}" in seen
    assert f"the baseline's {report['baseline']['log_loss']:.4f}" in seen
    assert "cash tips are not recorded" in seen
    assert "columns: vendor, pickup_datetime" in seen
    assert workbench.read_json(shown.story.root / "models/champion/ref.json")["digest"] in seen
    shown.picture("mlflow_version")
    for link, heading in (("training", NAMES[0]), ("evaluation", " on 2009-03"), ("2024-01", "2024-01, version 1")):
        followed = shown.page.get_by_role("link", name=link, exact=True).get_attribute("href")
        shown.go(str(followed).split("#/")[1], "About this run")
        assert re.search(heading, shown.page.locator("h1, h2, h3").first.inner_text()), link
        # And from each of them back.
        shown.page.get_by_role("link", name=f"{NAME} version 1").first.wait_for()
        shown.go(f"models/{NAME}/versions/1", "Months scored")


def version_row(shown: Shown, number: int) -> Locator:
    """The row of a version in the model's list."""
    return shown.page.get_by_role("row").filter(has=shown.page.get_by_text(f"Version {number}", exact=True))


def test_a_champion_named_by_clicking_in_the_list_of_versions_scores_at_the_next_repro(shown: Shown) -> None:
    shown.go(f"models/{NAME}", "Version 3")
    assert "The description of each version is its card." in shown.text()
    for number in (1, 2, 3):
        row = version_row(shown, number).inner_text()
        assert re.search(r"skill -?[\d.]+% on 2009-03", row), row
        assert version_row(shown, number).get_by_text("@ champion").count() == (number == 1), row
    version_row(shown, 2).get_by_role("button", name="Add", exact=True).click()
    dialog = shown.page.get_by_role("dialog")
    dialog.get_by_role("combobox").fill("champion")
    dialog.get_by_role("combobox").press("Enter")
    dialog.get_by_role("button", name="Save aliases").click()
    dialog.wait_for(state="hidden")
    # The list does not follow by itself.
    shown.go(f"models/{NAME}", "Version 2")
    version_row(shown, 2).get_by_text("@ champion").wait_for()
    assert version_row(shown, 1).get_by_text("@ champion").count() == 0
    version_row(shown, 1).scroll_into_view_if_needed()
    shown.picture("promote")
    shown.story.repro("followed")
    done = shown.story.repros["followed"]
    assert done.code == 0, done.output
    assert done.stages == ["register", "evaluate", "score", "monitor", "record"], done.output
    assert {json.loads(manifest)["made"]["version"] for manifest in shown.story.manifests["followed"].values()} == {2}
    change = champion.list_changes(shown.client, NAME)[-1]
    assert (change.how, change.before and change.before.version, change.after.version) == ("external", 1, 2)
    if PICTURES:
        model = f"{{target: {LARGE_TIP['target']}, features: {LARGE_TIP['features']}}}"
        settings = f"model: {model}\ntrain: {{estimator: {BOOSTING['estimator']}}}"
        tour.compose(shown.page, Path(PICTURES), settings, done.output)
        shown.page.goto((shown.story.root / "reports/monitoring/index.html").as_uri())
        shown.page.screenshot(path=Path(PICTURES, "monitoring_page.png"))
    shown.go(f"models/{NAME}/versions/2", "Months scored")
    shown.page.get_by_text("@ champion").first.wait_for()
    shown.go(f"experiments/{shown.runs('monitor')[0].info.experiment_id}/runs", "2024-01, version 2")


def test_a_second_record_writes_nothing_and_what_a_person_wrote_stays(shown: Shown) -> None:
    card, seen = shown.client.get_model_version(NAME, "3").description, []
    shown.client.update_model_version(NAME, "3", "Mine alone.")
    shown.client.update_registered_model(NAME, "Ours.")
    for _ in range(2):
        assert shown.story.run("tipline", "record").returncode == 0
        version = shown.client.get_model_version(NAME, "3")
        seen.append((version.description, version.last_updated_timestamp))
    assert seen[0] == seen[1]
    assert seen[0][0] == f"{card}\n\nMine alone."
    assert shown.client.get_registered_model(NAME).description == "Ours."
