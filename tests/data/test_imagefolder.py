import os
import pickle

import pytest

from btray.core.images import ImageError
from btray.data.sources import tree
from btray.data.sources.base import Item
from btray.data.sources.imagefolder import ImageFolder
from btray.errors import UserError


def listing(root):
    return ImageFolder(str(root)).listing()


def codes(root):
    return {entry.path: entry.code for entry in listing(root).rejected}


def test_class_folders_have_no_official_split(make_folder):
    found = listing(make_folder(per_class=2))
    assert len(found.items) == found.images == 8
    assert {item.split for item in found.items} == {None}
    assert found.items[0] == Item("glioma/glioma-000.png", "glioma")
    assert [item.name for item in found.items] == sorted(item.name for item in found.items)


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("Training", "train"),
        ("train", "train"),
        ("TESTING", "test"),
        ("test", "test"),
        ("val", "validation"),
        ("Validation", "validation"),
    ],
)
def test_split_folders(make_folder, folder, split):
    assert {item.split for item in listing(make_folder(2, under=folder)).items} == {split}


def test_other_spellings_of_the_classes(make_folder):
    root = make_folder(1, classes=("Glioma_Tumor", "no tumour", "Pituitary"))
    assert [item.label for item in listing(root).items] == ["glioma", "pituitary", "notumor"]


def test_unknown_folder_is_named_with_the_accepted_names(make_folder):
    root = make_folder(1)
    (root / "metastasis").mkdir()
    with pytest.raises(UserError, match=r"metastasis.*glioma, meningioma, notumor, pituitary"):
        listing(root)


def test_unknown_folder_inside_a_split_folder(make_folder):
    root = make_folder(1, under="Training")
    (root / "Training" / "other").mkdir()
    with pytest.raises(UserError, match=r"Training: folders of no known class: other"):
        listing(root)


def test_class_folders_beside_split_folders_are_refused(make_folder):
    root = make_folder(1)
    (root / "Training").mkdir()
    with pytest.raises(UserError, match="beside split folders"):
        listing(root)


def test_hidden_and_macosx_are_left_out_silently(make_folder):
    root = make_folder(1)
    (root / "__MACOSX" / "glioma").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "glioma" / ".DS_Store").write_bytes(b"x")
    assert listing(root).rejected == ()


def test_files_not_named_like_images_are_quarantined(make_folder):
    root = make_folder(1)
    (root / "glioma" / "notes.txt").write_text("x")
    (root / "glioma" / "Thumbs.db").write_text("x")
    (root / "stray.png").write_bytes(b"x")
    assert codes(root) == {
        "glioma/Thumbs.db": "not_an_image",
        "glioma/notes.txt": "not_an_image",
        "stray.png": "no_label",
    }


def test_names_with_spaces_and_other_scripts(make_folder):
    root = make_folder(1)
    path = root / "glioma" / "Schädel 頭 1.png"
    (root / "glioma" / "glioma-000.png").rename(path)
    found = listing(root)
    assert found.items[0].name == "glioma/Schädel 頭 1.png"
    (record,) = ImageFolder(str(root)).read(found.items[0])
    assert record.data == path.read_bytes()


def test_name_that_is_not_utf8_is_quarantined(make_folder):
    root = make_folder(1)
    (root / "glioma" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    assert codes(root) == {"glioma/caf\\udce9.png": "bad_name"}


def test_link_loop_is_one_row(make_folder):
    root = make_folder(2)
    (root / "glioma" / "again").symlink_to(root)
    found = listing(root)
    assert [(entry.path, entry.code) for entry in found.rejected] == [("glioma/again", "link_loop")]
    assert len(found.items) == 8


def test_class_folder_that_links_to_the_root_is_not_followed(make_folder):
    root = make_folder(2, classes=("glioma", "meningioma"))
    (root / "pituitary").symlink_to(".")
    found = listing(root)
    assert {item.label for item in found.items} == {"glioma", "meningioma"}
    assert codes(root) == {"pituitary": "link_loop"}


def test_link_out_of_the_source_is_followed_once(make_folder, tmp_path, encoded, draw):
    root = make_folder(1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(encoded(draw(7)))
    (outside / "loop").symlink_to(outside)
    (root / "glioma" / "more").symlink_to(outside)
    (root / "notumor" / "more").symlink_to(outside)
    names = [item.name for item in listing(root).items]
    assert names.count("glioma/more/a.png") == 1
    assert len(names) == 5
    assert set(codes(root)) == {"glioma/more/loop", "notumor/more"}


def test_broken_link_self_link_and_pipe_are_quarantined(make_folder):
    root = make_folder(1)
    (root / "glioma" / "gone.png").symlink_to("nowhere.png")
    (root / "glioma" / "self.png").symlink_to("self.png")
    os.mkfifo(root / "glioma" / "pipe.png")
    assert codes(root) == {
        "glioma/gone.png": "unreadable",
        "glioma/self.png": "unreadable",
        "glioma/pipe.png": "not_a_file",
    }


def test_missing_source(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        listing(tmp_path / "nowhere")


def test_source_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not a folder"):
        listing(tmp_path / "file")


def test_empty_source(tmp_path):
    with pytest.raises(UserError, match="no class folders"):
        listing(tmp_path)


def test_empty_class_folders(make_folder):
    with pytest.raises(UserError, match="no image in the class folders"):
        listing(make_folder(0))


def test_one_class_only(make_folder):
    with pytest.raises(UserError, match="only the class glioma"):
        listing(make_folder(3, classes=("glioma",)))


def test_fingerprint_follows_names_and_contents(make_folder):
    root = make_folder(2)
    source = ImageFolder(str(root))
    first = source.fingerprint(source.listing().items)
    assert source.fingerprint(source.listing().items) == first
    path = root / "glioma" / "glioma-000.png"
    path.write_bytes(path.read_bytes() + b"\0")
    changed = source.fingerprint(source.listing().items)
    path.rename(path.with_name("other.png"))
    assert len({first, changed, source.fingerprint(source.listing().items)}) == 3


def test_huge_file_is_refused_unread(make_folder, monkeypatch):
    monkeypatch.setattr(tree, "MAX_BYTES", 10)
    root = make_folder(1)
    with pytest.raises(ImageError, match="more than the limit of 10"):
        list(ImageFolder(str(root)).read(listing(root).items[0]))


def test_source_can_be_sent_to_a_worker(make_folder):
    source = ImageFolder(str(make_folder(1)))
    assert pickle.loads(pickle.dumps(source)) == source
