import pytest

from btray.core.pseudonyms import Pseudonyms
from btray.errors import UserError


def test_the_same_key_gives_the_same_pseudonym_and_another_key_another():
    one, two = Pseudonyms(b"a" * 16), Pseudonyms(b"b" * 16)
    assert one("patient", "Jane") == one("patient", "Jane") != two("patient", "Jane")
    assert one("patient", "1") != one("study", "1")
    assert len(one("patient", "Jane")) == 32


def test_where_the_key_comes_from(tmp_path, monkeypatch):
    monkeypatch.delenv("BTRAY_PSEUDONYM_KEY", raising=False)
    assert Pseudonyms.load() != Pseudonyms.load()
    monkeypatch.setenv("BTRAY_PSEUDONYM_KEY", "e" * 16)
    assert Pseudonyms.load() == Pseudonyms(b"e" * 16)
    (tmp_path / "key").write_text("f" * 16 + "\n")
    assert Pseudonyms.load(str(tmp_path / "key")) == Pseudonyms(b"f" * 16)


def test_a_key_that_can_be_guessed(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(UserError, match="key: a key of 5 bytes can be guessed"):
        Pseudonyms.load(str(tmp_path / "key"))
    monkeypatch.setenv("BTRAY_PSEUDONYM_KEY", "")
    with pytest.raises(UserError, match="BTRAY_PSEUDONYM_KEY"):
        Pseudonyms.load()


def test_the_key_is_not_shown():
    assert "secret" not in repr(Pseudonyms(b"secret" * 3))
