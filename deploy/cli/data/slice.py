"""`ifkd data slice`: cut large labeled images into tiles for training."""

import argparse
from pathlib import Path
from typing import Any, Literal

from deploy import cli

MAX_REMARKS = 5
"""Number of remarks on source images that are printed."""


class Arguments(cli.Arguments):
    """Arguments of `ifkd data slice`."""

    labels: Path
    out: Path
    images: Path | None
    tile_px: int
    overlap_px: int | None
    min_visibility: float
    cut_objects: str
    max_empty_fraction: float
    min_valid_fraction: float
    nodata: float | None
    alpha: int | Literal["none"] | None
    seed: int
    force: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("labels", type=Path, help="COCO file of the large images")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the tiles")
    add("--images", type=Path, metavar="DIR", help="image folder (default: `images` beside the labels)")
    add("--tile-px", type=int, default=512, metavar="N", help="side of a tile, source pixels (default: 512)")
    add("--overlap-px", type=int, metavar="N", help="least overlap of neighboring tiles (default: a quarter of a tile)")
    fractions = {
        "--min-visibility": (0.4, "least visible fraction of an object cut by a tile border"),
        "--max-empty-fraction": (0.1, "largest fraction of tiles without objects; 1 keeps all"),
        "--min-valid-fraction": (0.05, "least fraction of pixels with data in a tile"),
    }
    for option, (default, text) in fractions.items():
        add(option, type=float, default=default, metavar="X", help=f"{text} (default: {default})")
    text = "make less visible objects ignored regions (iscrowd), or drop them (default: ignore)"
    add("--cut-objects", choices=("ignore", "drop"), default="ignore", help=text)
    add("--nodata", type=float, metavar="X", help="value of pixels without data, for images that do not state it")
    add("--alpha", type=cli.alpha_band, metavar="B", help=cli.ALPHA_HELP)
    add("--seed", type=int, default=0, metavar="N", help="seed of the choice of empty tiles (default: 0)")
    add("--force", action="store_true", help="replace tiles with other settings")


def run(arguments: Arguments) -> dict[str, Any]:
    """Write the tiles, and print how many objects they have."""
    from ifkd.core import config
    from ifkd.data.slicing.slice_dataset import TILES, slice_dataset
    from ifkd.data.slicing.tile_plan import TileRules

    values = {name: getattr(arguments, name) for name in TileRules.model_fields}
    if arguments.overlap_px is None:
        values["overlap_px"] = max(0, arguments.tile_px) // 4
    rules = config.parse(values, TileRules, source="The command line")
    record = slice_dataset(arguments.labels, arguments.out, rules, images=arguments.images, force=arguments.force)
    result = {"file": str(arguments.out / TILES), "made": record["made"], "contents": record["contents"]}
    if not arguments.json:
        print("\n".join(_lines(result)))  # noqa: T201
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    from ifkd.data.account import Account

    contents = result["contents"]
    account = Account(**contents["account"])
    lines = [
        f"{result['file']} {'made' if result['made'] else 'was complete already'}",
        f"  {contents['tiles']} tiles, {contents['empty_tiles']} of them empty",
        f"  left out: {contents['omitted_empty']} empty tiles, {contents['omitted_without_data']} without data",
        *(f"  {line}" for line in account.lines()),
        f"  {contents['boxes_restored']} of {account.objects.received} boxes can be restored from the tiles",
    ]
    if "cut_at_tile_borders" in account.objects.changed:
        lines.append("  No tile has an object larger than the overlap completely: raise --overlap-px to keep them.")
    if contents["limits"]:
        low, high = contents["limits"]
        lines.append(
            "In the recipe, so that tiles and scenes are scaled alike: "
            f"data.imagery.limits = [{low:g}, {high:g}] (percentiles 2 and 98, median of the sources)"
        )
    remarks = contents["remarks"]
    more = [f"({len(remarks) - MAX_REMARKS} more remarks are in slice.json.)"] if len(remarks) > MAX_REMARKS else []
    return lines + remarks[:MAX_REMARKS] + more
