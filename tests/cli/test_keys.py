import json
import time

import pytest
from typer.testing import CliRunner

from btray.cli import app
from btray.errors import UserError
from btray.serve.keys import read_keys


def run(*arguments):
    return CliRunner().invoke(app, ["keys", *(str(argument) for argument in arguments)])


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


def valid(file, key):
    return read_keys(file).find(key, time.time())


def test_create_prints_the_key_alone_once(file):
    done = run("create", "ward", "--file", file, "--requests-per-second", "2.5", "--burst", "4")
    assert done.exit_code == 0
    key = done.stdout.strip()
    assert done.stdout == f"{key}\n"
    entry = valid(file, key)
    assert (entry.name, entry.requests_per_second, entry.burst) == ("ward", 2.5, 4)
    assert entry.expires is None
    assert key not in run("list", "--file", file).stdout


def test_a_key_can_expire(file):
    key = run("create", "ward", "--file", file, "--expires-in", "90d").stdout.strip()
    entry = valid(file, key)
    assert (entry.expires - entry.created).days == 90


def test_list_shows_state_and_limits_but_no_hash(file):
    run("create", "ward", "--file", file, "--concurrency", "3")
    run("create", "old", "--file", file, "--expires-in", "0s")
    table = run("list", "--file", file).stdout
    assert "valid" in table
    assert "expired" in table
    rows = json.loads(run("list", "--file", file, "--format", "json").stdout)
    assert [row["name"] for row in rows] == ["ward", "old"]
    assert rows[0]["concurrency"] == 3
    assert "sha256" not in rows[0]


def test_rotate_keeps_the_old_key_for_a_while(file):
    old = run("create", "ward", "--file", file).stdout.strip()
    new = run("rotate", "ward", "--file", file, "--grace", "1h").stdout.strip()
    assert new != old
    assert valid(file, old).expires is not None
    assert valid(file, new).expires is None
    again = run("rotate", "ward", "--file", file, "--grace", "0s").stdout.strip()
    assert [valid(file, key) is None for key in (old, new, again)] == [True, True, False]


def test_revoke_takes_all_keys_of_a_name(file):
    key = run("create", "ward", "--file", file).stdout.strip()
    run("rotate", "ward", "--file", file)
    assert run("revoke", "ward", "--file", file).stdout == "ward: 2 keys revoked\n"
    assert valid(file, key) is None


def test_mistakes_are_one_line(file):
    run("create", "ward", "--file", file)
    for arguments, message in (
        (("create", "ward", "--file", file), "ward has a key; `btray keys rotate`"),
        (("create", "a b", "--file", file), "a name has 1 to 64 letters"),
        (("create", "b", "--file", file, "--expires-in", "soon"), "soon: write a duration as"),
        (("revoke", "nobody", "--file", file), "no key of the name nobody"),
        (("rotate", "nobody", "--file", file), "no key of the name nobody"),
        (("list", "--file", file.with_name("none")), "cannot read the API keys"),
    ):
        done = run(*arguments)
        assert isinstance(done.exception, UserError)
        assert message in str(done.exception)
        assert "\n" not in str(done.exception)
