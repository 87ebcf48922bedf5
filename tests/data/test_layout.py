"""The layouts that people have give the same labelled images; the unused is counted, the unclear refused."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dinoquant.data.layout import Dataset, open_dataset
from dinoquant.data.manifest import UNLABELLED
from dinoquant.data.selection import select
from dinoquant.errors import UserError
from layouts import (
    CLASSES,
    TOP,
    Files,
    by_class,
    flat,
    image_folder,
    official,
    one_folder,
    picture,
    write_folder,
    write_tar,
    write_zip,
)

ANNOTATIONS, WNIDS = f"{TOP}val/val_annotations.txt", f"{TOP}wnids.txt"
Chosen = list[tuple[str, str, bytes]]


def chosen(dataset: Dataset, seed: int = 0, sizes: tuple[int, int, int] = (4, 9, 6)) -> Chosen:
    """Return split, class and content of the images that a run would take."""
    items = select(dataset, *sizes, seed).items
    return [(item.split, item.wnid, dataset.container.read(item.member)) for item in items]


def read(path: Path, **options: object) -> Chosen:
    with open_dataset(path) as dataset:
        return chosen(dataset, **options)


def notes(path: Path) -> str:
    with open_dataset(path) as dataset:
        return "; ".join(dataset.notes)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error, open_dataset(path):
        pass
    assert str(path) in str(error.value)
    assert "elete" not in str(error.value)
    return str(error.value)


@pytest.fixture
def zipped(tmp_path: Path) -> Callable[[Files], Path]:
    return lambda files: write_zip(tmp_path / "x.zip", files)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[Chosen]:
    """The images of the official layout for two seeds."""
    path = write_zip(tmp_path_factory.mktemp("official") / "official.zip", official())
    return [read(path, seed=seed) for seed in (0, 1)]


def slashed_back(files: Files) -> Files:
    return {name.replace("/", "\\"): data for name, data in files.items()}


def with_text(encode: Callable[[str], bytes]) -> Files:
    files = official()
    return files | {name: encode(files[name].decode()) for name in (WNIDS, ANNOTATIONS)}


SAME = {
    "official": official(),
    "without a folder around it": official(""),
    "one folder too deep": official(f"{TOP}{TOP}"),
    "val by class, in images": by_class("images/"),
    "val by class": by_class(),
    "val by class, annotations still there": by_class(annotations=True),
    "val by class and as it was": by_class(annotations=True) | official(),
    "ImageFolder": image_folder(),
    "ImageFolder at the top": image_folder(""),
    "ImageFolder with validation": image_folder(val="validation"),
    "ImageFolder with valid": image_folder(val="valid"),
    "ImageFolder with test": image_folder(val="test"),
    "ImageFolder with Train and Val": image_folder(train="Train", val="Val"),
    "ImageFolder with train_images and val_images": image_folder(train="train_images", val="val_images"),
    "ImageFolder with images_train and images_val": image_folder(train="images_train", val="images_val"),
    "ImageFolder with training_set and test_set": image_folder(train="training_set", val="test_set"),
    "ILSVRC's names": image_folder(train="ILSVRC2012_img_train", val="ILSVRC2012_img_val"),
    "ImageFolder with training, and a test folder without labels": image_folder(train="training")
    | {"data/test/1.JPEG": b"x"},
    "names beginning with ./": official(f"./{TOP}"),
    "backslashes": slashed_back(official()),
    "backslashes, ImageFolder": slashed_back(image_folder()),
    "byte-order marks": with_text(lambda text: text.encode("utf-8-sig")),
    "UTF-16, as PowerShell writes it": with_text(lambda text: text.replace("\n", "\r\n").encode("utf-16")),
    "Windows line ends": with_text(lambda text: text.replace("\n", "\r\n").encode()),
    "blanks at line ends": with_text(lambda text: text.replace("\n", " \t \n\n").encode()),
    "blanks for tabs": with_text(lambda text: text.replace("\t", "  ").encode()),
    "words beside the classes": official() | {WNIDS: b"n01\tgoldfish, Carassius\nn02 shark\nn03\then\n"},
    "a class listed twice": official() | {WNIDS: b"n01\nn02\nn03\nn01\n"},
    "an image annotated twice": official() | {ANNOTATIONS: official()[ANNOTATIONS] * 2},
    "a list in another order": official() | {WNIDS: b"n03\nn01\nn02\n"},
}


@pytest.mark.parametrize("files", SAME.values(), ids=SAME)
def test_same_images_and_labels(files: Files, expected: list[Chosen], zipped: Callable[[Files], Path]) -> None:
    path = zipped(files)
    assert [read(path, seed=seed) for seed in (0, 1)] == expected


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("files", [official(), image_folder(), official(f"./{TOP}")])
def test_tar(files: Files, mode: str, expected: list[Chosen], tmp_path: Path) -> None:
    assert read(write_tar(tmp_path / "archive", files, mode)) == expected[0]


@pytest.mark.parametrize("files", [official(), by_class(), image_folder(), image_folder("")])
def test_folder(files: Files, expected: list[Chosen], tmp_path: Path) -> None:
    assert read(write_folder(tmp_path / "folder", files)) == expected[0]


def test_folder_of_links(expected: list[Chosen], tmp_path: Path) -> None:
    """Links to files, to a class's folder, and one that leads back to where it lies."""
    write_folder(tmp_path / "elsewhere", image_folder(""))
    folder = tmp_path / "links"
    for name in CLASSES:
        (folder / "val" / name).mkdir(parents=True)
        for image in (tmp_path / "elsewhere/val" / name).iterdir():
            (folder / "val" / name / image.name).symlink_to(image)
    (folder / "train").symlink_to(tmp_path / "elsewhere/train")
    (folder / "val" / "n01" / "up").symlink_to(folder)
    assert read(folder) == expected[0]


