"""The contract of all engines, tested with every runtime."""

import importlib.util
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from fakes.fake_triton_server import FakeTritonServer, serve_repository

from deploy.engines import GPU_BACKENDS, open_engine
from deploy.engines.engine import Backend, Engine, EngineInfo, FakeEngine
from deploy.engines.engine_choice import find_engine
from export.bundle.bundle import Bundle, open_bundle
from export.onnx.tensor_parity import TOLERANCES, TensorTolerance, compare_candidates
from export.tensorrt.build import add_engine
from export.tensorrt.tensorrt_api import gpu_of_this_machine
from export.tiles import structured_noise
from export.triton.repository import write_repository
from ifkd.core.detections import Candidates, Detections
from ifkd.core.errors import BundleError, EngineError, IfkdError, MissingExtraError

KINDS = [
    "fake",
    "torch",
    "onnxruntime-fp32",
    "onnxruntime-fp16",
    "onnxruntime-cuda-fp32",
    "onnxruntime-cuda-fp16",
    "openvino-fp32",
    "openvino-fp16",
    "tensorrt-fp32",
    "tensorrt-fp16",
    "triton-fp32",
    "triton-fp16",
]
BFLOAT16_TOLERANCE = TensorTolerance(score=0.08, box_px=8.0, matched_fraction=0.98, cut_margin=0.4)
"""Eight times that of FP16, which has three bits more."""


def fake_engine() -> FakeEngine:
    info = EngineInfo("fake", "1", "nowhere", "fp32", "none", "0" * 64, (64, 64), 4, 354, ("ship", "tug", "ferry"))

    def find(tile: np.ndarray) -> Detections:
        side = np.float32(tile[0, 0, 0] % 32 + 1)
        return Detections(
            np.array([[0, 0, side, side]], np.float32), np.array([0.9], np.float32), np.array([1], np.int64)
        )

    return FakeEngine(info, find)


@pytest.fixture(scope="module")
def bundle_with_engines(whole_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Bundle]:
    """Call it for the bundle with engines for this machine's GPU; the test is skipped where there is none."""

    @cache
    def build() -> Bundle:
        bundle = open_bundle(Path(shutil.copytree(whole_bundle, tmp_path_factory.mktemp("gpu") / "bundle")))
        builder = "tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt_rtx"
        for precision in ("fp32", "fp16"):
            bundle, _, _ = add_engine(bundle, builder=builder, precision=precision)
        return bundle

    def build_or_skip() -> Bundle:
        try:
            gpu = gpu_of_this_machine()
            bundle = build()
            find_engine(bundle, precision="fp32", gpu=gpu)
        except (EngineError, MissingExtraError) as error:
            pytest.skip(f"no TensorRT engine can run here: {error}")
        return bundle

    return build_or_skip


@pytest.fixture(scope="module")
def triton(whole_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeTritonServer]:
    """A fake Triton server with the bundle."""
    repository = tmp_path_factory.mktemp("triton") / "models"
    write_repository(open_bundle(whole_bundle), repository)
    with serve_repository(repository) as server:
        yield server


@pytest.fixture(scope="module")
def open_kind(
    whole_bundle: Path, bundle_with_engines: Callable[[], Bundle], request: pytest.FixtureRequest
) -> Callable[[str], Engine]:
    """Call it with one of `KINDS`."""

    def open_one(kind: str) -> Engine:
        if kind in {"fake", "torch"}:
            return fake_engine() if kind == "fake" else open_engine(open_bundle(whole_bundle), backend=kind, threads=1)
        backend, _, precision = kind.rpartition("-")
        bundle = bundle_with_engines() if backend == "tensorrt" else open_bundle(whole_bundle)
        server = request.getfixturevalue("triton").url if backend == "triton" else None
        try:
            return open_engine(bundle, backend=backend, precision=precision, threads=1, server=server)
        except EngineError as error:
            if backend != "onnxruntime-cuda" or has_cuda():
                raise
            pytest.skip(f"ONNX Runtime has no GPU here: {error}")

    return open_one


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, open_kind: Callable[[str], Engine]) -> Iterator[Engine]:
    with open_kind(request.param) as opened:
        yield opened


def has_cuda() -> bool:
    """Whether ONNX Runtime's package and a GPU are there, so that its provider has to work."""
    try:
        gpu_of_this_machine()
    except IfkdError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def noise(count: int) -> np.ndarray:
    tiles = np.stack([structured_noise((64, 64), seed=seed).transpose(2, 0, 1) for seed in range(count)])
    return np.ascontiguousarray(tiles)


