"""A project as a clone has it, in which the real `dvc repro` runs, and what was seen at each step of its life."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tests import warm
from tests.conftest import ENVIRONMENT, ROOT, settings_values

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass
class Repro:
    """What one `dvc repro` did."""

    code: int
    output: str
    stages: list[str]


@dataclass
class Story:
    """A project, and what was seen at each step of its life; `warm`: its commands are forks (see tests/warm.py)."""

    root: Path
    repros: dict[str, Repro] = field(default_factory=dict)
    manifests: dict[str, Mapping[str, str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    warm: bool = True

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user with an activated environment does."""
        environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
        folders = [*([str(warm.commands())] if self.warm else []), str(Path(sys.executable).parent)]
        environment |= {
            "PATH": os.pathsep.join([*folders, environment["PATH"]]),
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **self.environment,
        }
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)

    def repro(self, name: str, *targets: str) -> None:
        """Run `dvc repro` and keep what it did under a name."""
        done = self.run("dvc", "repro", *targets)
        self.keep(name, done.returncode, done.stdout + done.stderr)

    def keep(self, name: str, code: int, output: str) -> None:
        """Keep what a `dvc repro` did under a name."""
        self.repros[name] = Repro(code, output, re.findall(r"Running stage '(.+?)'", output))
        self.manifests[name] = {
            path.parent.name: path.read_text() for path in self.root.glob("data/predictions/month=*/_manifest.json")
        }

    def settings(self, **sections: object) -> None:
        """Write params.yaml."""
        (self.root / "params.yaml").write_text(yaml.safe_dump(settings_values(**sections), sort_keys=False))


def start(root: Path, **sections: object) -> Story:
    """The project as a clone has it, with small settings (see `conftest.settings_values`)."""
    kept = (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitattributes", ".gitignore", "dvc.yaml")
    for name in (*kept, "data/README.md", "models/README.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    story = Story(root)
    story.settings(**sections)
    story.run("git", "init", "--quiet")
    story.run("git", "add", "--all")
    story.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "start")
    return story