STRAY = {
    "Thumbs.db": "hidden or system files",
    ".DS_Store": "hidden or system files",
    ".ipynb_checkpoints/n01_0-checkpoint.JPEG": "hidden or system files",
    "@eaDir/n01_0.JPEG/SYNOPHOTO_THUMB_M.jpg": "hidden or system files",
    "README.md": "files that are no images",
    "labels.cache": "files that are no images",
}


@pytest.mark.parametrize("place", [f"{TOP}train/n01/images/", f"{TOP}train/", f"{TOP}val/images/", TOP, ""])
def test_stray_files_are_counted_in_one_warning(
    place: str, expected: list[Chosen], zipped: Callable[[Files], Path], caplog: pytest.LogCaptureFixture
) -> None:
    stray = {f"{place}{name}": b"no image" for name in STRAY} | {f"__MACOSX/{place}._wnids.txt": b"\0"}
    path = zipped(official() | stray)
    assert read(path) == expected[0]
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "left out: 5 hidden or system files, such as " in warnings[0]
    assert "left out: 2 files that are no images, such as " in warnings[0]


def test_what_belongs_to_the_layout_is_no_stray_file(zipped: Callable[[Files], Path]) -> None:
    extra = {"words.txt": b"n01\tfish\n", "train/n01/n01_boxes.txt": b"", "test/images/test_0.JPEG": b"x"}
    assert notes(zipped(official() | {TOP + name: data for name, data in extra.items()})) == ""


def cut(files: Files, *classes: str) -> Files:
    return files | {WNIDS: "".join(f"{name}\n" for name in classes).encode()}


@pytest.mark.parametrize("files", [official(), by_class(), by_class("images/", annotations=True)])
def test_classes_that_are_not_listed_are_left_out_everywhere(files: Files, zipped: Callable[[Files], Path]) -> None:
    path = zipped(cut(files, "n01", "n02"))
    for seed in range(5):
        assert {name for _, name, _ in read(path, seed=seed, sizes=(4, 6, 4))} == {"n01", "n02"}
    with open_dataset(path) as dataset:
        assert dataset.classes == ["n01", "n02"]
        with pytest.raises(UserError, match="only 6 labelled"):
            chosen(dataset, sizes=(4, 7, 4))
    assert "left out: 1 classes that wnids.txt does not list, such as n03" in notes(path)
    assert "6 training images of these" in notes(path)
    assert "3 validation images of other classes" in notes(path)


@pytest.mark.parametrize("files", [official(), by_class()])
def test_listed_classes_without_training_images_are_left_out(files: Files, zipped: Callable[[Files], Path]) -> None:
    """As when someone keeps the folders of some classes, and all lists."""
    path = zipped({name: data for name, data in files.items() if "train/n02" not in name})
    assert {name for _, name, _ in read(path, sizes=(4, 6, 4))} == {"n01", "n03"}
    assert "left out: 1 classes of wnids.txt without training images, such as n02" in notes(path)
    assert "3 validation images of other classes" in notes(path)


