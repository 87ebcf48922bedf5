"""The selection of images: by the seed alone, balanced, disjoint, and the same everywhere."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dinoquant.data.grouping import ImageFile
from dinoquant.data.layout import Dataset, open_dataset
from dinoquant.data.selection import Selection, select
from dinoquant.errors import UserError
from layouts import write_zip

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


def chosen(selection: Selection, split: str) -> list[str]:
    return [item.member.removeprefix("tiny/") for item in selection.items if item.split == split]


def names(images: list[ImageFile]) -> list[str]:
    return [image.member for image in images]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.zip"


@pytest.fixture
def dataset(path: Path) -> Dataset:
    with open_dataset(write_zip(path, members())) as dataset:
        return dataset


def test_bank_is_balanced_and_disjoint(dataset: Dataset) -> None:
    selection = select(dataset, 3, 6, 4, seed=0)
    assert Counter(item.wnid for item in selection.items if item.split == "bank") == {"n1": 3, "n2": 3, "n3": 3}
    assert [item.split for item in selection.items] == ["bank"] * 9 + ["query"] * 6 + ["calibration"] * 4
    assert len({item.member for item in selection.items}) == 19
    for item in selection.items:
        assert item.member in names((dataset.val if item.split == "query" else dataset.train)[item.wnid])


def test_classes_take_turns(dataset: Dataset) -> None:
    items = select(dataset, 3, 6, 4, seed=0).items
    order = [item.wnid for item in items[:3]]
    assert [item.wnid for item in items[:9]] == order * 3
    assert [item.wnid for item in items[9:12]] == order


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bank=st.integers(0, 4), queries=st.integers(0, 7), calibration=st.integers(0, 3), seed=st.integers(0, 3))
def test_splits_do_not_depend_on_each_other(
    dataset: Dataset, bank: int, queries: int, calibration: int, seed: int
) -> None:
    selection = select(dataset, bank, queries, calibration, seed)
    # The calibration set depends on the bank only where a class has no image left outside it.
    largest = {"bank": (4, 0, 0), "query": (0, 7, 0), "calibration": (3, 0, 3)}
    for split, size in {"bank": 3 * bank, "query": queries, "calibration": calibration}.items():
        if split != "calibration" or bank < 4:
            assert chosen(selection, split) == chosen(select(dataset, *largest[split], seed), split)[:size]
    used = [item.member for item in selection.items]
    spare = [member for spare in (selection.spare_train, selection.spare_val) for s in spare.values() for member in s]
    assert sorted(used + spare) == sorted(
        m for s in (dataset.train, dataset.val) for images in s.values() for m in names(images)
    )


def test_seed_decides(dataset: Dataset) -> None:
    assert select(dataset, 3, 5, 3, 1) == select(dataset, 3, 5, 3, 1)
    assert select(dataset, 3, 5, 3, 1).items != select(dataset, 3, 5, 3, 2).items


def test_selection_ignores_top_folder_and_member_order(path: Path, dataset: Dataset) -> None:
    expected = select(dataset, 3, 5, 3, 1).items
    with open_dataset(write_zip(path, dict(reversed(members("renamed/").items())))) as other:
        items = select(other, 3, 5, 3, 1).items
    assert [item._replace(member=item.member.replace("renamed/", "tiny/")) for item in items] == expected


def test_order_is_the_same_everywhere(dataset: Dataset) -> None:
    """The digest of seed and name decides; worked out with sha256sum: `printf %s 0/n1 | sha256sum`."""
    order = ["train/n1/images/n1_1.JPEG", "train/n3/images/n3_3.JPEG", "train/n2/images/n2_2.JPEG"]
    assert chosen(select(dataset, 1, 0, 0, 0), "bank") == order


def test_imbalance_is_logged(dataset: Dataset, caplog: pytest.LogCaptureFixture) -> None:
    select(dataset, 4, 5, 2, seed=0)
    assert not caplog.text
    assert Counter(item.wnid for item in select(dataset, 4, 7, 3, seed=0).items if item.split == "query") == VAL
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
def test_too_few_images(dataset: Dataset, asked: tuple[int, int, int], texts: tuple[str, str]) -> None:
    with pytest.raises(UserError) as error:
        select(dataset, *asked, seed=0)
    for text in texts:
        assert text in str(error.value)


def test_replacements_come_from_the_same_class_and_split(dataset: Dataset) -> None:
    """Bank and calibration set share what is left of train: the one takes from its front, the other from its end."""
    selection = select(dataset, 2, 3, 3, seed=0)
    of = {(item.split, item.wnid): item for item in selection.items}
    left = list(selection.spare_train["n2"])
    assert len(left) == 3
    assert selection.replace(of["bank", "n2"]).member == left[0]
    assert selection.replace(of["calibration", "n2"]).member == left[2]
    assert selection.replace(of["bank", "n2"]) == of["bank", "n2"]._replace(member=left[1])
    assert selection.replace(of["bank", "n2"]) is None
    assert selection.replace(of["query", "n2"]).member in names(dataset.val["n2"])
    assert selection.replace(of["query", "n3"]) is None


def test_real_archive(real_data: Path) -> None:
    with open_dataset(real_data / "tiny-imagenet-200.subset.zip") as dataset:
        assert len(dataset.classes) == 200
        selection = select(dataset, 50, 2000, 64, seed=0)
    counts = Counter((item.split, item.wnid) for item in selection.items)
    assert {counts["bank", wnid] for wnid in dataset.classes} == {50}
    assert {counts["query", wnid] for wnid in dataset.classes} == {10}
    assert sorted(counts["calibration", wnid] for wnid in dataset.classes) == [0] * 136 + [1] * 64
    assert len({item.member for item in selection.items}) == 10_000 + 2000 + 64
