"""Read the output folder of `ifkd detect` for a report."""

import base64
import io
from pathlib import Path
from typing import Literal

from PIL import Image

from deploy.scene.write.file_names import QUICKLOOK_DETAIL_FILE, QUICKLOOK_FILE
from deploy.scene.write.run_record import RunRecord, read_run_record
from ifkd.core.config import Schema
from ifkd.core.errors import DataError

MAX_PICTURE_PX = 1600
MAX_PNG_BYTES = 600_000
JPEG_QUALITY = 86


class ReportPicture(Schema):
    """An image file in a report."""

    name: str
    media_type: Literal["image/png", "image/jpeg"]
    data_base64: str
    width_px: int
    height_px: int
    alt: str
    """Alternative text."""


class ReportedScene(Schema):
    """One run of `ifkd detect`."""

    folder: str
    run: RunRecord
    pictures: tuple[ReportPicture, ...]
    files: tuple[str, ...]
    """Paths of the written files."""


def read_scene_run(folder: Path) -> ReportedScene:
    """Read the output folder of `ifkd detect`.

    Raises:
        DataError: run.json is absent or invalid, or a picture cannot be read.
    """
    run = read_run_record(folder)
    name = run.scene.name
    whole = f"The scene {name} with {run.objects} detected objects outlined in the colors of their classes"
    detail = f"The part of {name} with the most objects, enlarged, with outlines and class names"
    words = {folder / QUICKLOOK_FILE: whole, folder / QUICKLOOK_DETAIL_FILE: detail}
    pictures = tuple(read_picture(path, alt=alt) for path, alt in words.items() if path.is_file())
    files = tuple(str(folder / file) for file in run.files if (folder / file).is_file())
    return ReportedScene(folder=str(folder), run=run, pictures=pictures, files=files)


def read_picture(path: Path, *, alt: str) -> ReportPicture:
    """Read an image file; a large one is reduced and converted to JPEG, which limits the size of the page.

    Raises:
        DataError: The file is not an image.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            media: Literal["image/png", "image/jpeg"] = "image/png"
            if len(content) > MAX_PNG_BYTES or max(image.size) > MAX_PICTURE_PX or image.format != "PNG":
                image.thumbnail((MAX_PICTURE_PX, MAX_PICTURE_PX), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                image.convert("RGB").save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
                content, media = stream.getvalue(), "image/jpeg"
            width, height = image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not a readable image ({error})") from error
    data = base64.b64encode(content).decode("ascii")
    return ReportPicture(name=path.name, media_type=media, data_base64=data, width_px=width, height_px=height, alt=alt)