def test_the_output_has_the_shapes_and_types_promised(engine: Engine) -> None:
    for batch in (1, engine.info.max_batch):
        found = engine.infer(noise(batch))
        k = engine.info.candidates
        assert (found.boxes.shape, found.boxes.dtype) == ((batch, k, 4), np.float32)
        assert (found.scores.shape, found.scores.dtype) == ((batch, k), np.float32)
        assert (found.labels.shape, found.labels.dtype) == ((batch, k), np.int64)
        assert found.scores.min() >= 0
        assert found.scores.max() <= 1
        assert found.boxes.min() >= 0
        assert found.boxes.max() <= 64
        assert set(np.unique(found.labels)) <= set(range(len(engine.info.classes)))


def test_the_output_belongs_to_the_caller(engine: Engine) -> None:
    tiles = noise(2)
    first = engine.infer(tiles)
    kept = Candidates(first.boxes.copy(), first.scores.copy(), first.labels.copy())
    second = engine.infer(tiles[::-1].copy())
    for name in ("boxes", "scores", "labels"):
        ours, theirs = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(ours, getattr(kept, name))
        assert not np.shares_memory(ours, theirs)
        ours[:] = 0  # may be written to, and nobody notices
    again = engine.infer(tiles)
    np.testing.assert_array_equal(again.scores, kept.scores)


def test_the_tiles_are_left_as_they_were_and_need_not_be_writable_or_contiguous(engine: Engine) -> None:
    tiles = noise(2)
    expected = engine.infer(tiles)
    wide = np.zeros((2, 3, 64, 128), np.uint8)
    wide[..., ::2] = tiles
    view = wide[..., ::2]
    view.flags.writeable = False
    found = engine.infer(view)
    np.testing.assert_array_equal(view, tiles)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("tiles", "got"),
    [
        (np.zeros((1, 3, 64, 64), np.float32), r"float32 \[1, 3, 64, 64\]"),
        (np.zeros((1, 64, 64, 3), np.uint8), r"uint8 \[1, 64, 64, 3\]"),
        (np.zeros((1, 3, 64, 96), np.uint8), r"uint8 \[1, 3, 64, 96\]"),
        (np.zeros((3, 64, 64), np.uint8), r"uint8 \[3, 64, 64\]"),
        (np.zeros((0, 3, 64, 64), np.uint8), r"uint8 \[0, 3, 64, 64\]"),
        (np.zeros((5, 3, 64, 64), np.uint8), r"uint8 \[5, 3, 64, 64\]"),
        (np.zeros((1, 4, 64, 64), np.uint8), r"uint8 \[1, 4, 64, 64\]"),
    ],
)
def test_wrong_tiles_are_refused_with_what_came_and_what_fits(engine: Engine, tiles: np.ndarray, got: str) -> None:
    with pytest.raises(EngineError, match=rf"got {got}, expected uint8 \[1\.\.4, 3, 64, 64\]"):
        engine.infer(tiles)


