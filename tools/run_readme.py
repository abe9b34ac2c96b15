"""Run the commands and the Python of a page as they are written, in a fresh home, and again in another one.

`python tools/run_readme.py [README.md] [--times 2]` runs every line of its `sh` blocks and every `python` block with
the hivlp of this interpreter, among the files that they name: pictures that ship with hivlp, captions, and vectors.
`hivlp watch` and `hivlp serve` are ended as Ctrl-C does once they are at work. Installing and `make` are left to
whoever set up the interpreter.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hivlp.demo import pictures_folder

LEFT_OUT = ("pip ", "make ", "git ")
ENDLESS = ("hivlp watch", "hivlp serve")
ENDED = (0, 130)
"""Exit codes of what Ctrl-C ends."""
PICTURES = 60
SECONDS = 600.0


def steps(page: str) -> Iterator[list[str]]:
    """What each line of an `sh` block and each `python` block of a page starts."""
    for kind, block in re.findall(r"```(sh|python)\n(.*?)```", page, re.DOTALL):
        if kind == "python":
            yield [sys.executable, "-c", block]
            continue
        for line in block.splitlines():
            if line.strip() and not line.startswith(LEFT_OUT):
                yield ["bash", "-c", line]


def furnish(home: Path) -> None:
    """The files that the page speaks of."""
    pictures = sorted(path for path in pictures_folder().iterdir() if path.suffix == ".webp")[:PICTURES]
    for folder in ("Pictures", "photos"):
        (home / folder).mkdir()
        for path in pictures:
            shutil.copy(path, home / folder / path.name)
    Image.open(pictures[0]).convert("RGB").save(home / "beach.jpg")
    rows = [f"Pictures/{path.name},{path.stem.replace('_', ' ')}" for path in pictures]
    (home / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    for name, count in (("pictures", 5_000), ("texts", 400), ("query", 1)):
        np.save(home / f"{name}.npy", rng.normal(size=(count, 128)).astype(np.float32))


def follow(command: list[str], home: Path, environment: dict[str, str]) -> int:
    """Run one step; one that has no end is interrupted when it is at work. Gives its exit code."""
    endless = command[-1].startswith(ENDLESS)
    process = subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE if endless else None,
        text=True,
    )
    try:
        if not endless:
            return process.wait(SECONDS)
        if command[-1].startswith("hivlp watch"):
            assert process.stdout is not None
            print(process.stdout.readline(), end="", flush=True)  # of its first walk
        while process.poll() is None and command[-1].startswith("hivlp serve") and not answers():
            time.sleep(1.0)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(SECONDS)
        return 0 if code in ENDED else code
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def answers() -> bool:
    """Whether the service is there."""
    try:
        with urllib.request.urlopen("http://127.0.0.1:8000/readyz", timeout=5) as told:
            return told.status == 200
    except OSError:
        return False


def run(page: Path) -> list[str]:
    """The steps of a page that failed in a fresh home."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        furnish(home)
        (home / "bin").mkdir()
        (home / "bin" / "hivlp").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hivlp "$@"\n')
        (home / "bin" / "hivlp").chmod(0o755)
        environment = {**os.environ, "HOME": folder, "BROWSER": "true", "HIVLP_CACHE": str(home / "cache")}
        environment["PATH"] = f"{home / 'bin'}{os.pathsep}{environment['PATH']}"
        for command in steps(page.read_text(encoding="utf-8")):
            print(f"$ {command[-1].strip()}", flush=True)
            if follow(command, home, environment) != 0:
                failed.append(command[-1])
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path, nargs="?", default=Path(__file__).parents[1] / "README.md")
    parser.add_argument("--times", type=int, default=2)
    arguments = parser.parse_args()
    for number in range(arguments.times):
        if failed := run(arguments.page):
            sys.exit(f"time {number + 1}: {len(failed)} steps failed:\n" + "\n".join(failed))
    print(f"{arguments.page.name}: every step ended well, {arguments.times} times")
