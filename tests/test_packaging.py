"""The container file, the compose file and the unit for systemd: they run `hivlp serve` as it is, within its limits."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest
import yaml

from hivlp.cli.parser import build_parser
from hivlp.serve.listening import check_exposure
from hivlp.serve.openapi import description
from hivlp.serve.run import GRACE_SECONDS
from hivlp.serve.settings import Settings

PACKAGING = Path(__file__).parent.parent / "packaging"


def instructions() -> dict[str, str]:
    """The last instruction of each kind in the container file."""
    text = re.sub(r"\\\n\s*", "", (PACKAGING / "Containerfile").read_text())
    return dict(line.split(" ", 1) for line in text.splitlines() if re.match("[A-Z]+ ", line))


def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as systemd reads names
    parser.read(PACKAGING / "hivlp.service")
    return parser


def test_the_container_serves_its_volumes_and_needs_a_token():
    found = instructions()
    command, *words = json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"])
    asked = build_parser().parse_args(words)
    assert (command, asked.port, asked.insecure) == ("hivlp", int(found["EXPOSE"]), False)
    assert [str(path) for path in asked.indexes] == [json.loads(found["VOLUME"])[0]]
    with pytest.raises(ValueError, match="HIVLP_TOKEN"):
        check_exposure(asked.host, Settings(), insecure=asked.insecure)


def test_the_healthcheck_asks_for_a_route_that_there_is():
    found = instructions()
    asked = re.search(rf"http://127\.0\.0\.1:{found['EXPOSE']}(/\w+)", found["HEALTHCHECK"])
    assert asked[1] in description()["paths"]


def test_the_compose_file_mounts_what_the_container_serves():
    found = instructions()
    (service,) = yaml.safe_load((PACKAGING / "compose.yaml").read_text())["services"].values()
    targets = [re.sub(r":ro$", "", volume).rsplit(":", 1)[1] for volume in service["volumes"]]
    roots = build_parser().parse_args(["serve", *json.loads(found["CMD"])]).root
    assert {*json.loads(found["VOLUME"])} | {str(root) for root in roots} == {*targets}
    assert service["ports"] == [f"127.0.0.1:{found['EXPOSE']}:{found['EXPOSE']}"]
    assert service["user"] == f"${{HIVLP_USER:-{found['USER']}}}"
    assert "?" in service["environment"]["HIVLP_TOKEN"], "without a token compose says so itself"
    assert (PACKAGING / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert int(service["stop_grace_period"].removesuffix("s")) > GRACE_SECONDS


def test_the_unit_gives_requests_the_time_to_end_and_may_write_what_it_must():
    service = unit()["Service"]
    asked = build_parser().parse_args(shlex.split(service["ExecStart"])[1:])
    assert asked.run.__name__ == "run_serve" and asked.watch == asked.root
    assert int(service["TimeoutStopSec"]) > GRACE_SECONDS and service["KillMode"] == "mixed"
    assert service["ReadWritePaths"].split() == [str(asked.indexes[0])], "of these each has to be there"
    assert service["CacheDirectory"] == "hivlp", "which is made where it is not: ~/.cache/hivlp"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    program = shutil.which("true")
    text = (PACKAGING / "hivlp.service").read_text().replace("%h/.local/bin/hivlp", program)
    (tmp_path / "hivlp.service").write_text(text)
    told = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "hivlp.service"], capture_output=True, text=True, check=False
    )
    assert (told.returncode, "hivlp.service" in told.stderr) == (0, False), told.stderr
