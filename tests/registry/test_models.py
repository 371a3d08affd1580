import pytest

from btray.core.bundle import load_bundle
from btray.errors import CheckFailed, UserError
from btray.registry.client import locate
from btray.registry.models import Registry, parse_reference


@pytest.fixture
def registry(tmp_path):
    return Registry(locate(None, str(tmp_path / "runs")), create=True)


@pytest.fixture
def add(registry, make_bundle, make_evaluation, tmp_path):
    """Register a new bundle with a number of wrong answers; None for no evaluation."""

    def make(wrong, **options):
        count = len(list(tmp_path.glob("bundle-*")))
        bundle = make_bundle(tmp_path / f"bundle-{count}", name=f"tiny{count}")
        evaluation = None if wrong is None else make_evaluation(bundle, wrong, **options)
        return registry.register(bundle, "tumours", evaluation)

    return make


def test_a_version_is_registered_as_challenger_and_read_back(registry, add, tmp_path):
    version = add(10)
    assert (version.number, version.aliases) == ("1", ["challenger"])
    assert version.tags["btray.test_rows"] == "200"
    with registry.bundle_folder(version) as folder:
        assert load_bundle(str(folder)).version == version.tags["btray.bundle"]
    with pytest.raises(UserError, match="is version 1 of tumours already"):
        registry.register(load_bundle(str(tmp_path / "bundle-0")), "tumours", None)


def test_the_better_is_promoted_and_taken_back(registry, add):
    assert registry.promote(add(10)) is None
    comparison = registry.promote(add(2))
    assert comparison.differences["accuracy"].value == pytest.approx(0.04)
    assert comparison.rows == comparison.groups == 200
    assert registry.get("tumours").number == "2"
    assert registry.get("tumours").aliases == ["champion"]
    assert registry.rollback("tumours").number == "1"
    assert registry.get("tumours").number == "1"
    with pytest.raises(UserError, match="no champion before version 1"):
        registry.rollback("tumours")


def test_a_difference_within_noise_is_no_objection(registry, add):
    registry.promote(add(10))
    comparison = registry.promote(add(11))
    difference = comparison.differences["macro_f1"]
    assert difference.low < difference.value < 0 <= difference.high


def test_the_worse_beyond_noise_is_refused_unless_forced(registry, add):
    registry.promote(add(2))
    worse = add(40)
    refusal = r"worse than version 1 beyond noise: accuracy -0\.1900 \(95 % interval -0\.2"
    with pytest.raises(CheckFailed, match=refusal):
        registry.promote(worse)
    assert registry.get("tumours").number == "1"
    assert registry.get("tumours", "challenger").number == "2"
    registry.promote(worse, force=True)
    champion = registry.get("tumours")
    assert champion.number == "2"
    assert champion.tags["btray.forced"].startswith("worse than version 1")
    assert registry.rollback("tumours").number == "1"


def test_another_test_split_is_refused(registry, add):
    registry.promote(add(10))
    with pytest.raises(CheckFailed, match=r"of 200 images \(\w{8}\) is not .*, 196 are in both"):
        registry.promote(add(0, first_row=4))


def test_a_version_without_evaluation_is_refused(registry, add):
    with pytest.raises(CheckFailed, match="version 1 has no evaluation"):
        registry.promote(add(None))
    registry.promote(registry.get("tumours", number="1"), force=True)
    with pytest.raises(CheckFailed, match="version 1 has no evaluation"):
        registry.promote(add(0))
    with pytest.raises(UserError, match="version 1 is the champion already"):
        registry.promote(registry.get("tumours"))


def test_an_evaluation_of_something_else_is_refused(
    registry, add, make_bundle, make_evaluation, tmp_path
):
    bundle, other = (make_bundle(tmp_path / name, name=name) for name in ("x", "y"))
    with pytest.raises(UserError, match=f"of bundle {other.version}, not of {bundle.version}"):
        registry.register(bundle, "tumours", make_evaluation(other, 0))
    with pytest.raises(UserError, match="on the validation split"):
        registry.register(bundle, "tumours", make_evaluation(bundle, 0, split="validation"))
    damaged = make_evaluation(bundle, 0)
    (damaged / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="a damaged evaluation"):
        registry.register(bundle, "tumours", damaged)
    with pytest.raises(UserError, match=r"no metrics\.json"):
        registry.register(bundle, "tumours", tmp_path)
    assert registry.names() == []


def test_what_is_not_there_is_told_with_what_is(registry, add):
    with pytest.raises(UserError, match="no model 'tumours'; there is none yet"):
        registry.get("tumours")
    add(0)
    with pytest.raises(UserError, match="no model 'tumors'; nearest: tumours"):
        registry.get("tumors")
    with pytest.raises(UserError, match="tumours has no 'champion'; there are: challenger"):
        registry.get("tumours")
    with pytest.raises(UserError, match="tumours has no version 7; there are: 1"):
        registry.get("tumours", number="7")
    with pytest.raises(UserError, match="a model's name has"):
        registry.register(None, "a/b", None)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("n", ("n", None, None)),
        ("n@champion", ("n", "champion", None)),
        ("n:3", ("n", None, "3")),
        ("models:/n/3", ("n", None, "3")),
        ("models:/n@a", ("n", "a", None)),
        ("models://n@a", ("n", "a", None)),
    ],
)
def test_references(text, parts):
    assert parse_reference(text) == parts


@pytest.mark.parametrize("text", ["", "n@", "n:x", "n@a:3", "models:/"])
def test_no_references(text):
    with pytest.raises(UserError, match="no model; write NAME"):
        parse_reference(text)
