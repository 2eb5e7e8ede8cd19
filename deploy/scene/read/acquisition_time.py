"""Acquisition time of a scene: stated by the user, by a STAC item or by the file."""

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ifkd.core.errors import DataError, UsageError
from ifkd.core.files import read_json
from ifkd.imagery.address import RasterAddress

EXAMPLE = "a date and a time, such as 2026-05-01T10:20:30Z"
MAX_INTERVAL = timedelta(hours=1)
"""Longest interval whose middle counts as the time of a scene."""
TIFF_TAG = "TIFFTAG_DATETIME"


@dataclass(frozen=True, slots=True)
class AcquisitionTime:
    """Time at which a scene was acquired."""

    utc: datetime
    """In UTC, to the millisecond."""
    source: str
    """What states the time."""

    def __str__(self) -> str:
        """Return the time by RFC 3339."""
        text = self.utc.isoformat(timespec="milliseconds" if self.utc.microsecond else "seconds")
        return text.replace("+00:00", "Z")


def stated_time(text: str) -> AcquisitionTime:
    """Return the time that the user states; without an offset, it is taken for UTC.

    Raises:
        UsageError: The text is not a date and a time.
    """
    try:
        return AcquisitionTime(_parsed(text), "the user")
    except (OverflowError, ValueError) as error:
        raise UsageError("The time of the scene is not a time", got=text, expected=EXAMPLE) from error


def item_time(item: dict[str, Any], path: Path) -> AcquisitionTime | None:
    """Return the `datetime` of a STAC item in the file `path`, or the middle of its start and end; None without them.

    An interval of more than an hour gives no time.

    Raises:
        DataError: A time is invalid.
    """
    properties = item.get("properties")
    stated = properties if isinstance(properties, dict) else {}
    moment, start, end = (_stated(stated, name, path) for name in ("datetime", "start_datetime", "end_datetime"))
    if moment is not None:
        return AcquisitionTime(moment, f"datetime of {path.name}")
    if start is None or end is None or not timedelta(0) <= end - start <= MAX_INTERVAL:
        return None
    middle = _to_millisecond(start + (end - start) / 2)
    return AcquisitionTime(middle, f"middle of start_datetime and end_datetime of {path.name}")


def time_beside(scene: Path | RasterAddress) -> AcquisitionTime | None:
    """Return the time of the STAC item beside a local scene, `SCENE.stac.json` or `SCENE.json`; None without one.

    Raises:
        DataError: `SCENE.stac.json` is not a STAC item, or a time is invalid.
    """
    if isinstance(scene, RasterAddress) or not scene.name:
        return None
    for suffix in (".stac.json", ".json"):
        path = scene.with_name(scene.stem + suffix)
        if not os.path.isfile(path):  # noqa: PTH113 - pathlib fails for a name that is too long
            continue
        item = _item(path, required=suffix == ".stac.json")
        if item is not None:
            return item_time(item, path)
    return None


def tag_time(tags: dict[str, str]) -> AcquisitionTime | str | None:
    """Return the time of a file's tags, which has no zone and is taken for UTC; or the tag, if it is not a time."""
    text = tags.get(TIFF_TAG)
    if text is None:
        return None
    try:
        return AcquisitionTime(datetime.strptime(text.strip(), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC), TIFF_TAG)
    except ValueError:
        return text


def _item(path: Path, *, required: bool) -> dict[str, Any] | None:
    """Return the content of a STAC item; None if it is another file, such as labels, and not required to be one."""
    try:
        content = read_json(path, what="STAC item")
    except DataError:
        if required:
            raise
        return None
    if isinstance(content, dict) and content.get("type") == "Feature" and "stac_version" in content:
        return content
    if required:
        raise DataError(f"{path} is not a STAC item", expected="an object of type Feature with a stac_version")
    return None


def _stated(properties: dict[str, Any], name: str, path: Path) -> datetime | None:
    value = properties.get(name)
    if value is None:
        return None
    try:
        return _parsed(value)
    except (OverflowError, TypeError, ValueError) as error:
        problem = f"{path}: the {name} of the STAC item is not a time"
        raise DataError(problem, got=repr(value), expected=EXAMPLE) from error


def _parsed(text: str) -> datetime:
    """Return a time by RFC 3339 in UTC; other forms of ISO 8601, such as a date alone, raise a ValueError."""
    if re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d", text) is None:
        raise ValueError(text)
    moment = datetime.fromisoformat(text.upper())
    return _to_millisecond(moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC))


def _to_millisecond(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
