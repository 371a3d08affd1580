import gzip
import io
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest

from btray.data.sources import archive
from btray.data.sources.archive import unpacked
from btray.errors import UserError


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where archives are unpacked; empty again when a test has ended."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def make_zip(path, files, **options):
    with zipfile.ZipFile(path, "w", **options) as packed:
        for name, data in files:
            packed.writestr(name, data)
    return path


def make_tar(path, entries, mode="w"):
    with tarfile.open(path, mode) as packed:
        for entry, data in entries:
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return path


def refused(path, match):
    with pytest.raises(UserError, match=match) as caught, unpacked(str(path)):
        pass
    assert "\n" not in str(caught.value)
    assert "btray-archive" not in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")],
)
def test_tars_import(make_folder, load, tmp_path, scratch, suffix, mode):
    root = make_folder(6)
    path = tmp_path / f"slices.{suffix}"
    with tarfile.open(path, mode) as packed:
        packed.add(root, "data/brain")
    expected = load(root, "expected").manifest
    assert load(path).manifest == expected


@pytest.mark.parametrize("under", ["", "Training"])
def test_zips_import(make_folder, load, tmp_path, scratch, under):
    root = make_folder(6, under=under)
    files = [(path.relative_to(root).as_posix(), path) for path in sorted(root.rglob("*.png"))]
    path = make_zip(
        tmp_path / "a.zip",
        [("__MACOSX/x", b"x"), *((name, p.read_bytes()) for name, p in files)],
    )
    if under:
        make_folder(2, under="Testing", seed=1)
    assert load(path).manifest.rows == 24


def test_a_zip_of_zips(tmp_path, scratch):
    inner = make_zip(tmp_path / "in.zip", [("1.mat", b"1")]).read_bytes()
    path = make_zip(tmp_path / "a.zip", [("x-1.zip", inner), ("y.zip", inner), ("cvind.mat", b"")])
    with unpacked(str(path)) as folder:
        assert names(folder) == ["cvind.mat", "x-1/1.mat", "y/1.mat"]


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png", "..\\out.png"])
def test_names_that_lead_outside(tmp_path, scratch, name):
    refused(make_zip(tmp_path / "a.zip", [(name, b"x")]), "leads out of its folder")
    refused(make_tar(tmp_path / "a.tar", [(tarfile.TarInfo(name), b"x")]), "leads out")
    assert not list(tmp_path.rglob("out.png"))


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_of_a_tar(tmp_path, scratch, kind):
    entry = tarfile.TarInfo("link")
    entry.type, entry.linkname = kind, "/etc/passwd"
    refused(make_tar(tmp_path / "a.tar", [(entry, b"")]), "holds links or devices")


def test_a_link_of_a_zip(tmp_path, scratch):
    entry = zipfile.ZipInfo("link")
    entry.external_attr = 0o120777 << 16
    refused(make_zip(tmp_path / "a.zip", [(entry, "/etc/passwd")]), "holds links or devices")


def test_an_encrypted_zip(tmp_path, scratch):
    path = make_zip(tmp_path / "a.zip", [("a.png", b"x")])
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(path, "encrypted; unpack it yourself with its password")


@pytest.mark.parametrize("kind", ["zip", "zip in a zip", "tar.gz"])
def test_a_bomb(tmp_path, scratch, monkeypatch, kind):
    monkeypatch.setattr(archive, "SMALL", 1_000_000)
    zeros = bytes(20_000_000)
    if kind == "tar.gz":
        path = make_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("a"), zeros)], "w:gz")
    else:
        deflated = {"compression": zipfile.ZIP_DEFLATED}
        path = make_zip(tmp_path / "a.zip", [("a", zeros)], **deflated)
        if kind == "zip in a zip":
            path = make_zip(tmp_path / "b.zip", [("a.zip", path.read_bytes())], **deflated)
    refused(path, r"unpacks to more than .* as an archive bomb does")


