"""The index of an archive, what is refused, and the selection of images."""

import time
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from dinoquant.data.archive import Archive, CorruptImage, Selection, open_archive, select
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dinoquant.errors import UserError

TRAIN = {"n2": 6, "n1": 4, "n3": 5}
VAL = {"n2": 3, "n1": 3, "n3": 1}


def members(top: str = "tiny/", train: dict[str, int] = TRAIN, val: dict[str, int] = VAL) -> dict[str, str]:
    """Return the members of a small archive: wnids.txt unsorted, classes of different sizes, "images" of a byte."""
    names = [(wnid, f"val_{wnid}{i}.JPEG") for wnid, count in val.items() for i in range(count)]
    return {
        f"{top}wnids.txt": "".join(f"{wnid}\n" for wnid in train),
        f"{top}words.txt": "n1\tfish\n",
        **{f"{top}train/{wnid}/images/{wnid}_{i}.JPEG": "x" for wnid, count in train.items() for i in range(count)},
        **{f"{top}train/{wnid}/{wnid}_boxes.txt": "" for wnid in train},
        **{f"{top}val/images/{name}": "x" for _, name in names},
        f"{top}val/val_annotations.txt": "".join(f"{name}\t{wnid}\t0\t0\t9\t9\n" for wnid, name in names),
        f"{top}test/images/test_0.JPEG": "x",
    }


def write(path: Path, content: dict[str, str] | list[tuple[str, str]]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in content.items() if isinstance(content, dict) else content:
            info = zipfile.ZipInfo(name)
            # The constructor ends the name at a NUL.
            info.filename = info.orig_filename = name
            file.writestr(info, text)
    return path


def chosen(selection: Selection, split: str) -> list[str]:
    return [item.member for item in selection.items if item.split == split]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zip"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error, open_archive(path):
        pass
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("top", ["tiny-imagenet-200/", "a/b/", ""])
def test_index(path: Path, top: str) -> None:
    extra = {"__MACOSX/tiny/._wnids.txt": "", f"{top}train/n1/images/.DS_Store": "", f"{top}train/n1/images/": ""}
    with open_archive(write(path, members(top) | extra)) as archive:
        assert archive.top == top
        assert archive.wnids == ["n1", "n2", "n3"]
        assert {wnid: len(images) for wnid, images in archive.train.items()} == TRAIN
        assert sorted(archive.val["n1"]) == [f"val/images/val_n1{i}.JPEG" for i in range(3)]
        assert archive.read("train/n1/images/n1_0.JPEG") == b"x"


def test_missing_file_is_passed_on(path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_archive(path):
        pass


def test_harmless_dots(path: Path) -> None:
    with open_archive(write(path, members() | {"tiny/..x": "", "tiny/a..b/x": "", "./tiny2/x": ""})):
        pass


def test_unlisted_train_folder_is_ignored_aloud(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_archive(write(path, members() | {"tiny/train/n9/images/a.JPEG": "x"})) as archive:
        assert "n9" not in archive.train
    assert "ignoring 1 folders under train/ that wnids.txt does not name, such as n9" in caplog.text


def test_windows_line_ends(path: Path) -> None:
    content = {name: text.replace("\n", "\r\n") for name, text in members().items()}
    with open_archive(write(path, content)) as archive:
        assert archive.wnids == ["n1", "n2", "n3"]
        assert {wnid: len(images) for wnid, images in archive.val.items()} == VAL


def test_damaged_members(path: Path) -> None:
    """A flipped bit in an image is a corrupt image; in a list it makes the archive useless."""
    content = members()
    content["tiny/train/n1/images/n1_0.JPEG"] = "some image"
    damaged = write(path, content).read_bytes().replace(b"some image", b"Some image", 1)
    path.write_bytes(damaged)
    with open_archive(path) as archive, pytest.raises(CorruptImage, match="CRC"):
        archive.read("train/n1/images/n1_0.JPEG")
    path.write_bytes(damaged.replace(b"n2\nn1\n", b"n2\nn4\n", 1))
    assert "wnids.txt cannot be read" in refusal(path)


@pytest.fixture
def archive(path: Path) -> Archive:
    with open_archive(write(path, members())) as archive:
        return archive


def test_bank_is_balanced_and_disjoint(archive: Archive) -> None:
    selection = select(archive, 3, 6, 4, seed=0)
    assert Counter(item.wnid for item in selection.items if item.split == "bank") == {"n1": 3, "n2": 3, "n3": 3}
    assert [item.split for item in selection.items] == ["bank"] * 9 + ["query"] * 6 + ["calibration"] * 4
    assert len({item.member for item in selection.items}) == 19
    for item in selection.items:
        assert item.member in archive.val[item.wnid] if item.split == "query" else archive.train[item.wnid]


def test_classes_take_turns(archive: Archive) -> None:
    items = select(archive, 3, 6, 4, seed=0).items
    order = [item.wnid for item in items[:3]]
    assert [item.wnid for item in items[:9]] == order * 3
    assert [item.wnid for item in items[9:12]] == order


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bank=st.integers(0, 4), queries=st.integers(0, 7), calibration=st.integers(0, 3), seed=st.integers(0, 3))
def test_splits_do_not_depend_on_each_other(
    archive: Archive, bank: int, queries: int, calibration: int, seed: int
) -> None:
    selection = select(archive, bank, queries, calibration, seed)
    # The calibration set depends on the bank only where a class has no image left outside it.
    largest = {"bank": (4, 0, 0), "query": (0, 7, 0), "calibration": (3, 0, 3)}
    for split, size in {"bank": 3 * bank, "query": queries, "calibration": calibration}.items():
        if split != "calibration" or bank < 4:
            assert chosen(selection, split) == chosen(select(archive, *largest[split], seed), split)[:size]
    used = [item.member for item in selection.items]
    spare = [member for spare in (selection.spare_train, selection.spare_val) for s in spare.values() for member in s]
    assert sorted(used + spare) == sorted(
        m for s in (archive.train, archive.val) for images in s.values() for m in images
    )


def test_seed_decides(archive: Archive) -> None:
    assert select(archive, 3, 5, 3, 1) == select(archive, 3, 5, 3, 1)
    assert select(archive, 3, 5, 3, 1).items != select(archive, 3, 5, 3, 2).items


def test_selection_ignores_top_folder_and_member_order(path: Path, archive: Archive) -> None:
    expected = select(archive, 3, 5, 3, 1)
    with open_archive(write(path, list(reversed(members("renamed/").items())))) as other:
        assert select(other, 3, 5, 3, 1) == expected


def test_order_is_the_same_everywhere(archive: Archive) -> None:
    """The digest of seed and name decides; worked out with sha256sum: `printf %s 0/n1 | sha256sum`."""
    order = ["train/n1/images/n1_1.JPEG", "train/n3/images/n3_3.JPEG", "train/n2/images/n2_2.JPEG"]
    assert chosen(select(archive, 1, 0, 0, 0), "bank") == order


def test_imbalance_is_logged(archive: Archive, caplog: pytest.LogCaptureFixture) -> None:
    select(archive, 4, 5, 2, seed=0)
    assert not caplog.text
    assert Counter(item.wnid for item in select(archive, 4, 7, 3, seed=0).items if item.split == "query") == VAL
    assert "dataset.queries: not balanced, some classes ran out: 1 to 3 images per class" in caplog.text
    assert "dataset.calibration_images: not balanced, some classes ran out: 0 to 2" in caplog.text


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        ((5, 1, 1), ("dataset.bank_per_class is 5", "n1 has only 4 train images")),
        ((4, 1, 4), ("dataset.calibration_images is 4", "only 3 train images outside the bank")),
        ((3, 8, 1), ("dataset.queries is 8", "only 7 labelled")),
    ],
)
def test_too_few_images(archive: Archive, asked: tuple[int, int, int], texts: tuple[str, str]) -> None:
    with pytest.raises(UserError) as error:
        select(archive, *asked, seed=0)
    for text in texts:
        assert text in str(error.value)


