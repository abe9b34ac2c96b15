"""Runs Lighthouse over the page of `hivlp serve`: `python tools/lighthouse.py`; fails where a score is below 95.

It indexes the pictures that ship with the package, serves them, and has npx fetch Lighthouse (90 MB) and drive a real
Chromium, as a phone and as a desktop. Needs npm, and Chromium on the PATH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from screenshots import CHROMIUM, URL, served

LIGHTHOUSE = "lighthouse@12.8.2"
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
LEAST = 95
PATHS = ("/", "/?q=something+to+eat")


def main() -> int:
    below = 0
    with served():
        for path in PATHS:
            for device in ("mobile", "desktop"):
                below += told(path, device, audited(URL + path, device))
    return 1 if below else 0


def audited(address: str, device: str) -> dict[str, Any]:
    """Lighthouse's report as JSON."""
    command = [
        "npx", "--yes", LIGHTHOUSE, address, "--output=json", "--quiet", "--chrome-flags=--headless=new --no-sandbox",
        f"--only-categories={','.join(CATEGORIES)}", *(["--preset=desktop"] if device == "desktop" else []),
    ]  # fmt: skip
    environment = {**os.environ, "CHROME_PATH": CHROMIUM or ""}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def told(path: str, device: str, report: dict[str, Any]) -> int:
    """How many categories are below; prints all, and what they lost points for."""
    categories = report["categories"]
    scores = {name: round(100 * categories[name]["score"]) for name in CATEGORIES}
    sys.stdout.write(f"{path} as a {device}: " + ", ".join(f"{name} {score}" for name, score in scores.items()) + "\n")
    for name in CATEGORIES:
        for reference in categories[name]["auditRefs"]:
            audit = report["audits"][reference["id"]]
            if reference["weight"] and audit["score"] is not None and audit["score"] < 0.9:
                sys.stdout.write(f"  {name}: {audit['title']} {audit.get('displayValue', '')}\n")
    return sum(score < LEAST for score in scores.values())


if __name__ == "__main__":
    raise SystemExit(main())
