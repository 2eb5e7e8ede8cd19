"""Result of a reader: images, objects and classes as the source states them, and their COCO content."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ifkd.core.errors import DataError
from ifkd.data.coco import box_entry
from ifkd.data.readers import source_files as files


@dataclass(frozen=True, slots=True)
class ReaderObject:
    """One labeled object."""

    name: str
    box: tuple[float, float, float, float]
    """x1 y1 x2 y2, pixels."""
    ignore: bool = False
    """Whether it counts neither as object nor as background."""


@dataclass(frozen=True, slots=True)
class ReaderImage:
    """One image."""

    file_name: str
    """Relative to the image folder; the COCO file keeps the name without extension as `source_id`."""
    size: tuple[int, int]
    """(height, width), pixels."""
    objects: tuple[ReaderObject, ...]


@dataclass(frozen=True, slots=True)
class ReaderResult:
    """A data set in another format."""

    folder: Path
    """Image folder."""
    classes: tuple[str, ...]
    """Class names by label."""
    images: tuple[ReaderImage, ...]
    notes: tuple[str, ...] = ()
    """Changes that the conversion makes, for the user."""

    def to_coco(self) -> dict[str, Any]:
        """Return the content of a COCO file; category ids count from 1 in the order of the classes.

        Raises:
            DataError: An object has a class that `classes` does not list.
        """
        category_id = {name: label + 1 for label, name in enumerate(self.classes)}
        unknown = sorted({one.name for image in self.images for one in image.objects} - category_id.keys())
        if unknown:
            raise DataError(
                "The annotations name classes that are not among the given ones",
                got=", ".join(map(repr, unknown[:10])),
                expected=f"some of {', '.join(self.classes)}",
            )
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, image in enumerate(self.images, start=1):
            height, width = image.size
            names = {"id": image_id, "source_id": Path(image.file_name).stem, "file_name": image.file_name}
            images.append({**names, "height": height, "width": width})
            for one in image.objects:
                ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id[one.name]}
                annotations.append({**ids, **box_entry(one.box, ignore=one.ignore)})
        categories = [{"id": number, "name": name} for name, number in category_id.items()]
        return {"images": images, "annotations": annotations, "categories": categories}


def read_images(
    images: Path, labels: Path, objects_of: Callable[[Path, tuple[int, int]], Iterator[ReaderObject]]
) -> tuple[ReaderImage, ...]:
    """Return the images of a folder; `objects_of` reads a label file, given with the (height, width) of its image."""
    found = []
    for stem, path in files.images_by_stem(images).items():
        size, label_file = files.image_size(path), labels / f"{stem}.txt"
        objects = tuple(objects_of(label_file, size)) if label_file.is_file() else ()
        found.append(ReaderImage(path.name, size, objects))
    return tuple(found)