def test_replacements_come_from_the_same_class_and_split(archive: Archive) -> None:
    """Bank and calibration set share what is left of train: the one takes from its front, the other from its end."""
    selection = select(archive, 2, 3, 3, seed=0)
    of = {(item.split, item.wnid): item for item in selection.items}
    left = list(selection.spare_train["n2"])
    assert len(left) == 3
    assert selection.replace(of["bank", "n2"]).member == left[0]
    assert selection.replace(of["calibration", "n2"]).member == left[2]
    assert selection.replace(of["bank", "n2"]) == of["bank", "n2"]._replace(member=left[1])
    assert selection.replace(of["bank", "n2"]) is None
    assert selection.replace(of["query", "n2"]).member in archive.val["n2"]
    assert selection.replace(of["query", "n3"]) is None


def test_120_000_members_are_indexed_quickly(path: Path) -> None:
    """The size of Tiny ImageNet; counted in processor time, because other processes share the machine."""
    wnids = {f"n{label:08d}": 500 for label in range(200)}
    write(path, members("tiny/", wnids, dict.fromkeys(wnids, 100)))
    begin = time.process_time()
    with open_archive(path) as archive:
        assert sum(map(len, archive.train.values())) == 100_000
        assert sum(map(len, archive.val.values())) == 20_000
    assert time.process_time() - begin < 2


def test_real_archive(real_data: Path) -> None:
    with open_archive(real_data / "tiny-imagenet-200.subset.zip") as archive:
        assert len(archive.wnids) == 200
        selection = select(archive, 50, 2000, 64, seed=0)
    counts = Counter((item.split, item.wnid) for item in selection.items)
    assert {counts["bank", wnid] for wnid in archive.wnids} == {50}
    assert {counts["query", wnid] for wnid in archive.wnids} == {10}
    assert sorted(counts["calibration", wnid] for wnid in archive.wnids) == [0] * 136 + [1] * 64
    assert len({item.member for item in selection.items}) == 10_000 + 2000 + 64
