"""What lies in identity/deploy is well-formed and agrees with the settings; it cannot be run here."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from identity.config import PREFIX, Settings, read
from identity.supervisor import STOP_SECONDS

DEPLOY = Path(__file__).parents[2] / "identity" / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
KINDS = {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
POD = KINDS["Deployment"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]

DATABASE = "postgresql://identity:secret@postgres:5432/identity"


def compose_environment() -> dict[str, str]:
    environment = dict(COMPOSE["services"]["identity"]["environment"])
    environment["IDENTITY_DATABASE"] = re.sub(r"\$\{[^}]*\}", "secret", environment["IDENTITY_DATABASE"])
    return environment


def cluster_environment() -> dict[str, str]:
    return {each["name"]: each.get("value", DATABASE) for each in CONTAINER["env"]}


@pytest.mark.parametrize("environment", [compose_environment(), cluster_environment()], ids=["compose", "kubernetes"])
def test_every_variable_is_a_setting_and_together_they_do(environment: dict[str, str]) -> None:
    assert set(environment) <= {PREFIX + setting.name.upper() for setting in fields(Settings)}
    _, problems = read(None, environment)
    assert [problem for problem in problems if not problem.endswith("cannot be read")] == []


@pytest.mark.parametrize("environment", [compose_environment(), cluster_environment()], ids=["compose", "kubernetes"])
def test_what_stops_the_service_waits_longer_than_it_needs(environment: dict[str, str]) -> None:
    needed = int(environment["IDENTITY_DRAIN_SECONDS"]) + STOP_SECONDS
    if "IDENTITY_WORKERS" in environment:
        assert int(COMPOSE["services"]["identity"]["stop_grace_period"].removesuffix("s")) > needed
    else:
        pause = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert POD["terminationGracePeriodSeconds"] > pause + needed


def test_ports_and_probes_are_those_that_are_listened_on() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    listening = {name: int(text.rpartition(":")[2]) for name, text in cluster_environment().items() if "LISTEN" in name}
    assert ports == {"grpc": listening["IDENTITY_LISTEN"], "http": listening["IDENTITY_HTTP_LISTEN"]}
    probes: dict[str, Any] = {name: probe for name, probe in CONTAINER.items() if name.endswith("Probe")}
    pages = {name: (probe["httpGet"]["port"], probe["httpGet"]["path"]) for name, probe in probes.items()}
    assert pages == {
        "startupProbe": ("http", "/readyz"),
        "readinessProbe": ("http", "/readyz"),
        "livenessProbe": ("http", "/livez"),
    }
    exposed = re.search(r"^EXPOSE (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert sorted(map(int, exposed[1].split())) == sorted(ports.values())


def test_replicas_survive_a_disruption_and_nothing_runs_as_root_or_writes_to_its_image() -> None:
    assert KINDS["Deployment"]["spec"]["replicas"] > KINDS["PodDisruptionBudget"]["spec"]["minAvailable"]
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert COMPOSE["services"]["identity"]["read_only"] is True
    assert re.search(r"^USER [1-9]\d*:", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_redis_never_drops_revocations_for_room() -> None:
    command = COMPOSE["services"]["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
