"""`ifkd data slice`: large labeled images become tiles for training."""

import argparse
from pathlib import Path
from typing import Any

RULES = ("tile_px", "overlap_px", "keep_share", "rest", "empty_share", "data_share", "nodata", "seed")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("labels", type=Path, help="COCO file of the large images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the tiles")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images (`images` beside the labels)")
    parser.add_argument("--tile-px", type=int, default=512, metavar="N", help="side of a tile, source pixels (512)")
    parser.add_argument("--overlap-px", type=int, metavar="N", help="what neighbors share (a quarter of a tile)")
    parser.add_argument(
        "--min-visibility",
        type=float,
        default=0.4,
        metavar="X",
        help="an object that an edge cuts stays one when this share of it is visible (0.4)",
    )
    parser.add_argument(
        "--cut-objects",
        choices=("ignore", "drop"),
        default="ignore",
        help="what smaller pieces become (ignore: iscrowd)",
    )
    parser.add_argument(
        "--max-empty-fraction",
        type=float,
        default=0.1,
        metavar="X",
        help="tiles without objects, at most; 1 keeps all (0.1)",
    )
    parser.add_argument(
        "--min-valid-fraction",
        type=float,
        default=0.05,
        metavar="X",
        help="leave out tiles with less data than this (0.05)",
    )
    parser.add_argument("--nodata", type=float, metavar="X", help='the value that means "no data" (the file says)')
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides which empty tiles are kept (0)")
    parser.add_argument("--force", action="store_true", help="replace tiles that were cut otherwise")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Cut the tiles, say what became of the objects and where they lie."""
    from ifkd.core import config
    from ifkd.data.slicing.slice_dataset import TILES, make_tiles
    from ifkd.data.slicing.tile_plan import TileRules

    given = {name: getattr(options, name) for name in RULES}
    if given["overlap_px"] is None:
        given["overlap_px"] = max(0, options.tile_px) // 4
    rules = config.parse(given, TileRules, source="The command line")
    record = make_tiles(options.labels, options.out, rules, images=options.images, force=options.force)
    result = {"file": str(options.out / TILES), "made": record["made"], "contents": record["contents"]}
    if not options.json:
        for line in _lines(result):
            print(line)  # noqa: T201
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    held = result["contents"]
    parts, none = held["objects_shown"] - held["objects_whole"], held["objects"] - held["objects_shown"]
    left_out = f"left out: {held['left_out_empty']} empty, {held['without_data']} without data"
    lines = [
        f"{result['file']} {'made' if result['made'] else 'was complete already'}",
        f"  {held['tiles']} tiles, {held['empty']} of them empty; {left_out}",
        f"  {held['objects']} objects: {held['objects_whole']} whole in a tile, {parts} only in parts, {none} in none",
        f"  put together, the tiles give back {held['boxes_restored']} of {held['boxes']} boxes",
    ]
    if held["objects_whole"] < held["objects_shown"]:
        lines.append("  Objects larger than the overlap are whole in no tile: raise --overlap-px to keep them.")
    if held["limits"]:
        low, high = held["limits"]
        lines.append(
            "In the recipe, so that tiles and scenes are scaled alike: "
            f"data.imagery.limits = [{low:g}, {high:g}] (percentiles 2 and 98, the sources' median)"
        )
    return lines
