"""The Triton engine: checks before the first inference, errors, concurrent requests."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.fake_scene import sea, write_tif
from fakes.fake_triton_server import FakeTritonServer, serve_repository

from deploy.cli.main import main
from deploy.engines import open_engine
from deploy.engines.engine import Engine
from deploy.engines.triton_engine import TritonEngine, parse_server_address
from export.bundle.bundle import Bundle, open_bundle
from export.tiles import structured_noise
from export.triton.model_config import SOURCE_KEY
from export.triton.repository import write_repository
from ifkd.core.errors import EngineError, IfkdError, MissingExtraError, UsageError

MODEL = "tiny_onnx_fp32"


@pytest.fixture(scope="module")
def repository(whole_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_repository(open_bundle(whole_bundle), folder)
    return folder


@pytest.fixture
def server(repository: Path) -> Iterator[FakeTritonServer]:
    """A fake Triton server for one test."""
    with serve_repository(repository) as running:
        yield running


@pytest.fixture
def bundle(whole_bundle: Path) -> Bundle:
    return open_bundle(whole_bundle)


def noise(count: int, seed: int = 0) -> np.ndarray:
    tiles = [structured_noise((64, 64), seed=seed + one).transpose(2, 0, 1) for one in range(count)]
    return np.ascontiguousarray(np.stack(tiles))


def open_here(bundle: Bundle, server: FakeTritonServer, path: str = "", **options: Any) -> Engine:
    return TritonEngine(bundle, server=server.url + path, **options)


def test_the_server_gives_the_outputs_of_its_runtime(bundle: Bundle, server: FakeTritonServer) -> None:
    """The same file by the same runtime, with the protocol between: to the bit."""
    tiles = noise(3)
    with open_here(bundle, server) as far, open_engine(bundle, threads=1) as near:
        output, expected = far.infer(tiles), near.infer(tiles)
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(output, name), getattr(expected, name))
        assert getattr(output, name).flags.writeable


def test_info_names_the_server_the_model_and_the_bundles_file(bundle: Bundle, server: FakeTritonServer) -> None:
    with open_here(bundle, server, precision="fp16") as engine:
        info = engine.info
    assert (info.backend, info.backend_version, info.precision) == ("triton", "2.60.0", "fp16")
    assert info.device == f"Triton at {server.url}, model tiny_onnx_fp16, version 1"
    assert (info.file, info.sha256) == ("model.fp16.onnx", bundle.manifest.files["model.fp16.onnx"].sha256)


@pytest.mark.parametrize("path", [f"/v2/models/{MODEL}", f"/v2/models/{MODEL}/versions/1", "/"])
def test_a_model_may_be_named_by_its_address(bundle: Bundle, server: FakeTritonServer, path: str) -> None:
    with open_here(bundle, server, path) as engine:
        assert engine.infer(noise(1)).scores.shape == (1, 354)


@pytest.mark.parametrize(
    ("url", "host", "model", "version"),
    [
        ("http://gpu:8000", "gpu:8000", None, ""),
        ("https://gpu/triton/", "gpu/triton", None, ""),
        ("http://gpu:8000/v2/models/ships_tensorrt_fp16", "gpu:8000", "ships_tensorrt_fp16", ""),
        ("http://gpu/behind/v2/models/ships/versions/12", "gpu/behind", "ships", "12"),
    ],
)
def test_addresses(url: str, host: str, model: str | None, version: str) -> None:
    found = parse_server_address(url)
    assert (found.host, found.model, found.version) == (host, model, version)
    assert found.secure == url.startswith("https")


@pytest.mark.parametrize(
    "url", ["gpu:8000", "grpc://gpu:8001", "http://", "http://gpu/v2/models", "http://gpu/v2/health"]
)
def test_what_is_no_address_is_refused(bundle: Bundle, url: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a Triton server: expected http://HOST:PORT"):
        open_engine(bundle, backend="triton", server=url)


def test_a_server_is_named_for_no_other_backend(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="onnxruntime uses no server: got http://gpu"):
        open_engine(bundle, server="http://gpu")


def test_a_server_that_is_away_is_reported_with_its_address(bundle: Bundle) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(EngineError, match=rf"Triton at {url} cannot be reached .*Start the server"):
            open_engine(bundle, backend="triton", server=url)


def test_a_host_that_does_not_exist_is_reported(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"Triton at http://nowhere\.invalid:8000 cannot be reached"):
        open_engine(bundle, backend="triton", server="http://nowhere.invalid:8000")


def test_an_absent_model_is_reported_with_those_that_are_there(bundle: Bundle, server: FakeTritonServer) -> None:
    with pytest.raises(EngineError, match="has no model harbor: got tiny_onnx_fp16, tiny_onnx_fp32"):
        open_here(bundle, server, "/v2/models/harbor")


def test_a_version_that_is_absent_is_reported(bundle: Bundle, server: FakeTritonServer) -> None:
    with pytest.raises(EngineError, match=f"cannot run version 7 of {MODEL}: got 1 READY"):
        open_here(bundle, server, f"/v2/models/{MODEL}/versions/7")


def test_a_model_that_is_not_ready_is_reported_with_the_servers_reason(
    bundle: Bundle, server: FakeTritonServer
) -> None:
    server.models[MODEL].reason = "CUDA out of memory"
    with pytest.raises(EngineError, match=f"cannot run {MODEL}: got 1 UNAVAILABLE CUDA out of memory"):
        open_here(bundle, server)


def test_another_file_under_the_same_name_is_refused(bundle: Bundle, server: FakeTritonServer) -> None:
    server.models[MODEL].config.parameters[SOURCE_KEY].string_value = "a" * 64
    with pytest.raises(EngineError, match=f"it comes from another ONNX file: got sha256 {'a' * 64}"):
        open_here(bundle, server)
    del server.models[MODEL].config.parameters[SOURCE_KEY]
    with pytest.raises(EngineError, match=f"got a model without the parameter {SOURCE_KEY}"):
        open_here(bundle, server)


def test_another_shape_is_refused_with_both(bundle: Bundle, server: FakeTritonServer) -> None:
    server.models[MODEL].config.output[0].dims[0] = 99
    with pytest.raises(EngineError, match=r"got .*boxes FP32 \[-1, 99, 4\].*, expected .*boxes FP32 \[-1, 354, 4\]"):
        open_here(bundle, server)


def test_a_server_that_takes_fewer_tiles_bounds_the_batch(bundle: Bundle, server: FakeTritonServer) -> None:
    server.models[MODEL].config.max_batch_size = 2
    with open_here(bundle, server) as engine:
        assert engine.info.max_batch == 2
        with pytest.raises(EngineError, match=r"expected uint8 \[1\.\.2, 3, 64, 64\]"):
            engine.infer(noise(3))


def test_a_response_that_is_late_is_an_error(bundle: Bundle, server: FakeTritonServer) -> None:
    release = threading.Event()
    with open_here(bundle, server, timeout_s=0.2) as engine:
        server.before = lambda path: path.endswith("infer") and release.wait(30)
        with pytest.raises(EngineError, match=r"did not respond within 0\.2 s"):
            engine.infer(noise(1))
        release.set()


def test_a_server_that_dies_in_the_middle_is_an_error_and_not_a_hang(bundle: Bundle, server: FakeTritonServer) -> None:
    def die(path: str) -> None:
        if path.endswith("infer"):
            raise ConnectionAbortedError

    with open_here(bundle, server) as engine:
        engine.infer(noise(1))
        server.before = die
        with pytest.raises(EngineError, match="cannot be reached"):
            engine.infer(noise(1))


def test_what_the_server_says_of_a_refused_request_is_passed_on(bundle: Bundle, server: FakeTritonServer) -> None:
    with open_here(bundle, server) as engine:
        server.models[MODEL].config.max_batch_size = 1  # reloaded meanwhile with another configuration
        with pytest.raises(EngineError, match=f"batch-size must be <= 1 for '{MODEL}'"):
            engine.infer(noise(2))


def test_an_output_of_another_shape_is_refused(
    bundle: Bundle, server: FakeTritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_here(bundle, server) as engine:
        whole = server.models[MODEL].run
        monkeypatch.setattr(
            server.models[MODEL], "run", lambda tiles, names: [value[:, :7] for value in whole(tiles, names)]
        )
        with pytest.raises(
            EngineError,
            match=r"output boxes of .*: got float32 \[1, 7, 4\], expected float32 \[1, 354, 4\]",
        ):
            engine.infer(noise(1))


def test_something_else_at_the_address_is_no_triton(
    bundle: Bundle, server: FakeTritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "get", lambda _: ["hello"])
    with pytest.raises(EngineError, match="is not a Triton server"):
        open_here(bundle, server)


def test_two_batches_are_under_way_at_once(bundle: Bundle, server: FakeTritonServer) -> None:
    """The server delays the first response until the second request has arrived, which would block a serial client."""
    both = threading.Barrier(2)
    with open_here(bundle, server, timeout_s=30.0) as engine:
        server.before = lambda path: both.wait(20) if path.endswith("infer") else None
        batches = [noise(2, seed=10 * number) for number in range(4)]
        found = list(engine.infer_each(iter(batches)))
        server.before = lambda _: None
        for batch, output in zip(batches, found, strict=True):
            np.testing.assert_array_equal(output.scores, engine.infer(batch).scores)


def test_any_thread_may_run_it(bundle: Bundle, server: FakeTritonServer) -> None:
    tiles, found = noise(1), []
    with open_here(bundle, server) as engine:
        expected = engine.infer(tiles)
        thread = threading.Thread(target=lambda: found.append(engine.infer(tiles)))
        thread.start()
        thread.join()
        np.testing.assert_array_equal(found[0].scores, expected.scores)


def test_nothing_of_a_closed_engine_stays(bundle: Bundle, server: FakeTritonServer) -> None:
    before = threading.active_count()
    with open_here(bundle, server) as engine:
        list(engine.infer_each([noise(1), noise(1)]))
    started = time.monotonic()
    while (
        threading.active_count() > before and time.monotonic() < started + 20
    ):  # the fake closes its connections a bit later
        time.sleep(0.01)
    assert threading.active_count() == before


def test_an_absent_client_says_what_to_install(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.http", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ifkd\[triton\]'"):
        open_engine(bundle, backend="triton")


def test_a_scene_runs_through_the_server_to_the_same_bytes(
    whole_bundle: Path, server: FakeTritonServer, tmp_path: Path
) -> None:
    pixels = sea(150, 200, [(5, 5, 17, 15, 0), (50, 40, 68, 52, 1), (120, 118, 140, 130, 0)])
    scene = write_tif(tmp_path / "harbor.tif", pixels)
    words = [
        "detect",
        str(whole_bundle),
        str(scene),
        "--format",
        "csv",
        "geojson",
        "--score-threshold",
        "0.1",
        "--overlap-px",
        "16",
    ]
    assert main([*words, "--out", str(tmp_path / "near"), "--threads", "1"]) == 0
    assert main([*words, "--out", str(tmp_path / "far"), "--backend", "triton", "--server", server.url]) == 0
    assert server.infers > 1
    for name in ("detections.csv", "detections.geojson"):
        near, far = ((tmp_path / which / name).read_bytes() for which in ("near", "far"))
        assert near == far
    assert (tmp_path / "near" / "detections.csv").read_text().count("\n") > 2


def test_the_command_ends_in_2_when_the_server_is_away(
    whole_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_tif(tmp_path / "harbor.tif", sea(64, 64, []))
    words = [
        "detect",
        str(whole_bundle),
        str(scene),
        "--out",
        str(tmp_path / "out"),
        "--backend",
        "triton",
        "--overlap-px",
        "8",
    ]
    assert main([*words, "--server", "http://nowhere.invalid"]) == IfkdError.exit_code
    assert "cannot be reached" in capsys.readouterr().err
