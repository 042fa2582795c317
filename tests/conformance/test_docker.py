"""The Docker image on a real engine: builds, runs offline, as any user, and says what is wrong.

Skipped where no engine answers. CMB_BIDS_IMAGE names an image to test instead of building one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from engines import CHECKOUT, run, tables

USERS = {
    "root": [],
    "another_user": ["-u", "1000:1000"],
    "unknown_user_on_a_read_only_root": ["-u", "4321:4321", "--read-only", "--tmpfs", "/tmp"],
}


@pytest.fixture(scope="session")
def image() -> str:
    if shutil.which("docker") is None:
        pytest.skip("no Docker: the docker command is not installed")
    try:
        info = subprocess.run(["docker", "info"], timeout=30, capture_output=True, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("no Docker engine answers within 30 s")
    if info.returncode != 0:
        pytest.skip("no Docker engine answers: start one, or set DOCKER_HOST to its address")
    given = os.environ.get("CMB_BIDS_IMAGE")
    if given:
        return given
    tag = "cmb-bids:conformance"
    # The host's network, because an engine may have no network of its own.
    command = ["docker", "build", "--network", "host", "-f", "containers/Dockerfile", "-t", tag]
    run([*command, CHECKOUT], 3600)
    return tag


def container(image: str, user: list[str], bids: Path, out: Path, *arguments: object) -> list:
    """The command that the README gives, for a user."""
    mounts = ["-v", f"{bids}:/bids:ro", "-v", f"{out}:/out"]
    return ["docker", "run", "--rm", "--network", "none", *user, *mounts, image, *arguments]


def folder_for(user: list[str], parent: Path) -> Path:
    """An output directory that belongs to the user of the container."""
    out = parent / "out"
    out.mkdir()
    if "-u" in user and os.getuid() == 0:
        owner = int(user[1].split(":")[0])
        os.chown(out, owner, owner)
    elif "-u" in user:
        out.chmod(0o777)
    return out


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
def test_participant_then_group_offline(image, user, demo, participant, tmp_path):
    out = folder_for(user, tmp_path)
    level = ["participant", "--participant-label", participant]
    run(container(image, user, demo, out, "/bids", "/out", *level), 1800)
    run(container(image, user, demo, out, "/bids", "/out", "group"), 300)
    found = tables(out)
    assert f"sub-{participant}/sub-{participant}_scans.tsv" in found
    assert "phenotype/microbleeds.tsv" in found
    assert "group_microbleeds.csv" in found
    owners = {path.stat().st_uid for path in out.rglob("*") if path.is_file()}
    assert owners == {int(user[1].split(":")[0]) if "-u" in user else 0}
    again = run(container(image, user, demo, out, "/bids", "/out", *level), 300)
    assert tables(out) == found, again


def test_messages_and_exit_codes_reach_the_host(image, demo, tmp_path):
    out = folder_for([], tmp_path)
    assert "cmb-bids" in run(["docker", "run", "--rm", image, "--version"], 60)
    unknown = ["/bids", "/out", "participant", "--participant-label", "nobody"]
    assert "nobody" in run(container(image, [], demo, out, *unknown), 120, code=18)
    out.chmod(0o755)
    stranger = container(image, USERS["another_user"], demo, out, "/bids", "/out", "participant")
    assert "/out" in run(stranger, 120, code=73)