def test_a_batch_gives_the_outputs_of_its_tiles_one_by_one(engine: Engine) -> None:
    tiles = noise(3)
    together = engine.infer(tiles)
    singly = [engine.infer(tile[None]) for tile in tiles]
    alone = Candidates(
        *(np.concatenate([getattr(one, name) for one in singly]) for name in ("boxes", "scores", "labels"))
    )
    # A GPU computes FP16 in FP16, and other batches by other kernels.
    precision = engine.info.precision if engine.info.backend in GPU_BACKENDS else "fp32"
    parity = compare_candidates(alone, together, groups=[(354, False)], tolerance=TOLERANCES[precision])
    assert parity.passed, parity


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", -1, r"none returns labels out of range on nowhere: got -1 to 1, expected 0 to 2\."),
        ("labels", 3, "got 0 to 3, expected 0 to 2"),
        ("scores", np.nan, "none returns scores that are NaN or infinite on nowhere: got 1 of 708 values"),
        ("boxes", np.nan, "returns boxes that are NaN or infinite on nowhere: got 4 of 2832 values"),
        ("boxes", np.inf, "returns boxes that are NaN or infinite"),
    ],
)
def test_an_output_that_no_model_can_have_is_refused(
    name: str, value: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fake_engine()
    outputs = engine.infer(noise(2))
    getattr(outputs, name)[1, 7] = value
    monkeypatch.setattr(engine, "_run", lambda _tiles: outputs)
    for infer in (engine.infer, lambda tiles: list(engine.infer_each([tiles]))):
        with pytest.raises(EngineError, match=message):
            infer(noise(2))


def test_timing_is_reported_only_by_engines_on_a_device_with_its_own_memory(engine: Engine) -> None:
    engine.infer(noise(2))
    if engine.info.backend not in GPU_BACKENDS:
        assert engine.last_timing is None
        return
    assert engine.last_timing is not None
    assert min(engine.last_timing.upload_ms, engine.last_timing.compute_ms, engine.last_timing.download_ms) > 0


def test_batches_one_after_another_are_processed_in_order(engine: Engine) -> None:
    batches = [noise(count) for count in (2, 1, 3)]
    found = list(engine.infer_each(iter(batches)))
    for batch, output in zip(batches, found, strict=True):
        np.testing.assert_array_equal(output.scores, engine.infer(batch).scores)


def test_info_describes_the_engine(engine: Engine) -> None:
    info = engine.info
    assert info.backend in {"fake", "torch", "onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt", "triton"}
    assert info.backend_version
    assert info.device
    assert (info.tile_px, info.max_batch, info.candidates) == ((64, 64), 4, 354)
    assert info.classes == ("ship", "tug", "ferry")
    assert len(info.sha256) == 64


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (128, 32)])
def test_an_engine_for_several_sizes_gives_the_outputs_of_torch_for_that_size_alone(
    checkpoint_path: Path, free_bundle: Path, size: tuple[int, int]
) -> None:
    from deploy.engines.torch_engine import TorchEngine

    tiles = np.ascontiguousarray(structured_noise(size, seed=0).transpose(2, 0, 1)[None])
    with TorchEngine.from_checkpoint(checkpoint_path, tile_px=size, threads=1) as fixed:
        expected = fixed.infer(tiles)
    for backend in ("torch", "onnxruntime", "openvino"):
        with open_engine(open_bundle(free_bundle), backend=backend, threads=1) as engine:
            assert engine.info.sizes.side_range == (32, 128)
            found = engine.infer(tiles)
            assert found.scores.shape == (1, engine.info.candidates)
            best = np.sort(found.scores[0])[::-1]
            np.testing.assert_allclose(best[:40], np.sort(expected.scores[0])[::-1][:40], atol=1e-4)
            assert found.boxes[..., 0::2].max() <= size[1]
            assert found.boxes[..., 1::2].max() <= size[0]


@pytest.mark.parametrize("size", [(48, 64), (160, 64), (0, 64), (64, 100)])
def test_tiles_beyond_the_sizes_of_an_engine_are_refused(free_bundle: Path, size: tuple[int, int]) -> None:
    for backend in ("torch", "onnxruntime", "openvino"):
        with (
            open_engine(open_bundle(free_bundle), backend=backend, threads=1) as engine,
            pytest.raises(EngineError, match=r"3, height, width\] with sides of 32 to 128 px, multiples of 32"),
        ):
            engine.infer(np.zeros((1, 3, *size), np.uint8))


def test_a_manifest_that_promises_free_tiles_of_a_fixed_file_is_refused(bundle_copy: Bundle) -> None:
    manifest = bundle_copy.manifest
    wider = manifest.input.model_copy(update={"tile_sides_px": (32, 128)})
    inconsistent = Bundle(bundle_copy.path, manifest.model_copy(update={"input": wider}))
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(BundleError, match="differs from the manifest"):
            open_engine(inconsistent, backend=backend, threads=1)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_twice_is_allowed_and_a_closed_engine_says_so(kind: str, open_kind: Callable[[str], Engine]) -> None:
    engine = open_kind(kind)
    with engine as entered:
        assert entered is engine
    engine.close()
    if kind != "fake":
        with pytest.raises(EngineError, match="closed"):
            engine.infer(noise(1))


