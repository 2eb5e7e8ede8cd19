"""Scene lists: paths, URLs, globs, text lists and STAC items become scenes with unique names."""

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

from deploy.scene.read.acquisition_time import AcquisitionTime, item_time, time_beside
from ifkd.core.errors import DataError, SceneError, UsageError
from ifkd.core.files import existing_path, folded, read_json, read_text, require_unicode, shortened
from ifkd.imagery.address import RasterAddress, is_address, parse_source

IMAGE_TYPES = ("image/tiff", "image/jp2", "image/png", "image/jpeg", "image/vnd.stac.geotiff")
"""STAC media types of rasters, without the parameters after a semicolon."""
LIST_FORMAT = "one path or URL per line, optionally followed by a tab and the scene's name"

MAX_NAME_BYTES = 200
"""Longest name of a folder for results, UTF-8; file systems allow 255 bytes."""


@dataclass(frozen=True, slots=True)
class SceneSource:
    """A scene of a run."""

    name: str
    """Unique name, which is also the name of the folder for the results."""
    location: Path | RasterAddress
    origin: str
    """Argument or file that lists the scene, for messages."""
    time: AcquisitionTime | None = None
    """Time that a STAC item states."""


def is_single(arguments: Sequence[str]) -> bool:
    """Return whether the arguments are one path or URL of a scene."""
    return len(arguments) == 1 and _kind(arguments[0]) == "scene"


def read_sources(arguments: Sequence[str], *, asset: str | None = None) -> tuple[SceneSource, ...]:
    """Return the scenes of the command's arguments, in their order.

    Args:
        arguments: Paths, URLs (s3://, https://, /vsi...), globs, text lists (`@list` or `.txt`), STAC items and item
            collections (`.json`, `.geojson`).
        asset: Asset of STAC items with several images.

    Raises:
        DataError: A list or a STAC file is invalid, also an item beside a scene.
        UsageError: There is no scene, or two scenes have the same name.
    """
    sources = [source for argument in arguments for source in _sources(argument, asset)]
    if not sources:
        raise UsageError("There are no scenes", got=" ".join(arguments) or "nothing", expected="at least one")
    _require_unique_names(sources)
    return tuple(source if source.time else replace(source, time=time_beside(source.location)) for source in sources)


def _sources(argument: str, asset: str | None) -> Iterator[SceneSource]:
    match _kind(argument):
        case "list":
            yield from _read_list(Path(argument.removeprefix("@")))
        case "stac":
            yield from _read_stac(Path(argument), asset)
        case "glob":
            if is_address(argument):
                hint = "List the scenes in a text file."
                raise UsageError("A glob finds only files of this machine", got=argument, hint=hint)
            found = sorted(path for path in map(Path, glob.glob(argument, recursive=True)) if path.is_file())  # noqa: PTH207 - the pattern may be absolute
            if not found:
                raise UsageError("No scene matches the pattern", got=argument, hint="Check the path.")
            yield from (SceneSource(_name(path), path, argument) for path in found)
        case _:
            location = parse_source(argument)
            yield SceneSource(_name(location), location, "the command line")


def _read_list(path: Path) -> Iterator[SceneSource]:
    text = read_text(path, what="list of scenes", hint=f"Make it a text file in UTF-8 with {LIST_FORMAT}.")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        reference, *rest = (part.strip() for part in line.split("\t"))
        if len(rest) > 1 or not reference:
            raise DataError(f"{path}, line {number}, is not a scene", got=line, expected=LIST_FORMAT)
        location = _resolve(reference, path, f"line {number}")
        yield SceneSource(_checked_name(rest[0], path) if rest and rest[0] else _name(location), location, str(path))


