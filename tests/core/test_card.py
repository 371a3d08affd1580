import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from btray.core.card import card_hash, fields_of, find_card, read_card, write_fields
from btray.core.layout import CARD
from btray.errors import UserError


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    return Path(shutil.copytree(tiny_bundle.uri, tmp_path / "run" / "bundle"))


def test_a_card_is_read_without_the_weights(copy, tiny_bundle):
    (copy / "model.safetensors").unlink()
    assert read_card(str(copy)) == tiny_bundle.card
    assert read_card(str(copy)).version == tiny_bundle.version


def test_a_run_stands_for_its_bundle(copy, tiny_bundle):
    assert find_card(str(copy.parent)) == (str(copy), tiny_bundle.card)


def test_where_there_is_none(tmp_path):
    with pytest.raises(UserError, match=f"no bundle \\(no {CARD}\\)"):
        read_card(str(tmp_path))


def test_an_altered_card_is_refused(copy):
    fields = json.loads((copy / CARD).read_text())
    (copy / CARD).write_text(json.dumps(fields | {"name": "better"}))
    with pytest.raises(UserError, match="altered since it was written"):
        read_card(str(copy))


def test_the_fields_of_a_card_are_those_that_were_hashed(copy, tiny_bundle):
    assert fields_of(tiny_bundle.card) == json.loads((copy / CARD).read_text())


def test_a_card_of_before_keeps_its_fewer_fields(copy):
    fields = json.loads((copy / CARD).read_text())
    for later in ("members", "precision"):
        del fields[later]
    fields["card_sha256"] = card_hash(fields)
    write_fields(fields, copy / CARD)
    assert fields_of(read_card(str(copy))) == fields


def test_a_card_changed_after_hashing_has_no_such_fields(tiny_bundle):
    with pytest.raises(ValueError, match="not the one that was hashed"):
        fields_of(tiny_bundle.card.model_copy(update={"name": "other"}))


def test_reading_a_card_loads_no_torch(tiny_bundle):
    code = (
        "import sys\nfrom btray.core.card import read_card\nprint(read_card(sys.argv[1]).version)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tiny_bundle.uri], capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == (tiny_bundle.version, "")
