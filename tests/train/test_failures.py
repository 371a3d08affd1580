import pytest

from btray.train.failures import one_line

OOM = """Task was killed due to the node running low on memory.
Memory on the node was 22.8GB / 24.0GB. Refer to the documentation. Consider provisioning more."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, "its process died"),
        (RuntimeError("first\n\n  ValueError: the last\n"), "ValueError: the last"),
        (KeyError(), "KeyError"),
        (RuntimeError(OOM), "memory ran out; lower data.batch_size"),
        (RuntimeError("x" * 1000), "x" * 300),
    ],
)
def test_the_reason_is_one_short_line(error, said):
    line = one_line(error)
    assert line.startswith(said)
    assert "\n" not in line
    assert len(line) <= 300


def test_what_caused_an_error_counts():
    error = RuntimeError("outside")
    error.cause = ValueError("inside")
    assert one_line(error) == "inside"
