"""report.json: everything measured of one detector's way to deployment, in one file that needs no other."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from deploy.accuracy.evaluation import Evaluation
from deploy.accuracy.provenance import now
from deploy.bench.bench import Bench
from deploy.parity.parity import Parity
from deploy.report.verdict import Verdict, reach_verdict
from ifkd import __version__
from ifkd.core.config import Schema
from ifkd.core.errors import DataError

RUN_NAME = "run.json"
PICTURES = {"quicklook.png": "overview", "quicklook_detail.png": "detail"}
LARGEST_PICTURE_PX = 1600
LARGEST_PNG_BYTES = 600_000
JPEG_QUALITY = 86


class ReportPicture(Schema):
    """An image file inside the report."""

    name: str
    media_type: Literal["image/png", "image/jpeg"]
    data_base64: str
    width_px: int
    height_px: int
    alt: str
    """What it shows, for those who cannot see it."""


class ReportedScene(Schema):
    """One run of `ifkd detect`."""

    folder: str
    run: dict[str, Any]
    """run.json as it was written: engine, scene, settings, tiles, objects, seconds by stage."""
    pictures: tuple[ReportPicture, ...]
    files: tuple[str, ...]
    """Paths of the files that were written."""

    @property
    def name(self) -> str:
        """The scene's file name."""
        return str(self._part("scene").get("name", Path(self.folder).name))

    @property
    def objects(self) -> int | None:
        """How many objects were found."""
        count = self.run.get("objects")
        return count if isinstance(count, int) else None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""
        return {stage: float(value) for stage, value in self._part("seconds").items()}

    def _part(self, key: str) -> dict[str, Any]:
        part = self.run.get(key)
        return part if isinstance(part, dict) else {}


class Report(Schema):
    """The result of `ifkd report`."""

    schema_version: Literal[1] = 1
    kind: Literal["report"] = "report"
    title: str
    created: str
    """UTC, ISO 8601."""
    producer: str
    verdict: Verdict
    notes: tuple[str, ...]
    """What a reader must know to read the figures rightly."""
    evaluations: dict[str, Evaluation]
    """By the name the table shows."""
    benches: tuple[Bench, ...]
    parities: tuple[Parity, ...]
    scenes: tuple[ReportedScene, ...]
    environment: dict[str, Any]
    """Of the measurements of latency; of the report itself when there are none."""


def assemble(
    *,
    title: str,
    evaluations: Mapping[str, Evaluation],
    benches: Sequence[Bench] = (),
    parities: Sequence[Parity] = (),
    scenes: Sequence[ReportedScene] = (),
    notes: Sequence[str] = (),
    environment: Mapping[str, Any] | None = None,
) -> Report:
    """Return a report with its verdict; every part may be missing, and then the report does without."""
    provenances = [one.subject.provenance for one in evaluations.values()]
    provenances += [bench.bundle.provenance for bench in benches]
    provenances += [parity.bundle.provenance for parity in parities]
    remarks = [cell.remark for bench in benches for cell in bench.cells if cell.remark]
    measured = next((bench.environment for bench in benches), None)
    return Report(
        title=title,
        created=now(),
        producer=f"ifkd {__version__}",
        verdict=reach_verdict(evaluations, benches, parities),
        notes=tuple(dict.fromkeys([*notes, *_recorded_notes(provenances), *(f"{remark}." for remark in remarks)])),
        evaluations=dict(evaluations),
        benches=tuple(benches),
        parities=tuple(parities),
        scenes=tuple(scenes),
        environment=dict(measured if measured is not None else environment or {}),
    )


def read_scene_run(folder: Path) -> ReportedScene:
    """Read what `ifkd detect` wrote into a folder.

    Raises:
        DataError: There is no run.json, or it or a picture cannot be read.
    """
    path = folder / RUN_NAME
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no {RUN_NAME}", expected="a folder written by `ifkd detect`") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if not isinstance(run, dict) or not isinstance(run.get("scene"), dict):
        raise DataError(f"{path} is not what `ifkd detect` writes", hint="Run `ifkd detect` again.")
    scene = run["scene"].get("name", "the scene")
    objects = run.get("objects", "the")
    pictures = []
    for name, view in PICTURES.items():
        if (folder / name).is_file():
            alt = (
                f"The whole of {scene} with {objects} detected objects outlined in the colors of their classes"
                if view == "overview"
                else f"The busiest part of {scene}, enlarged, with each detected object outlined and named"
            )
            pictures.append(read_picture(folder / name, alt=alt))
    files = tuple(str(folder / name) for name in run.get("files", ()) if (folder / str(name)).is_file())
    return ReportedScene(folder=str(folder), run=run, pictures=tuple(pictures), files=files)


def read_picture(path: Path, *, alt: str) -> ReportPicture:
    """Read an image file; a large one is made smaller, as a page must stay light.

    Raises:
        DataError: It is not an image.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            media: Literal["image/png", "image/jpeg"] = "image/png"
            if len(content) > LARGEST_PNG_BYTES or max(image.size) > LARGEST_PICTURE_PX or image.format != "PNG":
                image.thumbnail((LARGEST_PICTURE_PX, LARGEST_PICTURE_PX), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                image.convert("RGB").save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
                content, media = stream.getvalue(), "image/jpeg"
            width, height = image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not an image that can be read ({error})") from error
    return ReportPicture(
        name=path.name,
        media_type=media,
        data_base64=base64.b64encode(content).decode("ascii"),
        width_px=width,
        height_px=height,
        alt=alt,
    )


def _recorded_notes(provenances: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the notes that training and export left for the reader."""
    notes: list[str] = []
    for provenance in provenances:
        recorded = provenance.get("notes", ())
        notes += [recorded] if isinstance(recorded, str) else [str(note) for note in recorded]
    return notes
