"""The README's commands are run as they stand, and print what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass

from identity.server import CONTRACT
from tests.faults.dev_server import DevServer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

MASKS = (
    (r"[A-Za-z0-9_-]{22}(?=\")", "ID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME"),
    (r"\d+\.\d ms", "N ms"),
    (r"\d+ to \d+", "N to N"),
)


def masked(text: str) -> str:
    """*text* without what differs from run to run."""
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text)
    return text.strip()


def commands(name: str) -> tuple[str, str]:
    """-> all commands marked with *name*, as one session at a terminal; the output that the README shows for them."""
    found = list(re.finditer(rf"<!-- run: {name} -->\n```bash\n(.*?)```\n```text\n(.*?)```", README, re.DOTALL))
    assert len(found) == README.count(f"<!-- run: {name} -->") > 0, f"commands marked {name} lack their output"
    return "".join(block[1] for block in found), "".join(block[2] for block in found)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DevServer]:
    server = DevServer(tmp_path / ".identity")
    server.directory.mkdir()
    server.start()
    yield server
    server.stop()


def run(script: str, server: DevServer) -> str:
    """Run *script* as a reader would, beside the running service; -> its output."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": tools, "IDENTITY_ADDRESS": server.address}
    done = subprocess.run(
        ["bash", "-e", "-u", "-o", "pipefail", "-c", script],
        cwd=server.directory.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_buf_commands_print_what_the_readme_says(server: DevServer) -> None:
    script, output = commands("buf")
    assert masked(run(script, server)) == masked(output)


if shutil.which("grpcurl"):

    def test_the_grpcurl_commands_print_what_the_readme_says(server: DevServer) -> None:
        script, output = commands("grpcurl")
        assert masked(run(script, server)) == masked(output)


def test_both_tools_are_shown_doing_the_same() -> None:
    methods = re.compile(r"identity\.v1\.\w+/\w+")
    with_buf = methods.findall(commands("buf")[0])
    assert methods.findall(commands("grpcurl")[0])[: len(with_buf)] == with_buf


@pytest.mark.parametrize("name", ["grpcurl", "buf"])
def test_no_command_puts_a_secret_into_an_argument(name: str) -> None:
    script = re.sub(r"<<'EOF_REQUEST'\n.*?\nEOF_REQUEST", "", commands(name)[0], flags=re.DOTALL)
    assert "password" not in script
    unquoted = re.sub(r"'[^']*'", "", script)
    assert not re.search(r"\$\{?TOKEN", unquoted), "the shell would write the token into the argument"


@pytest.mark.requirement("R2")
@pytest.mark.requirement("R3")
def test_the_demo_prints_what_the_readme_says() -> None:
    found = re.search(r"<!-- the output of: make demo -->\n```text\n(.*?)```", README, re.DOTALL)
    assert found
    environment = os.environ | {"PYTHONPATH": str(ROOT / "clients" / "examples")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "clients" / "examples" / "demo.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert masked(done.stdout) == masked(found[1])


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_request_of_the_operators_table_is_one() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+)/(\w+)` \| `(\{.*\})` \|$", README, re.MULTILINE)
    assert len(rows) > 10
    for service, method, body in rows:
        [found] = [module for module in CONTRACT if service in module.DESCRIPTOR.services_by_name]
        request = found.DESCRIPTOR.services_by_name[service].methods_by_name[method].input_type
        json_format.Parse(body, GetMessageClass(request)())
