"""The compact set equals a plain dictionary, whatever comes in whatever order; the digest is that of its entries."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import reduce
from operator import xor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity_client.trust import packed
from identity_client.trust.entries import Batch, Entry, EntryKind, id_text
from identity_client.trust.packed import PackedIds
from identity_client.trust.revocations import Revocations

SAME_BYTES = bytes([7]) * 16
SEVENS = 0x07070707  # an expiry that continues SAME_BYTES: an id then also "matches" across records
IDS = [
    SAME_BYTES,
    bytes([7]) * 15 + b"\x08",
    bytes(16),
    b"\xff" * 16,
    b"\0\3" + bytes(14),
    b"\0\4" + bytes(14),
    *(random.Random(5).randbytes(16) for _ in range(4)),
]
EXPIRIES = [*range(1, 12), SEVENS, 2**32 - 1]


def an_entry() -> st.SearchStrategy[Entry]:
    ids = st.sampled_from(IDS).map(id_text)
    expiries = st.sampled_from(EXPIRIES)
    return st.one_of(
        st.builds(Entry, st.sampled_from([EntryKind.TOKEN, EntryKind.GRANT]), ids, expiries),
        st.builds(
            Entry,
            st.sampled_from([EntryKind.ACCOUNT, EntryKind.ROLE]),
            st.sampled_from("ab"),
            expiries,
            st.integers(0, 3),
        ),
        st.builds(Entry, st.just(EntryKind.KEY), st.sampled_from("kl"), expiries),
    )


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(an_entry(), max_size=8)),
        st.tuples(st.just("expire"), st.sampled_from([1, 3, 5, 8, 12, SEVENS])),
        st.tuples(st.just("copy"), st.integers(1, 5)),
    ),
    max_size=12,
)


class Model:
    """What the set should hold."""

    def __init__(self) -> None:
        self.held: dict[tuple[EntryKind, str], Entry] = {}
        self.through = 0

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if entry.expire_time > self.through:
                held = self.held.get((entry.kind, entry.name), entry)
                expire_time, minimum = max(held.expire_time, entry.expire_time), max(held.minimum, entry.minimum)
                self.held[entry.kind, entry.name] = Entry(entry.kind, entry.name, expire_time, minimum)

    def expire(self, through: int) -> None:
        self.through = max(through, self.through)
        self.held = {key: entry for key, entry in self.held.items() if entry.expire_time > self.through}

    def digest(self) -> tuple[int, str]:
        numbers = (int.from_bytes(entry.record(), "big") for entry in self.held.values())
        return len(self.held), reduce(xor, numbers, 0).to_bytes(24, "big").hex()


def copied(held: Revocations, size: int, through: int, chance: random.Random) -> Revocations:
    """A set built from the parts of a snapshot, sorted or not as *chance* has it."""
    parts = list(held.batches(size))
    assert all(len(part) <= size for part in parts)
    if chance.random() < 0.5:
        chance.shuffle(parts)
    copy = Revocations()
    for part in parts:
        copy.add(part)
    copy.expire(through)
    return copy


def check_equal(held: Revocations, model: Model) -> None:
    assert {(entry.kind, entry.name): entry for entry in held} == model.held
    assert held.digest() == model.digest()
    assert len(held) == len(model.held)
    for kind in (EntryKind.TOKEN, EntryKind.GRANT):
        for raw in IDS:
            assert held.contains(kind, id_text(raw)) == ((kind, id_text(raw)) in model.held)
    for name in "kl":
        assert held.contains(EntryKind.KEY, name) == ((EntryKind.KEY, name) in model.held)
    for kind in (EntryKind.ACCOUNT, EntryKind.ROLE):
        for name in "ab":
            entry = model.held.get((kind, name))
            assert held.minimum(kind, name) == (entry.minimum if entry else 0)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_the_set_is_a_dictionary_whatever_is_added_expired_and_copied(
    steps: list[tuple[str, object]], chance: random.Random
) -> None:
    held, model = Revocations(), Model()
    for step in steps:
        match step:
            case "add", list(entries):
                held.add(entries)
                model.add(entries)
            case "expire", int(through):
                model.expire(through)
                held.expire(through)
            case "copy", int(size):
                held = copied(held, size, model.through, chance)
        check_equal(held, model)


def many(count: int, chance: random.Random) -> list[Entry]:
    kinds = (EntryKind.TOKEN, EntryKind.GRANT)
    return [
        Entry(chance.choice(kinds), id_text(chance.randbytes(16)), chance.randrange(1_000, 1_600)) for _ in range(count)
    ]


@pytest.mark.parametrize("order", ["sorted", "as they came"])
def test_100000_entries_are_held_whatever_the_order_of_the_parts(order: str) -> None:
    chance = random.Random(11)
    entries = many(100_000, chance)
    source = Revocations()
    source.add(entries)
    parts = (
        list(source.batches(2_500))
        if order == "sorted"
        else [Batch.of(entries[at : at + 2_500]) for at in range(0, len(entries), 2_500)]
    )
    held, model = Revocations(), Model()
    model.add(entries)
    for part in parts:
        held.add(part)
    for through in range(999, 1_601, 100):
        held.expire(through)
        model.expire(through)
        assert held.digest() == model.digest()
    assert list(held) == []


def test_a_snapshot_is_sorted_and_later_changes_do_not_show_in_it() -> None:
    chance = random.Random(13)
    held = Revocations()
    for _ in range(3):  # the second and third come into buckets that are not empty
        held.add(many(2_000, chance))
    before = held.digest()
    batches = held.batches(700)
    first = next(batches)
    held.add(many(5_000, chance))
    held.expire(1_300)
    parts = [first, *batches]
    assert sum(map(len, parts)) == before[0]
    for records in (b"".join(part.tokens for part in parts), b"".join(part.grants for part in parts)):
        split = [records[at : at + 20] for at in range(0, len(records), 20)]
        assert split == sorted(split)
    again = Revocations()
    for part in parts:
        again.add(part)
    assert again.digest() == before


def test_what_expired_is_swept_in_time_and_a_prolonged_entry_is_not() -> None:
    chance = random.Random(17)
    ids = PackedIds()
    short = [chance.randbytes(16) for _ in range(3_000)]
    ids.add(b"".join(raw + (100).to_bytes(4, "big") for raw in short))
    ids.add(short[0] + (200).to_bytes(4, "big"))
    for through in range(100, 164):
        ids.expire(through)
    assert sum(map(len, ids._buckets)) == 20
    assert ids.contains(short[0])
    assert not ids.contains(short[1])


def test_a_batch_touches_only_the_buckets_of_its_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """No addition is followed by a rebuild of the whole: that is what keeps an event loop responsive."""
    chance = random.Random(19)
    ids = PackedIds()
    ids.add(b"".join(chance.randbytes(16) + (100).to_bytes(4, "big") for _ in range(100_000)))
    before = list(ids._buckets)
    ids.add(b"".join(chance.randbytes(16) + (100).to_bytes(4, "big") for _ in range(50)))
    assert sum(old is not new for old, new in zip(before, ids._buckets, strict=True)) <= 50
    swept: list[int] = []
    monkeypatch.setattr(ids, "_sweep", swept.append)
    ids.expire(50)
    assert len(swept) == packed._BUCKETS // 64


def test_a_record_of_another_length_or_an_odd_name_is_refused() -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        Batch(tokens=bytes(19))
    for name in ("", "short", "A" * 23, "é" * 22):
        with pytest.raises(ValueError, match=r"id|ASCII|base64|padding"):
            Batch.of([Entry(EntryKind.GRANT, name, 1)])
