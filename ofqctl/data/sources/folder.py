"""Image folders, with a subfolder for each class or with unlabelled images."""

import os
from collections.abc import Iterator
from pathlib import Path

from ofqctl.data.sources.source import ClassNames, Record, Source
from ofqctl.data.sources.splits import SPLIT_NAMES, find_split
from ofqctl.errors import DataError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")


def open_folder(root: Path, split: str | None) -> Source:
    """List an image folder.

    Args:
        root: Folder with a subfolder per class, with images only, or with a subfolder per split.
        split: Subfolder to read, if there are splits.

    Raises:
        DataError: No images, a class without images, an unreadable folder, or a split that is missing,
            unknown or not named.
    """
    folder, notes = _enter_split(root, split)
    class_folders, files = _list(folder)
    loose = [str(folder / name) for name in files if is_image(name)]
    if not class_folders:
        return _flat(folder, loose, notes)
    if loose:
        notes.append(f"{len(loose)} images beside the class folders of {folder} were skipped")
    found = {name: sorted(_images_under(folder / name)) for name in class_folders}
    empty = [name for name, images in found.items() if not images]
    if len(empty) == len(found) and not loose:
        raise _no_images(folder)
    if empty:
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise DataError(
            f"{folder}: class folder '{empty[0]}'{others} holds no images; "
            f"every class folder needs one of {_extensions()}",
            hint="remove the empty folder, or finish unpacking the data",
        )
    records = [Record(path, path, name) for name, images in found.items() for path in images]
    classes = ClassNames(tuple(found), "folders", "sorted by name")
    return Source(str(folder), records, classes, len(found), tuple(notes))


def is_image(name: str) -> bool:
    """Whether a file is an image by its extension, in any case."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def _flat(folder: Path, images: list[str], notes: list[str]) -> Source:
    if not images:
        raise _no_images(folder)
    notes.append(f"{folder} has no class folders: its images are unlabelled")
    return Source(str(folder), [Record(path, path, None) for path in images], None, None, tuple(notes))


def _enter_split(root: Path, split: str | None) -> tuple[Path, list[str]]:
    """The folder below ``root`` to read, and notes on what was assumed."""
    folders, _ = _list(root)
    splits = [name for name in folders if name.lower() in SPLIT_NAMES]
    has_splits = bool(splits) and (len(splits) == len(folders) or len(splits) > 1)
    if split is not None:
        if not splits:
            raise DataError(
                f"{root}: split '{split}' was named, but the folder has no splits such as train/ and val/",
                hint=f"leave out --split, or name the folder itself: --data {root}",
            )
        return root / find_split(split, splits, str(root)), []
    if not has_splits:
        return root, []
    if len(splits) > 1:
        example = next((name for name in splits if name.lower().startswith("val")), splits[0])
        raise DataError(
            f"{root}: this folder holds the splits {', '.join(splits)} and none was named",
            hint=f"--data {root / example}, or --split {example}",
        )
    return root / splits[0], [f"split '{splits[0]}' was chosen, the only one in {root}"]


def _list(folder: Path) -> tuple[list[str], list[str]]:
    """The visible subfolders and files of a folder, each sorted by name."""
    try:
        with os.scandir(folder) as entries:
            visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable(error) from error
    return [name for name, is_dir in visible if is_dir], [name for name, is_dir in visible if not is_dir]


def _images_under(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise _unreadable(error) from error

    for parent, subfolders, files in os.walk(folder, onerror=refuse, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in files:
            if is_image(name) and not name.startswith("."):
                yield os.path.join(parent, name)  # noqa: PTH118 - a Path an image costs minutes on large sets


def _unreadable(error: OSError) -> DataError:
    return DataError(
        f"{error.filename}: the folder cannot be read: {error.strerror}", hint="check its permissions: ls -ld"
    )


def _no_images(folder: Path) -> DataError:
    return DataError(
        f"{folder}: no images found; looked for {_extensions()}",
        hint="--data takes an image folder, a directory with parquet files, hfds/NAME or digits",
    )


def _extensions() -> str:
    return " ".join(extension[1:] for extension in IMAGE_EXTENSIONS)