def test_the_runtimes_agree_with_torch(whole_bundle: Path) -> None:
    bundle, tiles = open_bundle(whole_bundle), noise(4)
    with open_engine(bundle, backend="torch", threads=1) as engine:
        reference = engine.infer(tiles)
    levels = [(100, True), (100, True), (100, True), (27, False), (27, False)]
    for backend, precision in itertools.product(("onnxruntime", "openvino"), ("fp32", "fp16")):
        with open_engine(bundle, backend=backend, precision=precision, threads=1) as engine:
            tolerance = BFLOAT16_TOLERANCE if engine.info.compute_type == "bf16" else TOLERANCES[precision]
            parity = compare_candidates(reference, engine.infer(tiles), groups=levels, tolerance=tolerance)
        assert parity.passed, (backend, precision, parity)


def test_a_checkpoint_runs_without_a_bundle(checkpoint_path: Path, whole_bundle: Path) -> None:
    from deploy.engines.torch_engine import TorchEngine

    tiles = noise(2)
    with open_engine(open_bundle(whole_bundle), backend="torch", threads=1) as engine:
        expected = engine.infer(tiles)
    with TorchEngine.from_checkpoint(checkpoint_path, threads=1) as engine:
        assert (engine.info.file, engine.info.precision) == ("best.safetensors", "fp32")
        np.testing.assert_array_equal(engine.infer(tiles).scores, expected.scores)
    with TorchEngine.from_checkpoint(checkpoint_path, tile_px=(32, 96), threads=1) as engine:
        assert engine.info.tile_px == (32, 96)
        assert engine.infer(np.zeros((1, 3, 32, 96), np.uint8)).boxes.max() <= 96


def test_threads_are_reported_and_torchs_own_setting_comes_back(checkpoint_path: Path) -> None:
    import torch

    from deploy.engines.torch_engine import TorchEngine

    before = torch.get_num_threads()
    with TorchEngine.from_checkpoint(checkpoint_path, threads=before + 1) as engine:
        engine.infer(noise(1))
        assert engine.info.device == f"CPU, {before + 1} threads"
    assert torch.get_num_threads() == before


def test_the_torch_reference_has_one_precision(whole_bundle: Path) -> None:
    with pytest.raises(EngineError, match="computes in fp32: got fp16"):
        open_engine(open_bundle(whole_bundle), backend="torch", precision="fp16")


def test_an_absent_precision_and_a_changed_file_are_refused(full_copy: Bundle) -> None:
    with pytest.raises(BundleError, match="has no ONNX file in int8: expected one of fp16, fp32"):
        open_engine(full_copy, precision="int8")
    with (full_copy.path / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(BundleError, match="differs from the manifest"):
            open_engine(full_copy, backend=backend)


def test_a_file_of_another_shape_than_the_manifest_is_refused(bundle_copy: Bundle) -> None:
    manifest = bundle_copy.manifest
    larger = manifest.input.model_copy(update={"tile_px": (96, 96)})
    inconsistent = Bundle(bundle_copy.path, manifest.model_copy(update={"input": larger}))
    with pytest.raises(BundleError, match="differs from the manifest"):
        open_engine(inconsistent)
    with pytest.raises(BundleError, match=r"outputs of the weights of .* differ from the manifest"):
        open_engine(inconsistent, backend="torch")


def test_rubbish_under_a_right_digest_is_an_engine_error(full_copy: Bundle) -> None:
    from export.bundle.bundle import add_file

    (full_copy.path / "model.onnx").write_bytes(b"not a protobuf at all")
    bundle = add_file(full_copy, "model.onnx", kind="onnx", precision="fp32")
    for backend, message in (("onnxruntime", "ONNX Runtime cannot load"), ("openvino", "OpenVINO cannot run .*onnx")):
        with pytest.raises(EngineError, match=message):
            open_engine(bundle, backend=backend)


@pytest.mark.parametrize(("backend", "extra"), [("onnxruntime", "cpu"), ("openvino", "openvino")])
def test_an_absent_runtime_says_what_to_install(
    backend: Backend, extra: str, whole_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(IfkdError, match=rf"{backend} .*pip install 'ifkd\[{extra}\]'"):
        open_engine(open_bundle(whole_bundle), backend=backend)


@pytest.mark.parametrize(
    "module",
    [
        "deploy.engines.engine",
        "deploy.engines.onnxruntime_engine",
        "deploy.engines.openvino_engine",
        "deploy.engines.tensorrt_engine",
        "deploy.engines.triton_engine",
    ],
)
def test_detecting_needs_no_torch(module: str) -> None:
    program = f"import sys; sys.modules.update(torch=None, torchvision=None, timm=None, onnx=None); import {module}"
    subprocess.run([sys.executable, "-c", program], check=True)
