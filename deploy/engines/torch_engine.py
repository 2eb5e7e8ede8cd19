"""Torch reference engine: trained weights in the network that is exported. Only this module of deploy uses torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from deploy.engines.engine import Engine, EngineInfo
from export.bundle.bundle import Bundle
from export.bundle.manifest import Precision
from export.onnx.exportable import ExportableDetector
from ifkd.core.config import load
from ifkd.core.detections import Array, Candidates
from ifkd.core.environment import usable_cores
from ifkd.core.errors import BundleError, EngineError
from ifkd.core.files import sha256_of
from ifkd.models.checkpoint import build_from, load_checkpoint
from ifkd.recipe import Recipe


class TorchEngine(Engine):
    """Torch on the CPU, in FP32."""

    def __init__(self, bundle: Bundle, *, precision: Precision = "fp32", threads: int | None = None) -> None:
        """Load the bundle's weights.

        Raises:
            BundleError: The bundle has no weights, or their digest differs.
            CheckpointError: The weights do not fit the network in their metadata.
            EngineError: The precision is not fp32.
        """
        if precision != "fp32":
            raise EngineError("The torch reference computes in fp32", got=precision, expected="fp32")
        weights, configs = bundle.find("weights"), bundle.find("config")
        if not weights or not configs:
            raise BundleError(f"{bundle.path} has no weights or no recipe for torch", hint="Export the bundle again.")
        # The bundle's recipe, not the checkpoint's: export settings may have been overridden.
        recipe = load(bundle.file(configs[0]), Recipe)
        self._load(
            bundle.file(weights[0]),
            tile_px=bundle.manifest.input.tile_px,
            per_level=recipe.export.candidates_per_level,
            max_batch=bundle.manifest.input.max_batch,
            sides_px=bundle.manifest.input.tile_sides_px,
            threads=threads,
        )
        got, expected = self.info.candidates, bundle.manifest.outputs.candidates
        if got != expected:
            problem = f"The outputs of the weights of {bundle.path} differ from the manifest"
            raise BundleError(problem, got=f"{got} candidates", expected=expected, hint="Export the bundle again.")

    @classmethod
    def from_checkpoint(
        cls, path: Path, *, tile_px: tuple[int, int] | None = None, threads: int | None = None
    ) -> "TorchEngine":
        """Load a checkpoint that is not in a bundle; `tile_px` (height, width) is the recipe's by default.

        Raises:
            CheckpointError: The file is missing or damaged.
            ConfigError: The network does not accept tiles of this size.
        """
        engine = cls.__new__(cls)
        engine._load(path, tile_px=tile_px, threads=threads)  # noqa: SLF001
        return engine

    def _load(
        self,
        path: Path,
        *,
        tile_px: tuple[int, int] | None = None,
        per_level: int | None = None,
        max_batch: int | None = None,
        sides_px: tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> None:
        """Build the network; values that are None come from the checkpoint's recipe."""
        checkpoint = load_checkpoint(path)
        recipe = checkpoint.meta.recipe
        model = ExportableDetector(
            build_from(checkpoint),
            tile_px=tile_px or (recipe.data.tile_px, recipe.data.tile_px),
            candidates_per_level=per_level or recipe.export.candidates_per_level,
            tile_sides_px=sides_px,
        )
        self._model: ExportableDetector | None = model
        self._threads = threads or usable_cores()
        self.info = EngineInfo(
            backend="torch",
            backend_version=str(torch.__version__),
            device=f"CPU, {self._threads} thread{'s' if self._threads > 1 else ''}",
            precision="fp32",
            file=path.name,
            sha256=sha256_of(path),
            tile_px=model.tile_px,
            max_batch=max_batch or recipe.export.max_batch,
            candidates=model.count_candidates(),
            classes=checkpoint.meta.classes,
            tile_sides_px=model.sizes.side_range,
            oriented=model.detector.config.oriented,
        )

    def _run(self, tiles: Array) -> Candidates:
        if self._model is None:
            raise self._closed_error()
        # torch shares the array's memory and warns about read-only memory, so the tiles are copied.
        with _torch_threads(self._threads), torch.inference_mode():
            found = self._model(torch.from_numpy(np.array(tiles, order="C")))
        return Candidates(*(values.numpy() for values in found))

    def close(self) -> None:
        """Drop the network; a second call does nothing."""
        self._model = None


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads for the block, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
