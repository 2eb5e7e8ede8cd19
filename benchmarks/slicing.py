"""Peak memory and speed of `ifkd data slice` for a very large image.

    python benchmarks/slicing.py [--side 30000] [--tile-px 1024]

The image has three bands of 8 bits in blocks of 512 pixels, in a temporary folder; all its tiles are written.
Exit code 1: the peak memory of the process is above 500 MB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from deploy.bench.system_monitor import process_peak_mb
from ifkd.data.slicing.slice_dataset import slice_dataset
from ifkd.data.slicing.tile_plan import TileRules

LIMIT_MB = 500.0


def write_image(folder: Path, side: int) -> Path:
    """Write an image of coarse noise and its labels, and return the path of the labels."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    with rasterio.open(
        folder / "images" / "a.tif", "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8",
        tiled=True, blockxsize=512, blockysize=512, compress="deflate", zlevel=1, crs="EPSG:32633",
        transform=rasterio.Affine(2.0, 0.0, 390000.0, 0.0, -2.0, 5060000.0),
    ) as dataset:  # fmt: skip
        for top in range(0, side, 512):
            rows = min(512, side - top)
            noise = rng.integers(20, 60, (3, 64, side // 8 + 1), np.uint8).repeat(8, axis=1).repeat(8, axis=2)
            dataset.write(noise[:, :rows, :side], window=Window(0, top, side, rows))
    corners = rng.integers(0, side - 100, (5000, 2)).tolist()
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": [left, top, 80, 60]}
        for number, (top, left) in enumerate(corners)
    ]
    image = {"id": 1, "file_name": "a.tif", "height": side, "width": side}
    content = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def main() -> int:
    """Write the image, cut it in a subprocess, and compare its peak memory with the limit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--tile-px", type=int, default=1024)
    parser.add_argument("--child", type=Path)
    options = parser.parse_args()
    if options.child is not None:
        start = time.perf_counter()
        rules = TileRules(tile_px=options.tile_px, overlap_px=options.tile_px // 8, max_empty_fraction=1.0)
        record = slice_dataset(options.child, options.child.parent / "out", rules)
        seconds = time.perf_counter() - start
        print(json.dumps({"tiles": record["contents"]["tiles"], "seconds": seconds, "peak_mb": process_peak_mb()}))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        labels = write_image(Path(folder), options.side)
        command = [sys.executable, __file__, "--child", str(labels), "--tile-px", str(options.tile_px)]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    size_mb = options.side**2 * 3 / 1e6
    print(f"{options.side}x{options.side} px, 3 bands, {size_mb:.0f} MB of pixels: {result['tiles']} tiles")
    print(f"  {result['seconds']:.0f} s, {options.side**2 / 1e6 / result['seconds']:.1f} MPix/s")
    print(f"  peak memory {result['peak_mb']:.0f} MB (limit {LIMIT_MB:.0f} MB)")
    return int(result["peak_mb"] > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
