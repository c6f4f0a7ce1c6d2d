"""score: the champion's probability for every row of every month, out of core, on dask."""

import contextlib
import logging
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tipline import cluster, files, git
from tipline.cluster import Client
from tipline.config import Settings
from tipline.errors import MonthsFailedError, TiplineError, format_count, join_lines
from tipline.model import artifact
from tipline.months import refuse_experiment
from tipline.paths import Paths, month_name
from tipline.scoring import plan, worker
from tipline.scoring.plan import Month
from tipline.storage import REQUESTS, Storage, open_storage

log = logging.getLogger(__name__)

LIBRARIES = ("numpy", "pyarrow", "dask")


def run(settings: Settings, paths: Paths, trips: str = "", to: str = "") -> None:
    """Score the months that are not published with this champion.

    `trips` and `to` locate prepared months and predictions; default: the project's folders. Only in these, predictions
    of months that are not in `months` any more are removed. Raises a MonthsFailedError if some months cannot be scored.
    """
    locations = plan.Locations.resolve(settings, paths, trips, to)
    plan.refuse_old_months(locations.trips, "Prepare them again with this version: dvc repro prepare")
    plan.refuse_old_months(locations.predictions, "Remove this folder and score again, or name another one (--to).")
    with locations.staged.hold_lock():
        locations.predictions.recover_folders(locations.staged)
        ref = files.read_json(paths.champion_ref, "Run: dvc repro register")
        contents = artifact.read_artifact(paths.champion)
        artifact.check_digest(contents, ref["digest"])
        locations.trips.check_access()
        is_mirrored = not to and settings.storage.predictions is not None
        if not to:
            paths.predictions.mkdir(parents=True, exist_ok=True)
            listed, own = {month_name(month) for month in settings.months}, open_storage(paths.predictions)
            for name in own.list_folders():
                if name.startswith("month=") and name not in listed:
                    own.remove_folder(name)
                    log.info("%s: no longer in `months`, predictions removed", name)
        months, failed = plan.plan_months(
            locations, settings.months, ref["digest"], artifact.read_spec(contents), settings.score.id_columns
        )
        plan.remove_stale_staging(locations, months, failed)
        training = files.try_read_json(paths.champion / artifact.TRAINING) or {}
        libraries = {}
        for name in dict.fromkeys((*training.get("libraries", ()), *LIBRARIES)):
            with contextlib.suppress(PackageNotFoundError):  # a compiled model does without some
                libraries[name] = version(name)
        made = {name: ref[name] for name in ("name", "version", "run")}
        made |= {"git": git.get_revision(), "python": platform.python_version(), "libraries": libraries}
        if is_mirrored and months:
            refuse_experiment(paths, locations.predictions.address(), months[0].month)
        failed |= score_months(settings, months, ref["digest"], contents, made)
        if is_mirrored:
            mirror_manifests(locations.predictions, paths, settings.months)
    if failed:
        what = f"{len(failed)} of {len(settings.months)} months failed: "
        what += "; ".join(f"{month}: {reason}" for month, reason in failed.items())
        todo = "The other months are published, finished parts are kept. Fix the cause and run it again (dvc repro)."
        raise MonthsFailedError(what, "score", todo)


def mirror_manifests(predictions: Storage, paths: Paths, months: Sequence[str]) -> None:
    """Copy the manifests of published months to data/predictions/, where they are DVC's output."""
    names = [f"{month_name(month)}/{files.MANIFEST}" for month in months]
    with ThreadPoolExecutor(REQUESTS) as threads:
        for name, data in zip(names, threads.map(predictions.read, names), strict=True):
            path = paths.predictions / name
            if data is None:
                continue
            for part in path.parent.glob("part-*"):
                part.unlink()  # from before `storage.predictions` was set
            if not (path.is_file() and path.read_bytes() == data):
                files.write_text(path, data.decode())


@dataclass
class Run:
    """The months of a run by name, and what has become of them."""

    months: dict[str, Month]
    made: Mapping[str, Any]  # facts about the run, for the manifests
    failed: dict[str, str] = field(default_factory=dict)  # reasons by month
    started: float = field(default_factory=time.perf_counter)

    @property
    def open_months(self) -> list[Month]:
        return [month for name, month in self.months.items() if month.open and name not in self.failed]

    def choose_forms(self, rows: int) -> tuple[Sequence[str], int]:
        """Return the forms of the model to try, and the rows that decide whether kernels pay: by default the open ones.

        Finished parts are kept: the form that made most of them comes first, however few rows are left.
        """
        kept = Counter[str]()
        for month in self.months.values():
            kept[month.form] += sum(part["rows"] for part in month.done.values())
        if not kept.total():
            return artifact.FORMS, rows
        log.info("%s of a run that did not end are kept", format_count(kept.total(), "row"))
        return artifact.FORMS[artifact.FORMS.index(kept.most_common(1)[0][0]) :], sys.maxsize

    def publish(self, month: Month) -> None:
        try:
            plan.publish_month(month, {**self.made, "seconds": round(time.perf_counter() - self.started, 3)})
            log.info("%s: published", month.month)
        except (TiplineError, OSError) as error:
            self.failed[month.month] = f"it is scored, but cannot be published: {join_lines(error)}"

    def score_open_months(self, client: Client, form: str) -> bool:
        """Score with one form of the model; return whether a worker joined late and does not have it."""
        for month in self.open_months:
            self.months[month.month] = chosen = month.choose_form(form)
            if not chosen.open:  # another run has just finished it
                self.publish(chosen)
        blocks, is_late = [block for month in self.open_months for block in month.open], False
        self.started, scored = time.perf_counter(), 0
        total = sum(block.rows for block in blocks)
        with tqdm(total=total, unit=" rows", unit_scale=True, leave=False, disable=None) as bar:
            for block, result in cluster.run_tasks(client, worker.score_block, blocks):
                if isinstance(result, worker.OtherFormError) and form != artifact.PIPELINE:
                    is_late = True
                elif isinstance(result, Exception):
                    self.failed[block.month] = join_lines(plan.explain_failure(block, result))
                else:
                    month = self.months[block.month]
                    month.done[block] = result
                    scored += block.rows
                    bar.update(block.rows)
                    if not month.open:
                        self.publish(month)
        log.info("scored %s in %.1f s", format_count(scored, "row"), time.perf_counter() - self.started)
        return is_late


def score_months(
    settings: Settings, months: Sequence[Month], digest: str, contents: dict[str, bytes], made: dict[str, Any]
) -> dict[str, str]:
    """Score all open blocks; publish each month when it is whole. Return the reasons of months that failed."""
    run, rows = Run({month.month: month for month in months}, made), sum(b.rows for month in months for b in month.open)
    names, count = ", ".join(run.months) or "nothing to do", format_count(rows, "row")
    log.info("scoring with %s version %s: %s (%s)", made["name"], made["version"], names, count)
    forms, deciding_rows = run.choose_forms(rows)
    for month in months:
        if not month.open:
            run.publish(month)
    if not run.open_months:
        return run.failed
    storages, is_late = [months[0].locations.trips, months[0].locations.staged], True
    connected = cluster.connect_client(settings.cluster.n_workers, settings.cluster.factory)
    with connected as client, logging_redirect_tqdm():
        while is_late:
            with worker.send_model(client, contents, digest, storages, deciding_rows, forms) as form:
                is_late = run.score_open_months(client, form)
            if is_late:
                forms = forms[forms.index(form) + 1 :]
                log.warning("A worker that joined late cannot use the model's %s form. Open months start again.", form)
    return run.failed
