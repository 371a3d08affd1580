"""What goes along with a job."""

import os
import zipfile

import pytest

from btray.errors import UserError
from btray.jobs.package import files_of, pack


def write(root, *names, text="x"):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def names(root):
    return [path.as_posix() for path in files_of(root)]


def test_junk_stays_behind(tmp_path):
    junk = (
        ".git/config", ".venv/bin/python", "data/rows.parquet", "runs/a/model", ".env",
        "package/__pycache__/a.pyc", ".mypy_cache/x", "btray.egg-info/PKG-INFO",
    )  # fmt: skip
    write(tmp_path, *junk, "train.yaml", "package/data/reading.py")
    assert names(tmp_path) == ["package/data/reading.py", "train.yaml"]


def test_ignore_files_count_where_they_stand(tmp_path):
    write(tmp_path, "a.log", "keep.log", "deep/b.log", "deep/large.bin", "large.bin")
    write(tmp_path, ".gitignore", text="*.log\n!keep.log\n")
    write(tmp_path, "deep/.rayignore", text="/large.bin\n")
    assert names(tmp_path) == [".gitignore", "deep/.rayignore", "keep.log", "large.bin"]


def test_links_to_folders_are_not_followed(tmp_path):
    write(tmp_path, "real/a.txt")
    (tmp_path / "round").symlink_to(tmp_path)
    assert names(tmp_path) == ["real/a.txt"]


def test_the_archive_keeps_content_and_mode_and_is_the_same_again(tmp_path):
    folder = tmp_path / "folder"
    write(folder, "run.sh", "deep/a.txt")
    (folder / "run.sh").chmod(0o755)
    pack(folder, tmp_path / "one.zip")
    os.utime(folder / "run.sh", (0, 0))
    pack(folder, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as zipped:
        assert zipped.namelist() == ["deep/a.txt", "run.sh"]
        assert zipped.getinfo("run.sh").external_attr >> 16 & 0o777 == 0o755


def test_what_is_too_large_names_the_biggest_files(tmp_path):
    folder = tmp_path / "folder"
    write(folder, "small.txt")
    for name, size in (("huge.bin", 3 << 20), ("large.bin", 2 << 20)):
        (folder / name).write_bytes(os.urandom(size))
    with pytest.raises(UserError) as refused:
        pack(folder, tmp_path / "archive.zip", limit=1 << 20)
    message = str(refused.value)
    assert "5.0 MiB packed, and at most 1.0 MiB" in message
    assert "the biggest: huge.bin (3.0 MiB), large.bin (2.0 MiB)" in message
    assert "\n" not in message


def test_a_folder_that_is_gone_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--working-dir .*missing: No such file"):
        pack(tmp_path / "missing", tmp_path / "archive.zip")