def test_too_much_and_too_many(tmp_path, scratch, monkeypatch):
    path = make_zip(tmp_path / "a.zip", [("a", os.urandom(5000)), ("b", b"")])
    monkeypatch.setattr(archive, "MAX_FILES", 1)
    refused(path, "more than 1 files")
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    refused(path, "unpacks to more than 1,000 bytes")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(tmp_path, scratch):
    refused(make_zip(tmp_path / "a.zip", [("a", b"1"), ("a", b"2")]), "one name twice")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz"])
@pytest.mark.parametrize("data", [b"", b"no archive at all", b"\x1f\x8b\x08" + bytes(50)])
def test_what_is_no_archive(tmp_path, scratch, name, data):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, "damaged, or no zip or tar archive")


@pytest.mark.parametrize("mode", ["zip", "w:gz", "w:bz2", "w:xz"])
def test_a_cut_archive(tmp_path, scratch, mode):
    if mode == "zip":
        path = make_zip(tmp_path / "a.zip", [("a", os.urandom(50_000))])
    else:
        entry = (tarfile.TarInfo("a"), os.urandom(50_000))
        path = make_tar(tmp_path / f"a.tar.{mode[2:]}", [entry], mode)
    path.write_bytes(path.read_bytes()[:30_000])
    refused(path, "damaged, or no zip or tar archive")


def test_a_zip_with_a_wrong_checksum(tmp_path, scratch):
    path = make_zip(tmp_path / "a.zip", [("a", b"content")])
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT", 1))
    refused(path, "damaged")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_damaged_byte_in_a_compressed_tar(tmp_path, scratch, kind):
    entries = [(tarfile.TarInfo(f"{n}.bmp"), os.urandom(20_000)) for n in range(3)]
    path = make_tar(tmp_path / f"a.tar.{kind}", entries, f"w:{kind}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(path, r"damaged, or no zip or tar archive \(\w+\)$")


def test_a_checksum_at_the_end_is_read(tmp_path, scratch):
    path = make_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("a"), os.urandom(20_000))], "w:gz")
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # CRC-32 (RFC 1952)
    path.write_bytes(data)
    refused(path, r"damaged, or no zip or tar archive \(BadGzipFile\)$")


@pytest.mark.parametrize("kind", ["", "gz"])
@pytest.mark.parametrize("fault", ["a damaged header", "no end"])
def test_a_tar_is_not_taken_for_shorter_than_it_is(tmp_path, scratch, kind, fault):
    """What `tarfile` takes for the end of the archive."""
    entries = [(tarfile.TarInfo(f"{n}.bmp"), os.urandom(1000)) for n in range(3)]
    data = bytearray(make_tar(tmp_path / "whole.tar", entries).read_bytes())
    if fault == "no end":
        data = data[: 3 * 1536]
    else:
        data[1536 + 150] ^= 1  # the second member's checksum
    path = tmp_path / f"a.tar{'.' * bool(kind)}{kind}"
    path.write_bytes(gzip.compress(data) if kind else data)
    refused(path, r"damaged, or no zip or tar archive \(ReadError\)$")


def test_damage_does_not_name_the_member(tmp_path, scratch):
    path = make_zip(tmp_path / "a.zip", [("Xylophon.png", b"content")])
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT", 1))
    refused(path, r"damaged, or no zip or tar archive \(BadZipFile\)$")


def test_no_such_archive(tmp_path, scratch):
    refused(tmp_path / "a.zip", "no such file")


def test_messages_name_the_archive_and_not_its_folder(tmp_path, load, scratch):
    path = make_zip(tmp_path / "a.zip", [("metastasis/a.png", b"x"), ("glioma/a.png", b"x")])
    with pytest.raises(UserError, match=rf"^{path}: folders of no known class: metastasis"):
        load(path)


def test_a_file_where_a_folder_must_be(tmp_path, scratch):
    path = make_zip(tmp_path / "a.zip", [("a", b"1"), ("a/b", b"2")])
    refused(path, "cannot be unpacked: .*; TMPDIR names the folder")