def _read_stac(path: Path, asset: str | None) -> Iterator[SceneSource]:
    content = read_json(path, what="STAC file", hint="Name a STAC item or an item collection.")
    kind = content.get("type") if isinstance(content, dict) else None
    items = content.get("features") if kind == "FeatureCollection" else [content]
    if kind not in ("Feature", "FeatureCollection") or not isinstance(items, list):
        expected = "type FeatureCollection with features, or one Feature"
        raise DataError(f"{path} is not a STAC item collection", got=f"type {kind!r}", expected=expected)
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("id"), str) or not _assets(item):
            expected = "an object with an id, and assets with an href"
            raise DataError(f"{path}: feature {number} is not a STAC item", expected=expected)
        name = _checked_name(item["id"], path)
        try:
            location = _resolve(_href(item, asset, path), path, f"item {name}")
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{path}: item {name} is malformed ({error})", expected="a STAC item") from error
        yield SceneSource(name, location, str(path), item_time(item, path))


def _href(item: dict[str, Any], asset: str | None, path: Path) -> str:
    """Return the href of an item's image: the given asset, the only image, or the only image with the role `data`."""
    assets, entry = _assets(item), f"{path}: item {item['id']}"
    if asset is not None and asset not in assets:
        raise DataError(f"{entry} has no asset {asset}", expected=f"one of {', '.join(sorted(assets))}")
    images = [name for name, one in assets.items() if str(one.get("type", "")).split(";")[0] in IMAGE_TYPES]
    data = [name for name in images if "data" in (assets[name].get("roles") or ())]
    chosen = asset or next((names[0] for names in (images, data) if len(names) == 1), None)
    if chosen is None:
        found = ", ".join(f"{name} ({one.get('type', 'no type')})" for name, one in assets.items())
        hint = "Choose the asset with --asset."
        raise DataError(f"{entry} does not have exactly one image", got=found, hint=hint)
    href = str(assets[chosen]["href"])
    base = next((str(link.get("href", "")) for link in item.get("links") or () if link.get("rel") == "self"), "")
    return urljoin(base, href) if urlsplit(base).scheme in {"http", "https"} else href


def _assets(item: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assets = item.get("assets")
    if not isinstance(assets, dict):
        return {}
    return {name: one for name, one in assets.items() if isinstance(one, dict) and isinstance(one.get("href"), str)}


def _resolve(reference: str, listing: Path, entry: str) -> Path | RasterAddress:
    """Return the location of a scene in a list; paths are relative to the list."""
    try:
        location = parse_source(reference, listing.parent)
    except SceneError as error:
        raise DataError(f"{listing}, {entry}: {error}") from error
    return existing_path(listing.parent, str(location)) if isinstance(location, Path) else location


def _require_unique_names(sources: Sequence[SceneSource]) -> None:
    first: dict[str, SceneSource] = {}
    for source in sources:
        require_unicode(str(source.location), UsageError)
        other = first.setdefault(folded(source.name), source)
        if other is not source:
            raise UsageError(
                f"Two scenes have the name {source.name}, so their results would have the same folder",
                got=f"{other.location} ({other.origin}) and {source.location} ({source.origin})",
                hint=f"Remove one, or set unique names in a text list: {LIST_FORMAT}.",
            )


def _name(location: Path | RasterAddress) -> str:
    return shortened(PurePosixPath(location.name).stem.lstrip("."), MAX_NAME_BYTES) or "scene"


def _checked_name(name: str, source: Path) -> str:
    if (
        re.search(r"[/\\\x00-\x1f\ud800-\udc7f\udd00-\udfff]", name)
        or not name
        or name.startswith(".")
        or len(name.encode()) > MAX_NAME_BYTES
    ):
        expected = (
            f"a name of at most {MAX_NAME_BYTES} bytes, not empty, without slashes, that does not start with a dot"
        )
        raise DataError(f"{source}: a scene's name must be a valid folder name", got=repr(name), expected=expected)
    return name


def _kind(argument: str) -> Literal["list", "stac", "glob", "scene"]:
    """Return the kind of an argument; an existing file with the characters of a glob in its name is a scene."""
    remote = is_address(argument)
    if argument.startswith("@") or (argument.lower().endswith(".txt") and not remote):
        return "list"
    if argument.lower().endswith((".json", ".geojson")) and not remote:
        return "stac"
    pattern = argument.split("?", 1)[0] if remote else argument
    return "glob" if glob.has_magic(pattern) and (remote or not Path(argument).exists()) else "scene"