def test_validation_images_without_label_and_labels_without_image(zipped: Callable[[Files], Path]) -> None:
    files = official() | {f"{TOP}val/images/other.JPEG": picture(3)}
    del files[f"{TOP}val/images/val_0.JPEG"]
    path = zipped(files)
    assert len([split for split, _, _ in read(path, sizes=(4, 8, 4)) if split == "query"]) == 8
    assert f"left out: 1 validation images without a label, such as {TOP}val/images/other.JPEG" in notes(path)
    assert "left out: 1 lines of val_annotations.txt whose image is missing, such as val_0.JPEG" in notes(path)


def test_classes_whose_names_differ_in_case(zipped: Callable[[Files], Path]) -> None:
    path = zipped({name.replace("/n02/", "/N01/"): data for name, data in image_folder().items()})
    with open_dataset(path) as dataset:
        assert dataset.classes == ["N01", "n01", "n03"]
    assert "kept apart: 1 classes whose names differ from another's only in case, such as n01" in notes(path)


@pytest.mark.parametrize("files", [one_folder(), one_folder(""), one_folder("a/b/"), one_folder("data/train/")])
def test_one_folder_of_classes_is_split(files: Files, zipped: Callable[[Files], Path]) -> None:
    path = zipped(files)
    with open_dataset(path) as dataset:
        assert "split" in dataset.layout
        everything = chosen(dataset, sizes=(4, 9, 6))
        assert len({content for _, _, content in everything}) == len(everything) == 27
        for split, size in (("bank", 4), ("query", 3), ("calibration", 2)):
            names = [name for own, name, _ in everything if own == split]
            assert sorted(names) == sorted(CLASSES * size)
        for _, name, content in everything:
            assert content in [data for member, data in files.items() if f"{name}/" in member]
        assert chosen(dataset, sizes=(4, 3, 3))[:12] == everything[:12]
        assert chosen(dataset, seed=1) != everything
        with pytest.raises(UserError, match=r"but dataset.source has only 15 images outside the bank"):
            chosen(dataset, sizes=(4, 16, 0))
        with pytest.raises(UserError, match=r"only 3 train images outside the bank.*or dataset.queries"):
            chosen(dataset, sizes=(4, 12, 4))


def test_a_class_called_train(zipped: Callable[[Files], Path]) -> None:
    path = zipped({name.replace("n02", "train"): data for name, data in one_folder().items()})
    with open_dataset(path) as dataset:
        assert dataset.classes == ["n01", "n03", "train"]
    path = zipped({name.replace("n02", "train"): data for name, data in image_folder().items()})
    with open_dataset(path) as dataset:
        assert (dataset.classes, len(dataset.val["train"])) == (["n01", "n03", "train"], 3)


def test_classes_of_any_name(zipped: Callable[[Files], Path]) -> None:
    names = {"n01": "golden retriever", "n02": "café, noir", "n03": "images2"}
    files = {}
    for name, data in image_folder().items():
        old = name.split("/")[2]
        files[name.replace(f"/{old}/", f"/{names[old]}/")] = data
    with open_dataset(zipped(files)) as dataset:
        assert dataset.classes == sorted(names.values())
        assert [len(images) for images in dataset.val.values()] == [3, 3, 3]


def test_classes_whose_names_begin_like_splits(zipped: Callable[[Files], Path]) -> None:
    names = {"n01": "train_station", "n02": "test_tube", "n03": "valley"}
    files = {
        name.replace(old, new): data for name, data in one_folder().items() for old, new in names.items() if old in name
    }
    with open_dataset(zipped(files)) as dataset:
        assert dataset.classes == sorted(names.values())


UNLABELLED_LAYOUTS = {
    "COCO": flat("coco/train2017/") | {f"coco/val2017/{n}.JPEG": picture(n) for n in range(3)},
    "flat": flat(),
    "flat, at the top": flat(""),
    "flat train and val": flat("photos/train/") | {f"photos/val/{n}.JPEG": picture(n) for n in range(3)},
    "a few favourites in a folder": flat() | {"photos/best/1.JPEG": picture(1)},
    "one class": {name: data for name, data in one_folder().items() if "n01" in name},
    "one class in train and val": {name: data for name, data in image_folder().items() if "n01" in name},
    "images and labels": {f"yolo/{split}/images/{n}.jpg": picture(n) for split in ("train", "val") for n in range(9)},
}


