"""The master key, what is sealed under it, and the signing key that never lies open."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from identity.config import ConfigurationError
from identity.domain.values import Seconds
from identity.logs import redact
from identity.signing import generate_key, open_key
from identity.storage import key_file
from identity.storage.sealing import KeyMissing, MasterKey, SealBroken, key_number
from identity_client.tokens import compact
from identity_client.tokens.keys import PublicKey
from tests.clients.issuer import FixedClock, Issuer

SECRET = b"the private half of a key"


@pytest.fixture
def master(tmp_path: Path) -> MasterKey:
    return MasterKey.generate(tmp_path / "master.key")


def test_a_new_master_key_is_for_its_owner_alone_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    MasterKey.generate(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        MasterKey.generate(path)


def test_the_same_file_opens_what_was_sealed(tmp_path: Path, master: MasterKey) -> None:
    sealed = master.seal(SECRET, "context")
    assert SECRET not in sealed
    assert MasterKey.from_file(tmp_path / "master.key").open(sealed, "context") == SECRET


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o620, 0o666])
def test_a_master_key_that_others_could_read_or_change_is_refused(tmp_path: Path, master: MasterKey, mode: int) -> None:
    (tmp_path / "master.key").chmod(mode)
    with pytest.raises(ConfigurationError, match="must not be open to others"):
        MasterKey.from_file(tmp_path / "master.key")


def test_a_group_may_read_it_as_clusters_mount_secrets(tmp_path: Path, master: MasterKey) -> None:
    (tmp_path / "master.key").chmod(0o440)
    assert MasterKey.from_file(tmp_path / "master.key")


KEYS = [base64.b64encode(bytes([number]) * 32) for number in range(4)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"!" * 44,
        b"A" * 40,
        b"0 " + KEYS[0],
        b"01 " + KEYS[0],
        b"-1 " + KEYS[0],
        b"65536 " + KEYS[0],
        b"1  " + KEYS[0],
        b"1 2 " + KEYS[0],
        b"x " + KEYS[0],
        b"1 " + KEYS[0][:-4],
        KEYS[0] + b"\n\n2 " + KEYS[1],
        KEYS[0] + b"\n" + KEYS[1],
        b"1 %s\n1 %s" % (KEYS[0], KEYS[1]),
        b"1 %s\n2 %s" % (KEYS[0], KEYS[0]),
    ],
)
def test_what_is_no_master_key_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "master.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        MasterKey.from_file(path)
    [problem] = refused.value.problems
    assert problem.startswith("master_key_file: ")
    assert not any(word.decode() in problem for word in content.split() if len(word) > 3)


@pytest.mark.requirement("R26")
def test_the_newest_key_of_the_file_seals_and_all_open(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    key_file.create(path, bytes(32))
    first = MasterKey.from_file(path)
    old = first.seal(SECRET, "context")
    path.write_bytes(b"3 %s\n%s\n" % (KEYS[1], KEYS[0]))
    both = MasterKey.from_file(path)
    new = both.seal(SECRET, "context")
    assert (key_number(old), key_number(new), both.numbers) == (1, 3, [1, 3])
    assert both.open(old, "context") == both.open(new, "context") == SECRET
    assert both.derive("refresh") == first.derive("refresh")
    path.write_bytes(b"3 %s\n" % KEYS[1])
    alone = MasterKey.from_file(path)
    assert alone.open(new, "context") == SECRET
    with pytest.raises(KeyMissing, match="under key 1, and the file holds 3"):
        alone.open(old, "context")
    for number in (1, 2, 3):  # the number is sealed, too: a value cannot be passed off as another key's
        with pytest.raises(SealBroken):
            both.open(old[:1] + number.to_bytes(2, "big") + new[3:], "other")
    with pytest.raises(SealBroken):
        both.open(old[:1] + b"\0\3" + old[3:], "context")


@pytest.mark.requirement("R26")
def test_a_key_that_is_held_follows_its_file_and_outlives_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    running = MasterKey.generate(path)
    key_file.replace_keys(path, {**key_file.read_keys(path), 2: bytes(32)})
    beside = MasterKey.from_file(path)
    assert running.open(beside.seal(SECRET, "context"), "context") == SECRET
    key_file.replace_keys(path, {3: bytes(32)})
    assert key_number(running.seal(SECRET, "context")) == 3
    path.write_bytes(b"spoilt")
    assert key_number(running.seal(SECRET, "context")) == 3
    path.unlink()
    assert running.open(running.seal(SECRET, "context"), "context") == SECRET


@pytest.mark.requirement("R26")
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_file_that_is_replaced_keeps_its_mode_its_link_and_nothing_of_a_killed_command(
    tmp_path: Path, mode: int
) -> None:
    path, link = tmp_path / "master.key", tmp_path / "link"
    key_file.create(path, bytes(32))
    path.chmod(mode)
    link.symlink_to(path)
    (tmp_path / "master.key.new").write_bytes(b"half of a")
    keys = {1: bytes(32), 2: bytes([1]) * 32}
    key_file.replace_keys(link, keys)
    assert link.is_symlink()
    assert key_file.read_keys(path) == keys
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert sorted(each.name for each in tmp_path.iterdir()) == ["link", "master.key"]


@pytest.mark.requirement("R26")
def test_a_file_is_changed_by_one_command_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    key_file.create(path, bytes(32))
    with key_file.held(path), pytest.raises(ConfigurationError, match="by another command"), key_file.held(path):
        pass
    with pytest.raises(ConfigurationError, match="cannot be read"), key_file.held(tmp_path / "none"):
        pass


def test_a_missing_master_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        MasterKey.from_file(tmp_path / "nothing.key")


def test_a_sealed_value_opens_in_its_own_context_with_its_own_key_alone(tmp_path: Path, master: MasterKey) -> None:
    sealed = master.seal(SECRET, "context")
    other = MasterKey.generate(tmp_path / "other.key")
    for opener, context, value in (
        (other, "context", sealed),
        (master, "another", sealed),
        (master, "context", sealed[:-1]),
        (master, "context", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (master, "context", b"\2" + sealed[1:]),
        (master, "context", b""),
    ):
        with pytest.raises(SealBroken):
            opener.open(value, context)


def test_derived_keys_differ_by_purpose_and_from_the_master_key(master: MasterKey) -> None:
    assert len({master.derive("refresh"), master.derive("audit-names"), master.derive("seal"), master._keys[1]}) == 4


@pytest.mark.requirement("R45")
def test_access_and_refresh_tokens_share_no_key(master: MasterKey) -> None:
    record = generate_key(master, Seconds(1))
    private = open_key(record, master)._private_key.private_numbers().private_value.to_bytes(32, "big")
    assert master.derive("refresh") != private


def test_a_signing_key_is_stored_sealed_and_signs_what_its_public_half_verifies(master: MasterKey) -> None:
    record = generate_key(master, Seconds(1))
    signer = open_key(record, master)
    number = signer._private_key.private_numbers().private_value.to_bytes(32, "big")
    assert number not in record.sealed_private_key
    claims = Issuer(FixedClock()).claims(key_id=signer.key_id)
    parts = compact.split(signer.sign(claims))
    public_key = PublicKey.from_coordinates(record.public_x, record.public_y)
    assert compact.check_signature(public_key, parts.signing_input, parts.signature)
    assert parts.key_id == record.key_id == public_key.key_id


def test_every_signature_has_low_s(master: MasterKey) -> None:
    signer = open_key(generate_key(master, Seconds(1)), master)
    claims = Issuer(FixedClock()).claims(key_id=signer.key_id)
    assert all(compact.is_low_s(compact.split(signer.sign(claims)).signature) for _ in range(64))


def test_a_signer_signs_for_no_other_key(master: MasterKey) -> None:
    signer = open_key(generate_key(master, Seconds(1)), master)
    with pytest.raises(ValueError, match="another key"):
        signer.sign(Issuer(FixedClock()).claims())


def test_a_signing_key_of_another_master_key_does_not_open(tmp_path: Path, master: MasterKey) -> None:
    record = generate_key(MasterKey.generate(tmp_path / "other.key"), Seconds(1))
    with pytest.raises(ConfigurationError, match="sealed under"):
        open_key(record, master)


@pytest.mark.requirement("R48")
def test_what_looks_like_a_secret_is_redacted_in_logs() -> None:
    token = Issuer(FixedClock()).mint()
    for secret in (token, "idr_" + "A1" * 38, "idc_" + "z" * 71, "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA"):
        assert redact(f"it failed for {secret} again") == "it failed for [redacted] again"
    assert redact("identity is ready") == "identity is ready"
