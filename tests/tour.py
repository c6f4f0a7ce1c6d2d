"""The picture at the top of the README: a promotion in MLflow's page, what `dvc repro` then does, what it was worth."""

from __future__ import annotations

import base64
import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

WIDTH = 1240
# Of what `dvc repro` prints: what the stages say themselves.
TOLD = re.compile(r"^(challenger: |the champion moved|scoring with|month |20\d\d-\d\d )")
STYLE = """
body { margin: 0; padding: 20px; width: 1200px; font: 15px/1.4 system-ui, sans-serif; color: #1b1f24; background: #fff }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 18px }
section { border: 1px solid #d5dae1; border-radius: 8px; overflow: hidden; background: #fff }
h2 { margin: 0; padding: 9px 14px; font-size: 15px; background: #f2f4f7; border-bottom: 1px solid #d5dae1 }
div { overflow: hidden; height: 300px }
img { display: block; width: 100% }
pre { margin: 0; padding: 12px 14px; height: 276px; font: 10.5px/1.6 ui-monospace, monospace; color: #e6edf3;
      background: #16202b; white-space: pre-wrap }
b { color: #7ee2a8; font-weight: normal }
.wide { grid-column: 1 / 3 }
.wide div { height: 268px }
"""


def compose(page: Page, pictures: Path, output: str) -> None:
    """Put three panels into `tour.png`: promote.png, what `dvc repro` then printed, and monitoring_page.png."""
    promoted, monitored = (
        f"data:image/png;base64,{base64.b64encode((pictures / f'{name}.png').read_bytes()).decode()}"
        for name in ("promote", "monitoring_page")
    )
    lines = "\n".join(html.escape(line) for line in output.splitlines() if TOLD.match(line))
    page.set_viewport_size({"width": WIDTH, "height": 700})
    page.set_content(
        f"""<style>{STYLE}</style><main>
        <section><h2>1 · Promote a version in MLflow's page</h2>
        <div><img src="{promoted}" style="margin-top: -148px"></div></section>
        <section><h2>2 · Type <code>dvc repro</code>: only what changed is scored again</h2>
        <pre><b>$ dvc repro</b>\n{lines}</pre></section>
        <section class="wide"><h2>3 · See how good the scores of each month were</h2>
        <div><img src="{monitored}" style="margin-top: -24px"></div></section>
        </main>"""
    )
    page.locator("body").screenshot(path=pictures / "tour.png")
    page.set_viewport_size({"width": 1200, "height": 800})