@pytest.mark.parametrize("files", UNLABELLED_LAYOUTS.values(), ids=UNLABELLED_LAYOUTS)
def test_no_labels(files: Files, zipped: Callable[[Files], Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with open_dataset(zipped(files)) as dataset:
        assert not dataset.labelled
        images = chosen(dataset, sizes=(50, 3, 4))
    assert [split for split, _, _ in images] == ["query"] * 3 + ["calibration"] * 4
    assert {name for _, name, _ in images} == {""}
    assert UNLABELLED in caplog.text


def test_few_images_beside_the_classes_are_left_out(zipped: Callable[[Files], Path]) -> None:
    for files, place in ((one_folder(), "photos/"), (image_folder(), "data/train/"), (image_folder(), "data/val/")):
        path = zipped(files | {f"{place}preview.png": picture(1)})
        assert {name for _, name, _ in read(path, sizes=(4, 6, 3))} == set(CLASSES)
        assert f"such as {place}preview.png" in notes(path)


REFUSED = {
    "annotations and folders disagree": (
        by_class(annotations=True) | {ANNOTATIONS: b"val_0.JPEG\tn02\n"},
        [f"{TOP}val/n01/val_0.JPEG lies in the folder n01", "says n02"],
    ),
    "annotations disagree with themselves": (
        official() | {ANNOTATIONS: b"val_0.JPEG\tn02\nval_0.JPEG\tn01\n"},
        ["names 'val_0.JPEG' twice, with the classes n02 and n01"],
    ),
    "no annotations": (
        {name: data for name, data in official().items() if name != ANNOTATIONS},
        [f"no member {ANNOTATIONS}", "Sort them into such folders; or take"],
    ),
    "annotations of other images": (official() | {ANNOTATIONS: b"a.JPEG\tn01\n"}, ["names none of the images"]),
    "annotations without classes": (official() | {ANNOTATIONS: b"val_0.JPEG\n"}, ["the line 'val_0.JPEG'"]),
    "annotations without images": (
        {name: data for name, data in official().items() if "/val/images" not in name},
        [f"it has {ANNOTATIONS}, but no validation images"],
    ),
    "val with other classes": (
        {name.replace("val/n0", "val/m0"): data for name, data in image_folder().items()},
        ["none of the images of data/val/ belongs to one of the 3 classes"],
    ),
    "val and valid": (image_folder() | image_folder(val="valid"), ["not clear which of data/val/, data/valid/"]),
    "two data sets": (image_folder() | image_folder("other/"), ["more than one folder of training images"]),
    "two lists": (official() | {"other/wnids.txt": b"n1\n"}, ["2 members named wnids.txt"]),
    "an empty list": (official() | {WNIDS: b"\n \n"}, ["names no class"]),
    "a list of other classes": (official() | {WNIDS: b"n11\nn12\n"}, ["2 of the 2 classes", "have no train images"]),
    "a list that is no text": (official() | {WNIDS: b"\xff\xfe\x00"}, ["wnids.txt cannot be read"]),
    "no train": (
        {n: d for n, d in official().items() if "/train/" not in n},
        ["there is no folder train/", "Expected is a zip or tar file"],
    ),
    "no images": (
        {"photos/1.HEIC": b"x", "photos/labels.csv": b"x"},
        ["no images", "files with .csv, .heic", "Expected is a zip or tar file"],
    ),
}


@pytest.mark.parametrize(("files", "texts"), REFUSED.values(), ids=REFUSED)
def test_refused(files: Files, texts: list[str], zipped: Callable[[Files], Path]) -> None:
    message = refusal(zipped(files))
    for text in texts:
        assert text in message


def test_120_000_members_are_indexed_quickly(tmp_path: Path) -> None:
    """The size of Tiny ImageNet; counted in processor time, because other processes share the machine."""
    names = [f"n{label:08d}" for label in range(200)]
    files: dict[str, str] = {"wnids.txt": "\n".join(names)}
    files |= {f"train/{name}/images/{name}_{n}.JPEG": "" for name in names for n in range(500)}
    files |= {f"val/images/{name}_{n}.JPEG": "" for name in names for n in range(100)}
    files["val/val_annotations.txt"] = "".join(f"{name}_{n}.JPEG\t{name}\t0\n" for name in names for n in range(100))
    write_zip(tmp_path / "x.zip", files)
    begin = time.process_time()
    with open_dataset(tmp_path / "x.zip") as dataset:
        assert sum(map(len, dataset.train.values())) == 100_000
        assert sum(map(len, dataset.val.values())) == 20_000
    assert time.process_time() - begin < 3
