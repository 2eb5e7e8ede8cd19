"""`ifkd detect --cluster ray` with fake engines that block after a number of tiles: `ray_driver.py LOG TILES ARGS`."""

import functools
import os
import sys
from pathlib import Path

import deploy.cluster.ray_cluster
import deploy.engines
from deploy.cli.main import main

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes.ray_engines import LoggingEngine, opened

deploy.cluster.ray_cluster.usable_cores = lambda: 2
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
engine = functools.partial(LoggingEngine, sys.argv[1], max_tiles=int(sys.argv[2]), engines=2)
deploy.engines.open_engine = functools.partial(opened, engine)
sys.exit(main(["detect", *sys.argv[3:], "--cluster", "ray"]))
