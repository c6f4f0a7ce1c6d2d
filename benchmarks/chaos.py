"""Kill, fill up and crowd a small project in every stage; compare what `dvc repro` then makes with an undisturbed run.

Usage: python benchmarks/chaos.py [--kills 40] [--seed 1] [--folder SCRATCH] [SCENARIO ...]

Without names, all scenarios run: kills, store, disk, queue, clones, experiments, workers. `disk` needs the right to
mount. Prints a Markdown table with a row per scenario and stage, and below it what went wrong. A kill takes about 40
seconds on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parent.parent
MONTHS = {"2009-01": "train", "2009-02": "validation", "2009-03": "test"}
COPIED = (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml", "features.py", "params.yaml")
SETTINGS = {
    "demo": {"rows": 3000},
    "sample": {"rows": 2500, "months": MONTHS},
    "learning_curve": {"smallest": 100, "sizes": 3, "repeats": 2},
    "cluster": {"n_workers": 1},
}
# The seconds of fits, the address of MLflow's run, and when a month was scored; all else has to be the same bytes.
VARIES = re.compile(rb'"(fit_seconds|seconds|run|made|date|written)": [^,\n}]+')
SKIPPED = {"ref.json", "learning_curve.png", "learning_curve.csv"}
Row = tuple[str, str, int, int, str]  # scenario, stage, tries, those that did something, result


class Chaos:
    """A project in a scratch folder, a copy of it before each stage, and what an undisturbed run makes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)  # noqa: S311
        self.root, self.faults = folder / "project", list[str]()
        self.environment = os.environ | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        self.create_project()
        self.stages = self.run("dvc", "stage", "list", "--name-only").stdout.split()
        self.seconds = {stage: self.run_stage(stage) for stage in self.stages}
        self.expected = self.read_outputs()

    def create_project(self) -> None:
        for name in COPIED:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, self.root / name)
        shutil.copytree(ROOT / "src", self.root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for name in ("data", "models", "reports"):
            (self.root / name).mkdir()
        self.change_settings(months=[*MONTHS], **SETTINGS)
        self.run("git", "init", "--quiet")
        self.commit()

    def change_settings(self, **sections: object) -> None:
        path = self.root / "params.yaml"
        values = yaml.safe_load(path.read_text())
        for name, section in sections.items():
            values[name] = values[name] | section if isinstance(section, dict) else section
        path.write_text(yaml.safe_dump(values, sort_keys=False))

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "x")

    def run(self, *command: str, root: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=root or self.root, env=self.environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def run_stage(self, stage: str) -> float:
        """Keep the project as it is before a stage, run the stage, return its seconds without DVC's own."""
        shutil.copytree(self.root, self.folder / "before" / stage, symlinks=True)
        with self.repro("--single-item", stage) as (process, printed):
            started = time.monotonic()
            if process.wait():
                raise SystemExit(f"the undisturbed run failed in {stage}:\n{printed.read_text()}")
        return time.monotonic() - started

    def go_back(self, stage: str | None = None) -> None:
        """Bring the project back as it was before a stage, or else at the end of the undisturbed run."""
        clear(self.root)
        before = self.folder / "before" / stage if stage else self.folder / "end"
        shutil.copytree(before, self.root, symlinks=True, dirs_exist_ok=True)

    def read_outputs(self) -> dict[str, str]:
        """Keep the project at its end, and digest what has to be the same in every run."""
        if not (self.folder / "end").exists():
            self.commit()
            shutil.copytree(self.root, self.folder / "end", symlinks=True)
        found = {}
        for path in (
            path for name in ("data/predictions", "models", "reports") for path in (self.root / name).rglob("*")
        ):
            if path.is_file() and path.name not in SKIPPED and (path.suffix != ".json" or "data" not in path.parts):
                data = VARIES.sub(b"", path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
                found[str(path.relative_to(self.root))] = hashlib.sha256(data).hexdigest()
        return found

    @contextlib.contextmanager
    def repro(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """Start `dvc repro` in a process group of its own; go on when its first stage runs, or when it has ended."""
        printed = self.folder / "printed"
        with printed.open("wb") as out:
            process = subprocess.Popen(
                ["dvc", "repro", *arguments],  # noqa: S607
                cwd=self.root,
                env=self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        while b"Running stage" not in printed.read_bytes() and process.poll() is None:
            time.sleep(0.01)
        yield process, printed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def resume(self, case: str) -> bool:
        """Run `dvc repro` and say whether all is as if nothing had happened; what is not is kept for the end."""
        done = self.run("dvc", "repro", check=False)
        found = self.read_outputs() if not done.returncode else {}
        differing = sorted(name for name in {**found, **self.expected} if found.get(name) != self.expected.get(name))
        verified = self.run("tipline", "verify", check=False)
        if done.returncode:
            self.faults.append(
                f"{case}: dvc repro ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}"
            )
        elif differing or verified.returncode:
            self.faults.append(f"{case}: differing: {differing}\nverify:\n{verified.stdout[-1000:]}")
        return not (done.returncode or differing or verified.returncode)


def clear(folder: Path) -> None:
    """Empty a folder, which may be a mount, and may still be written to by what was killed."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def kill_group(process: subprocess.Popen[bytes]) -> bool:
    """Kill `dvc repro` and everything that it started; whether it was still there."""
    was_running = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return was_running


def kill_stage(process: subprocess.Popen[bytes]) -> bool:
    """Kill the process of the stage alone, and let DVC report it."""
    killed = False
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "tipline" in " ".join(child.cmdline()[1:2]) and "forkserver" not in " ".join(child.cmdline()):
                    child.kill()
                    killed = True
    return process.wait() != 0 and killed


def kills(chaos: Chaos, count: int) -> Iterator[Row]:
    """Kill at a random moment of each stage: by turns the whole group and the stage's process alone."""
    results: dict[str, list[tuple[bool, bool]]] = {stage: [] for stage in chaos.stages}
    for number in range(count):
        stage, kill = (
            chaos.stages[number % len(chaos.stages)],
            (kill_group, kill_stage)[number // len(chaos.stages) % 2],
        )
        chaos.go_back(stage)
        moment = chaos.random.random() * chaos.seconds[stage]
        with chaos.repro() as (process, _):
            time.sleep(moment)
            killed = kill(process)
        case = f"{kill.__name__} {moment:.2f} s of {chaos.seconds[stage]:.2f} into {stage}"
        results[stage].append((killed, chaos.resume(case)))
        print(f"{case}: {results[stage][-1]}", file=sys.stderr, flush=True)
    for stage, found in results.items():
        yield "kill", stage, len(found), sum(killed for killed, _ in found), summarize(fine for _, fine in found)


def store(chaos: Chaos, count: int) -> Iterator[Row]:
    """Kill while MLflow's database is created."""
    found = []
    for number in range(max(2, count // 10)):
        chaos.go_back("register")
        with chaos.repro() as (process, _):
            while not list(chaos.root.glob(".mlflow.db.*.tmp*")) and process.poll() is None:
                time.sleep(0.001)
            time.sleep(chaos.random.random() * 2)
            killed = kill_group(process) and not (chaos.root / "mlflow.db").exists()
        found.append((killed, chaos.resume(f"creation of the store, try {number}")))
    yield (
        "kill",
        "creation of MLflow's store",
        len(found),
        sum(one for one, _ in found),
        summarize(one for _, one in found),
    )


def disk(chaos: Chaos, _: int) -> Iterator[Row]:
    """Fill the disk when a stage starts; make room and resume."""
    clear(chaos.root)
    mount = ["mount", "-t", "tmpfs", "-o", "size=400m", "none", str(chaos.root)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        yield "full disk", "-", 0, 0, "not run: no right to mount"
        return
    try:
        for stage in chaos.stages:
            chaos.go_back(stage)
            ballast = chaos.root / "ballast"
            with chaos.repro() as (process, printed):
                with ballast.open("wb") as file, contextlib.suppress(OSError):
                    free = os.statvfs(chaos.root)
                    os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
                failed = process.wait() != 0
            trace = "Traceback" in printed.read_text(errors="replace")
            ballast.unlink()
            fine = chaos.resume(f"full disk in {stage}")
            if trace:
                chaos.faults.append(f"full disk in {stage}: a trace:\n{printed.read_text(errors='replace')[-3000:]}")
            yield "full disk", stage, 1, int(failed), summarize([fine and not trace])
    finally:
        subprocess.run(["umount", "--lazy", str(chaos.root)], check=True)  # noqa: S607


def queue(chaos: Chaos, _: int) -> Iterator[Row]:
    """Run two queued experiments in two workers beside a `dvc repro` that trains, too."""
    chaos.go_back()
    queued = {"one": 700, "two": 900}
    for name, value in queued.items():
        chaos.run("dvc", "exp", "run", "--queue", "--name", name, "--set-param", f"train.rows={value}")
    chaos.change_settings(train={"rows": 1100})
    chaos.run("dvc", "queue", "start", "--jobs", "2")
    done = chaos.run("dvc", "repro", check=False)
    end, status = time.monotonic() + 900, ""
    while (status := chaos.run("dvc", "queue", "status").stdout).count("Success") < len(
        queued
    ) and time.monotonic() < end:
        if "Failed" in status:
            break
        time.sleep(1)
    chaos.run("dvc", "queue", "stop", "--kill", check=False)
    chaos.run("git", "checkout", "--quiet", "--", "params.yaml")
    fine = not done.returncode and status.count("Success") == len(queued)
    if not fine:
        logs = "".join(chaos.run("dvc", "queue", "logs", name, check=False).stdout[-1500:] for name in queued)
        chaos.faults.append(f"queue beside repro:\n{done.stdout[-1500:]}{done.stderr[-1500:]}\n{status}\n{logs}")
    yield "two queue workers beside a repro", "all", 3, 3, summarize([fine, chaos.resume("after queue beside repro")])


def clones(chaos: Chaos, _: int) -> Iterator[Row]:
    """Let two clones score to one destination at once."""
    chaos.go_back()
    place, clone = chaos.folder / "place", chaos.folder / "clone"
    shutil.copytree(chaos.root, clone, symlinks=True)
    command = ("tipline", "score", "--to", str(place))
    both = [
        subprocess.Popen(command, cwd=root, env=chaos.environment, stderr=subprocess.DEVNULL)
        for root in (chaos.root, clone)
    ]
    codes = [process.wait() for process in both]
    wrong = []
    for path in (chaos.root / "data/predictions").rglob("*.parquet"):
        other = place / path.relative_to(chaos.root / "data/predictions")
        if not other.is_file() or other.read_bytes() != path.read_bytes():
            wrong.append(str(other))
    if any(codes) or wrong:
        chaos.faults.append(f"clones: exit codes {codes}, differing: {wrong}")
    yield "two clones, one destination", "score", 2, 2, summarize([not code for code in codes] + [not wrong])


def experiments(chaos: Chaos, _: int) -> Iterator[Row]:
    """Time commands in a store that has 200 more training runs."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    from mlflow import MlflowClient  # noqa: PLC0415 (seconds)
    from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415

    chaos.go_back()
    commands = ("register", "record", "status")
    before = {command: time_command(chaos, command) for command in commands}
    client = MlflowClient(f"sqlite:///{chaos.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tipline/train")
    (template, *_) = client.search_runs([experiment.experiment_id])
    for number in range(200):
        run = client.create_run(experiment.experiment_id, run_name=f"experiment {number}")
        tags = template.data.tags | {"tipline.digest": uuid.uuid4().hex * 2, "dvc.exp": f"experiment-{number}"}
        client.log_batch(
            run.info.run_id,
            [Metric(name, value, 0, 0) for name, value in template.data.metrics.items()],
            [Param(name, value) for name, value in template.data.params.items()],
            [RunTag(name, value) for name, value in tags.items() if not name.startswith("mlflow.")],
        )
        client.set_terminated(run.info.run_id)
    for command in commands:
        seconds = f"{before[command]:.1f} s with 1 run, {time_command(chaos, command):.1f} s with 201"
        yield "200 experiments in the store", command, 1, 1, seconds


def time_command(chaos: Chaos, command: str) -> float:
    started = time.monotonic()
    chaos.run("tipline", command)
    return time.monotonic() - started


def workers(chaos: Chaos, _: int) -> Iterator[Row]:
    """Score with eight workers, whatever the number of cores."""
    for count in (1, 8):
        chaos.go_back()
        chaos.change_settings(cluster={"n_workers": count})
        shutil.rmtree(chaos.root / "data/predictions")
        seconds = time_command(chaos, "score")
        yield f"{count} workers", "score", 1, 1, f"{seconds:.1f} s, {summarize([chaos.resume(f'{count} workers')])}"


SCENARIOS: dict[str, Callable[[Chaos, int], Iterator[Row]]] = {
    scenario.__name__: scenario for scenario in (kills, store, disk, queue, clones, experiments, workers)
}


def summarize(tries: Iterator[bool] | list[bool]) -> str:
    failed = list(tries).count(False)
    return f"{failed} FAILED" if failed else "as undisturbed"


def main() -> None:
    """Print the table, then what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], metavar="SCENARIO")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-", dir=options.folder, ignore_cleanup_errors=True) as folder:
        chaos = Chaos(Path(folder), options.seed)
        print("| what | where | tries | hit | then `dvc repro` |\n| --- | --- | ---: | ---: | --- |", flush=True)
        for name in options.scenarios or SCENARIOS:
            for row in SCENARIOS[name](chaos, options.kills):
                print("| " + " | ".join(map(str, row)) + " |", flush=True)
    for fault in chaos.faults:
        print(f"\n{fault}")
    sys.exit(bool(chaos.faults))


if __name__ == "__main__":
    main()
