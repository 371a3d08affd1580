import json
import logging
from datetime import UTC, datetime, timedelta

import pytest

from btray.errors import UserError
from btray.serve.keys import (
    KEY_PREFIX,
    KeyRing,
    Limits,
    create_key,
    read_keys,
    revoke_key,
    rotate_key,
)

DAY = timedelta(days=1)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def now():
    return datetime.now(UTC).timestamp()


def test_a_key_is_256_bits_and_only_its_hash_is_kept(path):
    key = create_key(path, "ward-3", limits=Limits(requests_per_second=5, burst=7))
    assert key.startswith(KEY_PREFIX)
    assert len(key) == len(KEY_PREFIX) + 43
    assert key[len(KEY_PREFIX) :] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    (entry,) = read_keys(path).keys
    assert (entry.name, entry.requests_per_second, entry.burst) == ("ward-3", 5, 7)
    assert read_keys(path).find(key, now()) == entry
    assert read_keys(path).find(key + "x", now()) is None
    assert list(path.parent.iterdir()) == [path]


def test_keys_differ_and_names_do_not_repeat(path):
    assert create_key(path, "a") != create_key(path, "b")
    with pytest.raises(UserError, match="a has a key; `btray keys rotate`"):
        create_key(path, "a")
    with pytest.raises(UserError, match="a name has 1 to 64 letters"):
        create_key(path, "Müller, Hans")


def test_a_key_expires(path):
    key = create_key(path, "a", lifetime=DAY)
    keys = read_keys(path)
    assert keys.find(key, now())
    assert keys.find(key, now() + DAY.total_seconds() + 1) is None


def test_an_expired_name_can_be_made_again(path):
    create_key(path, "a", lifetime=timedelta(0))
    key = create_key(path, "a")
    assert [entry.name for entry in read_keys(path).keys] == ["a"]
    assert read_keys(path).find(key, now())


def test_a_revoked_key_is_gone(path):
    kept, lost = create_key(path, "a"), create_key(path, "b")
    assert revoke_key(path, "b") == 1
    assert read_keys(path).find(kept, now())
    assert read_keys(path).find(lost, now()) is None
    with pytest.raises(UserError, match="no key of the name b"):
        revoke_key(path, "b")


def test_a_rotated_key_outlives_its_successor_for_the_grace_only(path):
    old = create_key(path, "a", limits=Limits(concurrency=2))
    new = rotate_key(path, "a", grace=DAY)
    keys = read_keys(path)
    assert keys.find(old, now()).name == keys.find(new, now()).name == "a"
    assert keys.find(new, now()).concurrency == 2
    later = now() + DAY.total_seconds() + 1
    assert keys.find(old, later) is None
    assert keys.find(new, later)
    assert revoke_key(path, "a") == 2
    with pytest.raises(UserError, match="no key of the name a"):
        rotate_key(path, "a", grace=DAY)


def test_rotation_never_makes_a_key_last_longer(path):
    old = create_key(path, "a", lifetime=timedelta(hours=1))
    rotate_key(path, "a", grace=DAY)
    assert read_keys(path).find(old, now() + 3601) is None


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o620, 0o666])
def test_a_file_open_to_others_is_refused(path, mode):
    create_key(path, "a")
    path.chmod(mode)
    with pytest.raises(UserError, match=r"open to others .* chmod 600"):
        read_keys(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"keys": [{"name": "a"}]}',
        '{"keys": [], "more": 1}',
        '{"version": 2, "keys": []}',
        "\udcff",
    ],
)
def test_what_is_no_file_of_keys_is_one_line(path, text):
    path.write_text(text, errors="surrogateescape")
    path.chmod(0o600)
    with pytest.raises(UserError, match="not a file of API keys") as caught:
        read_keys(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_folder_is_told(path, tmp_path):
    with pytest.raises(UserError, match="cannot read the API keys"):
        read_keys(path)
    with pytest.raises(UserError, match="cannot keep API keys there"):
        create_key(tmp_path / "none" / "keys.json", "a")


def test_a_ring_looks_again_at_most_once_a_second(path):
    clock = Clock()
    first = create_key(path, "a")
    ring = KeyRing(path, clock)
    second = create_key(path, "b")
    clock.now = 0.9
    assert ring.find(second, now()) is None
    clock.now = 1.0
    assert ring.find(second, now()).name == "b"
    revoke_key(path, "a")
    clock.now = 2.0
    assert ring.find(first, now()) is None


@pytest.mark.parametrize("damage", ["write", "open", "delete"])
def test_a_damaged_file_keeps_the_keys_before_and_is_reported_once(path, damage, caplog):
    clock = Clock()
    key = create_key(path, "a")
    ring = KeyRing(path, clock)
    if damage == "write":
        path.write_text('{"keys": [')
    elif damage == "open":
        path.chmod(0o644)
    else:
        path.unlink()
    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        for seconds in (1.0, 2.0, 3.0):
            clock.now = seconds
            assert ring.find(key, now()).name == "a"
            assert ring.find(KEY_PREFIX + "x", now()) is None
    assert len(caplog.records) == 1
    assert "the API keys before stay in force" in caplog.text
    assert key not in caplog.text


def test_a_repaired_file_counts_again(path):
    clock = Clock()
    key = create_key(path, "a")
    good = path.read_bytes()
    ring = KeyRing(path, clock)
    path.write_text("{")
    clock.now = 1.0
    assert ring.find(key, now())
    path.write_bytes(good.replace(b'"a"', b'"again"'))
    clock.now = 2.0
    assert ring.find(key, now()).name == "again"


def test_a_link_to_the_file_stays_a_link(path, tmp_path):
    link = tmp_path / "link.json"
    create_key(path, "a")
    link.symlink_to(path)
    create_key(link, "b")
    assert link.is_symlink()
    assert [one["name"] for one in json.loads(path.read_text())["keys"]] == ["a", "b"]
