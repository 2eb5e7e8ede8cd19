"""The torch reference: trained weights in the graph that is exported. The one module of deploy that imports torch."""

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

        Args:
            bundle: Where the weights are.
            precision: fp32; the reference has no other.
            threads: CPU threads while it infers; by default all cores the process may use.

        Raises:
            BundleError: The bundle has no weights, or they were changed.
            CheckpointError: The weights do not fit their own description.
            EngineError: Another precision was asked for.
        """
        if precision != "fp32":
            raise EngineError("The torch reference computes in fp32", got=precision, expected="fp32")
        weights, configs = bundle.find("weights"), bundle.find("config")
        if not weights or not configs:
            raise BundleError(f"{bundle.path} has no weights or no recipe for torch", hint="Export the bundle again.")
        # The bundle's recipe, not the one in the weights: settings of the export may have been overridden.
        settings = load(bundle.file(configs[0]), Recipe)
        self._load(
            bundle.file(weights[0]),
            file=weights[0],
            tile_px=bundle.manifest.input.tile_px,
            per_level=settings.export.candidates_per_level,
            max_batch=bundle.manifest.input.max_batch,
            sides_px=bundle.manifest.input.tile_sides_px,
            threads=threads,
        )
        if self.info.candidates != bundle.manifest.outputs.candidates:
            raise BundleError(
                f"The weights of {bundle.path} do not answer what the manifest says",
                got=f"{self.info.candidates} candidates",
                expected=bundle.manifest.outputs.candidates,
                hint="Export the bundle again.",
            )

    @classmethod
    def from_checkpoint(
        cls, path: Path, *, tile_px: tuple[int, int] | None = None, threads: int | None = None
    ) -> "TorchEngine":
        """Load a checkpoint that is not in a bundle.

        Args:
            path: The checkpoint.
            tile_px: (height, width); by default the recipe's.
            threads: CPU threads while it infers; by default all cores the process may use.

        Raises:
            CheckpointError: It is absent or damaged.
            ConfigError: Tiles of that size do not fit the pyramid.
        """
        engine = cls.__new__(cls)
        engine._load(path, file=path.name, tile_px=tile_px, threads=threads)  # noqa: SLF001
        return engine

    def _load(
        self,
        path: Path,
        *,
        file: str,
        tile_px: tuple[int, int] | None = None,
        per_level: int | None = None,
        max_batch: int | None = None,
        sides_px: tuple[int, int] | None = None,
        threads: int | None = None,
    ) -> None:
        """Build the graph; what is not given is the recipe's."""
        checkpoint = load_checkpoint(path)
        recipe = checkpoint.meta.recipe
        graph = ExportableDetector(
            build_from(checkpoint),
            tile_px=tile_px or (recipe.data.tile_px, recipe.data.tile_px),
            per_level=per_level or recipe.export.candidates_per_level,
            sides_px=sides_px,
        )
        self._graph: ExportableDetector | None = graph
        self._threads = threads or usable_cores()
        self.info = EngineInfo(
            backend="torch",
            backend_version=str(torch.__version__),
            device=f"CPU, {self._threads} thread{'s' if self._threads > 1 else ''}",
            precision="fp32",
            file=file,
            sha256=sha256_of(path),
            tile_px=graph.tile_px,
            max_batch=max_batch or recipe.export.max_batch,
            candidates=graph.count_candidates(),
            classes=checkpoint.meta.classes,
            tile_sides_px=graph.sizes.sides,
        )

    def _run(self, tiles: Array) -> Candidates:
        if self._graph is None:
            raise EngineError("This engine is closed", hint="Open it again.")
        # torch shares the array's memory and warns where it may not write to it, so the tiles are copied.
        with _threads(self._threads), torch.inference_mode():
            boxes, scores, labels = self._graph(torch.from_numpy(np.array(tiles, order="C")))
        return Candidates(boxes.numpy(), scores.numpy(), labels.numpy())

    def close(self) -> None:
        """Drop the network; a second call does nothing."""
        self._graph = None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give torch `count` threads, and give the process's own setting back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
