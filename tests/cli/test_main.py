import io
import os
import subprocess
import sys

import pytest

from btray import cli
from btray.errors import CheckFailed
from btray.version import __version__


def btray(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "btray", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def test_version():
    done = btray("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_an_unknown_command_is_a_mistake_of_usage():
    done = btray("diagnose")
    assert done.returncode == 2
    assert "No such command 'diagnose'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (("predict", "--bundle", "b", "no:smile:[b].png"), "btray: no:smile:[b].png: no such file"),
        (
            ("train", "--bogus"),
            "btray: No such option: --bogus; see `python -m btray train --help`",
        ),
        (("data", "import"), "btray: Missing argument 'SRC'; see"),
        (("predict", "--format", "csv", "a"), "btray: Invalid value for '--format': 'csv' is not"),
        (("config", "show", "--set", "seeds=1"), "btray: configuration: unknown key seeds"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments, start):
    done = btray(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(start)
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("\n")


def test_a_long_message_is_still_one_line():
    done = btray("config", "show", "--config", "/" + "long/" * 60, COLUMNS="40")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nimport btray.cli\n"
        "try: btray.cli.app(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'ray', 'torch', 'timm', 'numpy', 'pyarrow', 'sklearn', 'matplotlib', 'PIL'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not a medical device" in " ".join(done.stdout.split())


def test_a_bug_is_not_taken_for_a_users_mistake(monkeypatch):
    def fail(**options):
        raise ValueError("ours")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ValueError, match="ours"):
        cli.main()


def test_what_the_terminal_cannot_show_is_escaped(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(cli, "app", lambda **options: sys.stdout.write("ü\n") and None)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    terminal.flush()
    assert terminal.buffer.getvalue() == b"\\xfc\n"


def test_a_check_that_found_something_is_exit_code_3(monkeypatch, capsys):
    def fail(**options):
        raise CheckFailed("here: found leakage (2)")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 3
    assert capsys.readouterr().err == "btray: here: found leakage (2)\n"
