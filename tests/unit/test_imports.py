"""What importing costs, and what it must not pull in. Each case is a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

CLIENT_MUST_NOT = ("sqlalchemy", "redis", "alembic", "identity.domain", "identity.storage", "identity.server")


def loaded_after(statement: str, blocked: tuple[str, ...] = ()) -> set[str]:
    """The modules that *statement* loads, with *blocked* ones not importable."""
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    code = f"import sys\n{block}{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_client_library_works_where_no_server_code_is_installed() -> None:
    loaded = loaded_after("import identity_client.aio", blocked=("sqlalchemy", "redis", "alembic", "grpc_health"))
    assert loaded.isdisjoint({"identity.domain", "identity.storage", "identity.server", "identity.rpc"})


def test_the_keys_in_redis_are_described_where_no_redis_is_installed_and_their_reader_says_what_it_lacks() -> None:
    statement = """
from identity_client.redis import schema
schema.Schema()
try:
    from identity_client.redis import RedisRevocations
except ModuleNotFoundError as error:
    assert "grpc-identity[redis]" in str(error)
else:
    raise AssertionError
"""
    blocked = "sys.modules.pop('redis')\nclass Absent:\n    def find_spec(self, name, *_):\n"
    blocked += "        if name.partition('.')[0] == 'redis':\n            raise ModuleNotFoundError(name, name=name)\n"
    loaded_after(f"{blocked}sys.meta_path.insert(0, Absent())\n{statement}", blocked=("redis",))


def test_the_reader_of_redis_is_loaded_when_it_is_asked_for() -> None:
    statement = "import identity_client.aio, identity_client.redis.schema, identity.server"
    assert "redis" not in loaded_after(statement)


@pytest.mark.parametrize("statement", ["import identity_client", "from identity_client import current_principal"])
def test_the_light_face_loads_neither_grpc_nor_protobuf(statement: str) -> None:
    assert loaded_after(statement).isdisjoint({"grpc", "google.protobuf", *CLIENT_MUST_NOT})


@pytest.mark.parametrize("module", ["accounts", "authenticate", "introspect", "refresh", "revoke", "ports"])
def test_the_domain_loads_neither_grpc_nor_sqlalchemy(module: str) -> None:
    assert loaded_after(f"import identity.domain.{module}").isdisjoint({"grpc", "sqlalchemy", "google.protobuf"})


@pytest.mark.requirement("R8")
def test_the_server_loads_no_redis_and_no_second_database() -> None:
    loaded = loaded_after("import identity.server", blocked=("redis", "asyncpg", "psycopg", "alembic"))
    assert "sqlalchemy" in loaded


def test_an_unknown_name_is_an_attribute_error() -> None:
    import identity_client

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        identity_client.nothing  # noqa: B018


def test_peers_find_the_protos_to_compile_against() -> None:
    done = subprocess.run([sys.executable, "-m", "identity_client.protos"], capture_output=True, text=True, check=True)
    assert (Path(done.stdout.strip()) / "identity" / "v1" / "access.proto").is_file()


@pytest.mark.parametrize("package", ["identity.v1", "identity_client"])
def test_the_packages_are_typed(package: str) -> None:
    assert resources.files(package).joinpath("py.typed").is_file()
