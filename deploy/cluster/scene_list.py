"""The scenes of a run: paths and addresses, globs, text lists, and STAC items, each under a name of its own."""

import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit

from ifkd.core.errors import DataError, SceneError, UsageError
from ifkd.imagery.raster import ADDRESS_ROOTS, RasterAddress, located

IMAGE_TYPES = ("image/tiff", "image/jp2", "image/png", "image/jpeg", "image/vnd.stac.geotiff")
"""Media types of rasters, as STAC names them; what follows a semicolon does not matter."""
LIST_FORM = "one path or address a line, if wanted followed by a tab and the scene's name"


@dataclass(frozen=True, slots=True)
class SceneSource:
    """A scene to be looked at."""

    name: str
    """Unique in its run; that of the folder for its results."""
    place: Path | RasterAddress
    origin: str
    """Where the run heard of it, for messages."""


def is_single(arguments: Sequence[str]) -> bool:
    """Return whether a command line names just one scene, by its path or address."""
    return (
        len(arguments) == 1
        and not _is_list(arguments[0])
        and not _is_stac(arguments[0])
        and not _is_pattern(arguments[0])
    )


def read_sources(arguments: Sequence[str], *, asset: str | None = None) -> tuple[SceneSource, ...]:
    """Return the scenes that a command line names, in its order.

    Args:
        arguments: Paths, addresses (s3://, https://, /vsi...), globs, text lists (`@list` or `.txt`), STAC items and
            item collections (`.json`, `.geojson`).
        asset: Which asset of STAC items to take, where they have several images.

    Raises:
        DataError: A list or a STAC file does not hold.
        UsageError: There is no scene, or two have the same name.
    """
    sources = [source for argument in arguments for source in _sources(argument, asset)]
    if not sources:
        raise UsageError("There are no scenes", got=" ".join(arguments) or "nothing", expected="at least one")
    _require_own_names(sources)
    return tuple(sources)


def _sources(argument: str, asset: str | None) -> Iterator[SceneSource]:
    if _is_list(argument):
        yield from _listed(Path(argument.removeprefix("@")))
    elif _is_stac(argument):
        yield from _stac_items(Path(argument), asset)
    elif _is_pattern(argument):
        if _scheme(argument) is not None:
            raise UsageError(
                "Globs find files of this machine only", got=argument, hint="Name the scenes in a text list."
            )
        found = sorted(path for path in map(Path, glob.glob(argument, recursive=True)) if path.is_file())  # noqa: PTH207 - the pattern may be absolute
        if not found:
            raise UsageError("There are no scenes of this pattern", got=argument, hint="Check the path.")
        yield from (SceneSource(_name(path), path, argument) for path in found)
    else:
        place = located(argument)
        yield SceneSource(_name(place), place, "the command line")


def _listed(path: Path) -> Iterator[SceneSource]:
    text = _text(path, "list of scenes", hint=f"Make it a text file with {LIST_FORM}.")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where, *rest = (part.strip() for part in line.split("\t"))
        if len(rest) > 1 or not where:
            raise DataError(f"{path}, line {number}, names no scene", got=line, expected=LIST_FORM)
        place = _placed(where, path, f"line {number}")
        yield SceneSource(_checked_name(rest[0], path) if rest and rest[0] else _name(place), place, str(path))


def _stac_items(path: Path, asset: str | None) -> Iterator[SceneSource]:
    try:
        content = json.loads(_text(path, "STAC file"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})", expected="a STAC item or item collection") from error
    kind = content.get("type") if isinstance(content, dict) else None
    items = content.get("features") if kind == "FeatureCollection" else [content]
    if kind not in {"Feature", "FeatureCollection"} or not isinstance(items, list):
        raise DataError(
            f"{path} is no STAC item collection",
            got=f"type {kind!r}",
            expected="type FeatureCollection with features, or one Feature",
        )
    for number, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("id"), str) or not _assets(item):
            raise DataError(
                f"{path}: feature {number} is no STAC item", expected="an object with id, and assets with their href"
            )
        name = _checked_name(item["id"], path)
        yield SceneSource(name, _placed(_href(item, asset, path), path, f"item {name}"), str(path))


def _href(item: dict[str, Any], asset: str | None, path: Path) -> str:
    """Return where the image of an item lies: the asset asked for, the only image, or the only one of the role data."""
    assets = _assets(item)
    if asset is not None:
        if asset not in assets:
            raise DataError(
                f"{path}: item {item['id']} has no asset {asset}", expected=f"one of {', '.join(sorted(assets))}"
            )
        chosen = asset
    else:
        images = [name for name, one in assets.items() if str(one.get("type", "")).split(";")[0] in IMAGE_TYPES]
        data = [name for name in images if "data" in (assets[name].get("roles") or ())]
        only = next((names for names in (images, data) if len(names) == 1), None)
        if only is None:
            raise DataError(
                f"{path}: item {item['id']} has not just one image to look at",
                got=", ".join(f"{name} ({one.get('type', 'no type')})" for name, one in assets.items()),
                hint="Name the asset with --asset.",
            )
        chosen = only[0]
    href = str(assets[chosen]["href"])
    own = next((str(link.get("href", "")) for link in item.get("links") or () if link.get("rel") == "self"), "")
    return urljoin(own, href) if urlsplit(own).scheme in {"http", "https"} else href


def _assets(item: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assets = item.get("assets")
    if not isinstance(assets, dict):
        return {}
    return {name: one for name, one in assets.items() if isinstance(one, dict) and isinstance(one.get("href"), str)}


def _placed(where: str, listing: Path, entry: str) -> Path | RasterAddress:
    """Return a place that a list names; paths are relative to the list."""
    try:
        place = located(where)
    except SceneError as error:
        raise DataError(f"{listing}, {entry}: {error}") from error
    return listing.parent / place if isinstance(place, Path) else place


def _require_own_names(sources: Sequence[SceneSource]) -> None:
    first: dict[str, SceneSource] = {}
    for source in sources:
        other = first.setdefault(source.name.casefold(), source)  # some file systems know no case
        if other is not source:
            raise UsageError(
                f"Two scenes have the name {source.name}, which their results would share",
                got=f"{other.place} ({other.origin}) and {source.place} ({source.origin})",
                hint=f"Leave one out, or give names of their own in a text list: {LIST_FORM}.",
            )


def _name(place: Path | RasterAddress) -> str:
    return PurePosixPath(place.name).stem or "scene"


def _checked_name(name: str, source: Path) -> str:
    if re.search(r"[/\\\x00-\x1f]", name) or name.startswith("."):
        raise DataError(
            f"{source}: a scene's name is that of a folder",
            got=repr(name),
            expected="one without slashes that begins with no dot",
        )
    return name


def _text(path: Path, what: str, *, hint: str | None = None) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"There is no {what} {path}", hint="Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The {what} {path} cannot be read ({error})", hint=hint) from error


def _is_list(argument: str) -> bool:
    return argument.startswith("@") or (argument.endswith(".txt") and _scheme(argument) is None)


def _is_stac(argument: str) -> bool:
    return argument.endswith((".json", ".geojson")) and _scheme(argument) is None


def _is_pattern(argument: str) -> bool:
    """Return whether an argument is a pattern; a file of that very name is none."""
    query_free = argument.split("?", 1)[0] if _scheme(argument) else argument
    return glob.has_magic(query_free) and not (_scheme(argument) is None and Path(argument).exists())


def _scheme(argument: str) -> str | None:
    return next((scheme for scheme in (*ADDRESS_ROOTS, "/vsi") if argument.startswith(scheme)), None)
