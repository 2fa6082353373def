"""What is refused about the address of Redis and the prefix of its keys, and that no password is told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from redis.exceptions import ResponseError

from identity.config import ConfigurationError, Settings, load
from identity.domain.ports import RevocationStore
from identity.storage.redis.mirror import Mirror
from tests.clients.shapes import until
from tests.mirror.feed import FeedStore
from tests.redis_server import RedisServer
from tests.rpc.api import MakeSettings

SECRET = "a-password-that-no-log-may-show"


async def test_the_password_of_redis_is_shown_nowhere(
    store: FeedStore, caplog: pytest.LogCaptureFixture, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def echo(_: Mirror) -> None:
        raise ResponseError(f"unknown command 'AUTH', with args beginning with: '{SECRET}'")

    caplog.set_level(logging.DEBUG)
    redis_server.client.config_set("requirepass", "another")
    for url in (f"redis://:{SECRET}@127.0.0.1:1/0", f"unix://:{SECRET}@{redis_server.socket}"):
        caplog.clear()
        mirror = Mirror(url, "identity:", cast(RevocationStore, store), lambda: 0)
        await mirror.start()
        await until(lambda: "grows old" in caplog.text)
        await mirror.stop()
        assert SECRET not in repr(Settings(redis_url=url)) + repr(mirror) + caplog.text
        monkeypatch.setattr(Mirror, "_check_policy", echo)  # as some servers do


@pytest.fixture
def problems(make_settings: MakeSettings) -> Iterator[Callable[..., list[str]]]:
    yield lambda **changes: make_settings(hash_memory_kib=19_456, hash_iterations=2, **changes).problems()


def test_an_address_that_is_none_is_refused_without_repeating_it(problems: Callable[..., list[str]]) -> None:
    with pytest.raises(ConfigurationError, match="not understood"):
        Mirror(f"redis://:{SECRET}@localhost?unknown=1", "identity:", cast(RevocationStore, FeedStore()), lambda: 0)
    [problem] = problems(redis_url=f"http://:{SECRET}@redis")
    assert problem.startswith("redis_url must be redis://")
    assert problems(redis_url="redis://:x@localhost:6379/0") == problems(redis_url="unix:///run/redis.sock") == []


def test_a_prefix_that_would_be_a_pattern_is_refused(problems: Callable[..., list[str]]) -> None:
    assert problems(redis_prefix="identity*:")[0].startswith("redis_prefix must be")


def test_the_variable_sets_it(make_settings: MakeSettings) -> None:
    key_file = make_settings().master_key_file
    variables = {"ISSUER": "https://id.example", "DATABASE": "sqlite:////x", "MASTER_KEY_FILE": key_file}
    environ = {f"IDENTITY_{name}": value for name, value in variables.items()}
    assert load(None, environ | {"IDENTITY_REDIS_URL": "unix:///run/redis"}).redis_url == "unix:///run/redis"


def test_plain_text_to_another_machine_is_worth_a_warning(make_settings: MakeSettings) -> None:
    assert "rediss://" in "".join(make_settings(redis_url=f"redis://:{SECRET}@redis.internal:6379").warnings())
    assert SECRET not in "".join(make_settings(redis_url=f"redis://:{SECRET}@redis.internal:6379").warnings())
    assert make_settings(redis_url="redis://127.0.0.1:6379").warnings() == []
