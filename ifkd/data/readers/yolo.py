"""YOLO data sets: one text file per image, with boxes or polygons relative to the image size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from ifkd.core.errors import DataError
from ifkd.core.files import read_text
from ifkd.data.label_values import integer, number
from ifkd.data.readers import source_files as files
from ifkd.data.readers.pairing import FilePair, pair_files
from ifkd.data.readers.reader_result import (
    LabelFile,
    ReaderObject,
    ReaderResult,
    SourceReader,
    enclosing_box,
)

CLASS_FILES = ("classes.txt", "obj.names", "data/obj.names", "labels/classes.txt", "images/classes.txt")
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Name of a split -> its key in data.yaml."""


@dataclass(frozen=True, slots=True)
class DataYaml:
    """Content of a data.yaml."""

    names: tuple[str, ...]
    """Class names by label."""
    sources: dict[str, list[object]]
    """Split -> image folders and lists of images, as stated."""
    base: Path
    """Folder that they are relative to."""
    has_keypoints: bool
    """Whether lines have key points after the box."""


def read_yolo(root: Path, *, split: str | None = None, classes: Sequence[str] | None = None) -> ReaderResult:
    """Read a YOLO data set, given by its folder or its data.yaml.

    Class names are by default those of data.yaml, else the lines of the first existing file of `CLASS_FILES`. Polygons
    become the corners of their smallest rectangle.
    """
    path = root if root.is_file() else next((root / name for name in _yaml_names(root)), None)
    data = None if path is None else _read_yaml(path)
    root = root.parent if root.is_file() else root
    if data is not None and data.sources:
        folder, pairs = root, _pairs(root, data, split)
    else:
        folder, folders = files.image_and_label_folders(root, ("labels",), split)
        pairs = [pair for images, labels in folders for pair in pair_files(images, labels, ".txt")]
    names = tuple(classes) if classes is not None else _class_names(root) if data is None else data.names
    keypoints = data is not None and data.has_keypoints
    reader = SourceReader(folder, _parse, lambda words, size: _object(words[:5] if keypoints else words, size, names))
    reader.add(pairs)
    return reader.result(names)


def _yaml_names(root: Path) -> list[str]:
    found = sorted(path.name for path in root.glob("*.y*ml") if path.suffix in {".yaml", ".yml"})
    return [name for name in ("data.yaml", "data.yml", "dataset.yaml") if name in found] or found[:1]


def _read_yaml(path: Path) -> DataYaml:
    try:
        content = yaml.load(read_text(path), Loader=yaml.BaseLoader)  # noqa: S506 - makes only text, lists and dicts
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a data.yaml", expected="keys `names`, `train`, `val`, `test`")
    stated = content.get("names")
    by_label = dict(enumerate(stated)) if isinstance(stated, list) else stated if isinstance(stated, dict) else {}
    names = {integer(label): name for label, name in by_label.items() if isinstance(name, str) and name.strip()}
    if not names or set(names) != set(range(len(by_label))):
        raise DataError(f"{path} has no valid class names", expected="`names`, a list, or names by label from 0")
    if "nc" in content and integer(content["nc"]) != len(names):
        raise DataError(f"{path} has {len(names)} names", got=f"nc: {content['nc']}", expected=f"nc: {len(names)}")
    base = path.parent / content["path"] if isinstance(content.get("path"), str) else path.parent
    stated = {key: content[key] for key in SPLITS if content.get(key)}
    sources = {key: entry if isinstance(entry, list) else [entry] for key, entry in stated.items()}
    return DataYaml(tuple(names[label] for label in range(len(names))), sources, base, "kpt_shape" in content)


def _source(root: Path, base: Path, entry: object) -> Path | None:
    """Return the path inside `root` that an entry means, None if there is none.

    Roboflow's `../train/images` is `train/images`.
    """
    text = str(entry).replace("\\", "/")
    for path in (base / text, root / text, root / text.removeprefix("../")):
        if "\0" not in text and path.exists() and path.resolve().is_relative_to(root.resolve()):
            return root / path.resolve().relative_to(root.resolve())
    return None


def _pairs(root: Path, data: DataYaml, split: str | None) -> list[FilePair]:
    """Return the images and label files of a split, or of all."""
    keys = [key for key in data.sources if split is None or SPLITS[key] == SPLITS.get(split)]
    if not keys:
        raise DataError(f"{root} has no split {split}", expected=f"one of {', '.join(data.sources)}")
    pairs: dict[Path, list[FilePair]] = {}
    for entry in (entry for key in keys for entry in data.sources[key]):
        source = _source(root, data.base, entry)
        if source is None:
            hint = (
                "Put data.yaml into the folder of the data set, name its folders relative to it, or choose a --split."
            )
            problem = f"data.yaml names an image folder that is not inside {root}"
            raise DataError(problem, got=repr(entry), hint=hint)
        if source.is_dir():
            pairs[source] = pair_files(source, _labels_of(root, source), ".txt")
            continue
        for line in files.read_lines(source):
            image = _source(root, data.base, line)
            labels = _labels_of(root, image or root / Path(line).name).with_suffix(".txt")
            found = [image] if image else []
            pairs[image or root / line] = [FilePair(line, found, [labels] if labels.is_file() else [])]
    return [pair for some in pairs.values() for pair in some]


def _labels_of(root: Path, images: Path) -> Path:
    """Return the folder or file of labels that belongs to images: `labels` for the last `images` of the path."""
    parts = images.relative_to(root).parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        parts = (*parts[:last], "labels", *parts[last + 1 :])
    return root.joinpath(*parts)


def _class_names(root: Path) -> tuple[str, ...]:
    for name in CLASS_FILES:
        if (root / name).is_file():
            return files.read_class_names(root / name)
    raise DataError(
        f"{root} has no class names",
        expected="data.yaml, or classes.txt or obj.names with one name a line",
        hint="Write the file, or give --classes FILE.",
    )


def _parse(path: Path) -> LabelFile:
    return LabelFile(tuple((place, line.split()) for place, line in files.read_numbered_lines(path)))


def _object(words: Sequence[str], size: tuple[int, int], names: Sequence[str]) -> ReaderObject | str:
    """Return the object of a line, or the reason why it is left out.

    A line is `class x y width height`, perhaps with a score, or `class x1 y1 x2 y2 x3 y3 …`. A sixth value that cannot
    be a score, such as an angle in radians or degrees, is another format.
    """
    values = [value for word in words[1:] if (value := number(word)) is not None]
    is_polygon = len(words) >= 7 and len(words) % 2 == 1
    if len(values) < len(words) - 1 or (len(words) not in {5, 6} and not is_polygon):
        return "annotations_malformed"
    if not is_polygon and any(not 0 <= score <= 1 for score in values[4:]):
        return "annotations_malformed"
    label = integer(words[0])
    if label is None and words[0] in names:
        label = names.index(words[0])
    if label is None or not 0 <= label < len(names):
        return "classes_unknown"
    height, width = size
    if is_polygon:
        points = [value * (width, height)[index % 2] for index, value in enumerate(values)]
        return ReaderObject(names[label], enclosing_box(points), polygon=tuple(points))
    x, y, w, h = values[:4]
    box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
    return ReaderObject(names[label], box)
