"""A fake Triton Inference Server: the KServe protocol, version 2, over HTTP with binary tensors.

It reads a model repository as Triton does: configurations with Triton's protobuf, and ONNX files with ONNX Runtime,
whose signature must equal the configuration; a model is warmed up before it is ready. It cannot run TensorRT engines.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import onnxruntime
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

VERSION = "2.60.0"
DATATYPES = {"TYPE_UINT8": ("UINT8", np.uint8), "TYPE_FP32": ("FP32", np.float32), "TYPE_INT64": ("INT64", np.int64)}
ONNX_TYPES = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)"}
HEADER = "Inference-Header-Content-Length"


class FakeTritonError(Exception):
    """An error that is sent with status 400."""


@dataclass
class FakeTritonModel:
    """A model of the repository."""

    config: Any
    reason: str = ""
    """Reason why the model is not ready; empty for a ready model."""
    session: Any = None

    def tensors(self, which: str) -> list[dict[str, Any]]:
        return [
            {"name": one.name, "datatype": self.datatype_of(one)[0], "shape": [-1, *one.dims]}
            for one in getattr(self.config, which)
        ]

    @staticmethod
    def datatype_of(tensor: Any) -> tuple[str, Any]:
        return DATATYPES[model_config_pb2.DataType.Name(tensor.data_type)]

    def run(self, tiles: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        (given,) = self.config.input
        if not 1 <= len(tiles) <= self.config.max_batch_size:
            raise FakeTritonError(f"batch-size must be <= {self.config.max_batch_size} for '{self.config.name}'")
        if list(tiles.shape[1:]) != list(given.dims):
            raise FakeTritonError(f"unexpected shape for input '{given.name}' for model '{self.config.name}'")
        return self.session.run(outputs, {given.name: tiles})


def parse_config(path: Path) -> Any:
    """Parse a config.pbtxt as Triton does: an unknown field is an error."""
    return text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())


def load_model(folder: Path) -> FakeTritonModel:
    """Load the latest version of a model, and warm it up."""
    config = parse_config(folder / "config.pbtxt")
    assert config.name == folder.name
    version = max((one for one in folder.iterdir() if one.is_dir()), key=lambda one: int(one.name))
    for output in config.output:
        assert not output.label_filename or (folder / output.label_filename).is_file()
    for name in [config.default_model_filename, *config.cc_model_filenames.values()]:
        assert not name or (version / name).is_file(), name
    if config.platform != "onnxruntime_onnx":
        return FakeTritonModel(config, reason="no GPU with this compute capability")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(version / config.default_model_filename), options)
    for configured, known in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        expected = {
            one.name: (ONNX_TYPES[model_config_pb2.DataType.Name(one.data_type)], list(one.dims)) for one in configured
        }
        assert expected == {one.name: (one.type, list(one.shape[1:])) for one in known}
    model = FakeTritonModel(config, session=session)
    for sample in config.model_warmup:
        (tiles,) = sample.inputs.values()
        noise = np.random.default_rng(0).integers(0, 256, (sample.batch_size, *tiles.dims), np.uint8)
        model.run(noise, [one.name for one in config.output])
    return model


@dataclass
class FakeTritonServer:
    """A running server; `before` is called with the path of every request and may raise or wait."""

    models: dict[str, FakeTritonModel]
    before: Callable[[str], Any] = lambda _: None
    port: int = 0
    infers: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        match [unquote(part) for part in path.strip("/").split("/")]:
            case ["v2"]:
                return {"name": "triton", "version": VERSION, "extensions": ["binary_tensor_data"]}
            case ["v2", "health", _]:
                return {}
            case ["v2", "models", name, *version] if version[:1] != ["versions"] or version[1] == "1":
                return self.describe(name, version[-1] if version and version[-1] in {"ready", "config"} else "")
            case ["v2", "models", name, "versions", version, *_]:
                raise FakeTritonError(f"Request for unknown model: '{name}' version {version} is not found")
        raise FakeTritonError("Not Found")

    def describe(self, name: str, what: str) -> Any:
        if name not in self.models:
            raise FakeTritonError(f"Request for unknown model: '{name}' is not found")
        model = self.models[name]
        if what == "ready":
            if model.reason:
                raise FakeTritonError(model.reason)
            return {}
        if what == "config":
            return json_format.MessageToDict(model.config, preserving_proto_field_name=True)
        tensors = {"inputs": model.tensors("input"), "outputs": model.tensors("output")}
        return {"name": name, "versions": ["1"], "platform": model.config.platform, **tensors}

    def index(self) -> list[dict[str, str]]:
        return [
            {"name": name, "version": "1", "state": "UNAVAILABLE" if one.reason else "READY", "reason": one.reason}
            for name, one in self.models.items()
        ]

    def infer(self, path: str, body: bytes, header_bytes: int) -> tuple[bytes, int]:
        """Return the body of a response with binary tensors, and the size of its header."""
        name = unquote(path.strip("/").split("/")[2])
        self.describe(name, "ready")
        request = json.loads(body[:header_bytes])
        (given,) = request["inputs"]
        assert given["parameters"]["binary_data_size"] == len(body) - header_bytes
        assert all(one["parameters"]["binary_data"] for one in request["outputs"])
        model = self.models[name]
        datatype, kind = model.datatype_of(model.config.input[0])
        if given["datatype"] != datatype:
            raise FakeTritonError(f"inference input '{given['name']}' data-type is '{given['datatype']}'")
        tiles = np.frombuffer(body[header_bytes:], kind).reshape(given["shape"])
        names = [one["name"] for one in request["outputs"]]
        values = model.run(tiles, names)
        outputs = [
            {
                "name": name,
                "datatype": next(datatype for datatype, kind in DATATYPES.values() if kind == value.dtype),
                "shape": list(value.shape),
                "parameters": {"binary_data_size": value.nbytes},
            }
            for name, value in zip(names, values, strict=True)
        ]
        with self.lock:
            self.infers += 1
        head = json.dumps({"model_name": name, "model_version": "1", "outputs": outputs}).encode()
        return head + b"".join(value.tobytes() for value in values), len(head)


def handler_of(server: FakeTritonServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.respond(lambda: (json.dumps(server.get(self.path)).encode(), None))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v2/repository/index":
                self.respond(lambda: (json.dumps(server.index()).encode(), None))
            else:
                self.respond(lambda: server.infer(self.path, body, int(self.headers[HEADER])))

        def respond(self, work: Callable[[], tuple[bytes, int | None]]) -> None:
            status, header_bytes = 200, None
            try:
                server.before(self.path)
                content, header_bytes = work()
            except FakeTritonError as error:
                status, content = 400, json.dumps({"error": str(error)}).encode()
            except ConnectionAbortedError:  # the server dies during the request
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if header_bytes is not None:
                self.send_header(HEADER, str(header_bytes))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: Any) -> None:  # noqa: A002 - http.server's name
            """Log nothing."""

    return Handler


@contextmanager
def serve_repository(repository: Path) -> Iterator[FakeTritonServer]:
    """Serve a repository in a thread."""
    server = FakeTritonServer(
        {folder.name: load_model(folder) for folder in sorted(repository.iterdir()) if folder.is_dir()}
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(server)) as http:
        http.daemon_threads = True
        server.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
