"""Read a data set's list of classes, and label its validation images by their list or their folders."""

from pathlib import PurePosixPath

from dinoquant.data.containers import Container, UnreadableMemberError, UnusableContainerError
from dinoquant.data.grouping import ANNOTATIONS, CLASS_LIST, Contents, Images, by_class, together


def listed_classes(contents: Contents, member: str, train: Images) -> list[str]:
    """Return the classes of the list ``member`` that have training images, sorted.

    Raises:
        UnusableContainerError: there are none.
    """
    names = [line.split("\t")[0].strip() for line in _lines(contents.container, member)]
    if not names:
        raise UnusableContainerError(f"its {CLASS_LIST} names no class.")
    # Some lists have the class's words beside its name; and some names have blanks.
    listed = {name if name in train or name.split()[0] not in train else name.split()[0] for name in names}
    empty = listed - train.keys()
    if empty == listed:
        count = len(listed)
        raise UnusableContainerError(
            f"{count} of the {count} classes of its {CLASS_LIST} have no train images, such as {min(listed)}."
        )
    contents.note(f"classes of {CLASS_LIST} without training images", empty)
    unlisted = train.keys() - listed
    contents.note(f"classes that {CLASS_LIST} does not list", unlisted)
    contents.note("training images of these", (image.member for name in unlisted for image in train[name]))
    return sorted(listed - empty)


def validation_images(contents: Contents, folder: str, classes: list[str]) -> tuple[Images, str]:
    """Return the labelled validation images below ``folder`` by class, and in words what labels them.

    Raises:
        UnusableContainerError: none can be labelled, or the list and the folders disagree on one.
    """
    by_folder, direct = by_class(contents.images, folder, "val")
    unsorted = direct + (by_folder.pop("images", []) if "images" not in classes else [])
    annotations = folder + ANNOTATIONS
    labels = _labels(contents.container, annotations) if annotations in contents.others else {}
    val: Images = {name: [] for name in classes}
    of_other_classes = []
    for name, members in by_folder.items():
        for image in members:
            label = labels.get(PurePosixPath(image.member).name, name)
            if label != name:
                raise UnusableContainerError(
                    f"{image.member} lies in the folder {name}, but {annotations} says {label}. Remove what is wrong."
                )
        if name in val:
            val[name] += members
        else:
            of_other_classes += [image.member for image in members]
    sorted_keys = {image.key for image in together(val)}
    unlabelled, copies = [], []
    for image in unsorted:
        name = labels.get(image.key.removeprefix("val/images/"), "")
        if not name:
            unlabelled.append(image.member)
        elif image.key in sorted_keys:
            copies.append(image.member)
        elif name in val:
            val[name].append(image)
        else:
            of_other_classes.append(image.member)
    if not any(val.values()):
        raise UnusableContainerError(_no_labels(contents, folder, classes, of_other_classes))
    contents.note("validation images of other classes", of_other_classes)
    contents.note("validation images without a label", unlabelled)
    contents.note("validation images that lie in a class's folder too", copies)
    if labels:
        present = {PurePosixPath(name).name for name in contents.images if name.startswith(folder)}
        contents.note(f"lines of {ANNOTATIONS} whose image is missing", labels.keys() - present)
    return val, ANNOTATIONS if unsorted and labels else "their folders"


def _no_labels(contents: Contents, folder: str, classes: list[str], of_other_classes: list[str]) -> str:
    """Return why not one of the validation images can be used."""
    if of_other_classes:
        return (
            f"none of the images of {folder} belongs to one of the {len(classes):,} classes with training images, such "
            f"as {classes[0]}; {of_other_classes[0]} does not."
        )
    if folder + ANNOTATIONS not in contents.others:
        return (
            f"the images of {folder} have no labels: there is no member {folder}{ANNOTATIONS}, and they do not lie in "
            f"folders named by their class. Sort them into such folders; or take {folder} away, and queries are split "
            "off the training images."
        )
    return f"{folder}{ANNOTATIONS} names none of the images of {folder}; expected are lines of file and class."


def _labels(container: Container, member: str) -> dict[str, str]:
    """Return the class of each annotated image by its name."""
    labels: dict[str, str] = {}
    for line in _lines(container, member):
        name, label = [part.strip() for part in (*(line.split("\t") if "\t" in line else line.split()), "")][:2]
        if not label:
            raise UnusableContainerError(f"{member} has the line {line!r}; expected are file and class, and a tab.")
        if labels.setdefault(name, label) != label:
            raise UnusableContainerError(f"{member} names {name!r} twice, with the classes {labels[name]} and {label}.")
    return labels


def _lines(container: Container, member: str) -> list[str]:
    """Return the lines of a text member that are not empty, without the mark and the blanks that editors add."""
    try:
        content = container.read(member)
        utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except (UnreadableMemberError, UnicodeDecodeError) as error:
        raise UnusableContainerError(f"its member {member} cannot be read ({error}).") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
