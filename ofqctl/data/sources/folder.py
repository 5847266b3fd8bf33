"""Image folders, with a subfolder for each class or with unlabelled images."""

from pathlib import Path

from ofqctl.data.sources.classes import classes_by_name
from ofqctl.data.sources.files import PassedOver, images_under, listed
from ofqctl.data.sources.source import Record, Source
from ofqctl.data.sources.splits import SPLIT_NAMES, choose_split, find_split
from ofqctl.data.spec import Purpose
from ofqctl.errors import DataError

_USUAL = "jpg jpeg png webp bmp ppm tif tiff gif"


def open_folder(root: Path, split: str | None, purpose: Purpose) -> Source:
    """List an image folder.

    Args:
        root: Folder with a subfolder per class, with images only, or with a subfolder per split.
        split: Subfolder to read, if there are splits.
        purpose: What it is opened for.

    Raises:
        DataError: No images, a class without images, an unreadable folder, or a split that is missing,
            unknown or not named.
    """
    folder, notes = _enter_split(root, split, purpose)
    class_folders, files = listed(folder)
    passed = PassedOver()
    if not class_folders:
        return _flat(folder, [str(folder / name) for name in files if passed.keeps(name)], passed, notes)
    loose = [name for name in files if PassedOver().keeps(name)]
    if loose:
        notes.append(f"{len(loose)} images beside the class folders of {folder} were skipped")
    found = {name: sorted(images_under(folder / name, passed)) for name in class_folders}
    empty = [name for name, images in found.items() if not images]
    if len(empty) == len(found) and not loose:
        raise _no_images(folder)
    if empty:
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"{folder}: class folder '{empty[0]}'{others} holds no images; every class folder needs one: {_USUAL}, "
            "or what else Pillow reads",
            hint="remove the empty folder, or finish unpacking the data",
        )
    records = [Record(path, path, name) for name, images in found.items() for path in images]
    classes = classes_by_name(found, "folders")
    return Source(str(folder), records, classes, len(found), (*notes, *passed.notes(folder)))


def _flat(folder: Path, images: list[str], passed: PassedOver, notes: list[str]) -> Source:
    if not images:
        raise _no_images(folder)
    records = [Record(path, path, None) for path in images]
    unlabelled = f"{folder} has no class folders: its images are unlabelled"
    return Source(str(folder), records, None, None, (*notes, *passed.notes(folder)), unlabelled=unlabelled)


def _enter_split(root: Path, split: str | None, purpose: Purpose) -> tuple[Path, list[str]]:
    """The folder below ``root`` to read, and notes on what was assumed."""
    folders, _ = listed(root)
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    if split is not None:
        if not splits:
            raise DataError(
                f"{root}: split '{split}' was named, but the folder has no splits such as train/ and val/",
                hint=f"leave out --split, or name the folder itself: --data {root}",
            )
        return root / find_split(split, splits, str(root)), []
    if not _are_splits(root, splits, folders):
        return root, []
    if purpose == "evaluate" and len(splits) > 1:
        example = next((name for name in splits if name.lower().startswith("val")), splits[0])
        raise DataError(
            f"{root}: this folder holds the splits {', '.join(splits)} and none was named",
            hint=f"--data {root / example}, or --split {example}",
        )
    chosen, note = choose_split(splits, purpose, str(root))
    return root / chosen, [note] if note else []


def _are_splits(root: Path, splits: list[str], folders: list[str]) -> bool:
    """Whether the folders that are called like splits are splits, and not classes such as VOC's 'train'.

    They are if no folder is called otherwise, or if they hold class folders and the others do not.
    """
    if not splits or len(splits) == len(folders):
        return bool(splits)
    if not all(listed(root / name)[0] for name in splits):
        return False
    return len(splits) > 1 or not any(listed(root / name)[0] for name in folders if name not in splits)


def _no_images(folder: Path) -> DataError:
    return DataError(
        f"{folder}: no images found; looked for {_USUAL} and what else Pillow reads",
        hint="--data takes an image folder, a directory with parquet files, hfds/NAME or digits",
    )
