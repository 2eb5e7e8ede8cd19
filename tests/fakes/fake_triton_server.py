"""A stand-in for the Triton Inference Server: the KServe protocol, version 2, over HTTP with binary tensors.

It reads a model repository as Triton does: configurations by Triton's own protobuf, ONNX files by ONNX Runtime, whose
signature must be what the configuration says, and warm-ups before a model is ready. Engines it cannot run.
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
WORDS = {"TYPE_UINT8": ("UINT8", np.uint8), "TYPE_FP32": ("FP32", np.float32), "TYPE_INT64": ("INT64", np.int64)}
ONNX_TYPES = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)"}
HEADER = "Inference-Header-Content-Length"


class RefusedError(Exception):
    """What Triton answers with status 400."""


@dataclass
class Model:
    """A model of the repository."""

    config: Any
    reason: str = ""
    """Why it is not ready."""
    session: Any = None

    def tensors(self, which: str) -> list[dict[str, Any]]:
        return [
            {"name": one.name, "datatype": self.words(one)[0], "shape": [-1, *one.dims]}
            for one in getattr(self.config, which)
        ]

    @staticmethod
    def words(tensor: Any) -> tuple[str, Any]:
        return WORDS[model_config_pb2.DataType.Name(tensor.data_type)]

    def run(self, tiles: np.ndarray, outputs: list[str]) -> list[np.ndarray]:
        (given,) = self.config.input
        if not 1 <= len(tiles) <= self.config.max_batch_size:
            raise RefusedError(f"batch-size must be <= {self.config.max_batch_size} for '{self.config.name}'")
        if list(tiles.shape[1:]) != list(given.dims):
            raise RefusedError(f"unexpected shape for input '{given.name}' for model '{self.config.name}'")
        return self.session.run(outputs, {given.name: tiles})


def parse_config(path: Path) -> Any:
    """Read a config.pbtxt as Triton does: a field that its protobuf does not know is an error."""
    return text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())


def load_model(folder: Path) -> Model:
    """Load a model's newest version, and warm it up."""
    config = parse_config(folder / "config.pbtxt")
    assert config.name == folder.name
    version = max((one for one in folder.iterdir() if one.is_dir()), key=lambda one: int(one.name))
    for output in config.output:
        assert not output.label_filename or (folder / output.label_filename).is_file()
    for name in [config.default_model_filename, *config.cc_model_filenames.values()]:
        assert not name or (version / name).is_file(), name
    if config.platform != "onnxruntime_onnx":
        return Model(config, reason="no GPU with this compute capability")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(version / config.default_model_filename), options)
    for told, known in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        expected = {
            one.name: (ONNX_TYPES[model_config_pb2.DataType.Name(one.data_type)], list(one.dims)) for one in told
        }
        assert expected == {one.name: (one.type, list(one.shape[1:])) for one in known}
    model = Model(config, session=session)
    for sample in config.model_warmup:
        (tiles,) = sample.inputs.values()
        noise = np.random.default_rng(0).integers(0, 256, (sample.batch_size, *tiles.dims), np.uint8)
        model.run(noise, [one.name for one in config.output])
    return model


@dataclass
class Server:
    """A running server; `before` is called with the path of every request and may raise or wait."""

    models: dict[str, Model]
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
                return self.tell(name, version[-1] if version and version[-1] in {"ready", "config"} else "")
            case ["v2", "models", name, "versions", version, *_]:
                raise RefusedError(f"Request for unknown model: '{name}' version {version} is not found")
        raise RefusedError("Not Found")

    def tell(self, name: str, what: str) -> Any:
        if name not in self.models:
            raise RefusedError(f"Request for unknown model: '{name}' is not found")
        model = self.models[name]
        if what == "ready":
            if model.reason:
                raise RefusedError(model.reason)
            return {}
        if what == "config":
            return json_format.MessageToDict(model.config, preserving_proto_field_name=True)
        told = {"inputs": model.tensors("input"), "outputs": model.tensors("output")}
        return {"name": name, "versions": ["1"], "platform": model.config.platform, **told}

    def index(self) -> list[dict[str, str]]:
        return [
            {"name": name, "version": "1", "state": "UNAVAILABLE" if one.reason else "READY", "reason": one.reason}
            for name, one in self.models.items()
        ]

    def infer(self, path: str, body: bytes, header_bytes: int) -> tuple[bytes, int]:
        """Answer a request in which all tensors are binary, in the same manner."""
        name = unquote(path.strip("/").split("/")[2])
        self.tell(name, "ready")
        request = json.loads(body[:header_bytes])
        (given,) = request["inputs"]
        assert given["parameters"]["binary_data_size"] == len(body) - header_bytes
        assert all(one["parameters"]["binary_data"] for one in request["outputs"])
        model = self.models[name]
        datatype, kind = model.words(model.config.input[0])
        if given["datatype"] != datatype:
            raise RefusedError(f"inference input '{given['name']}' data-type is '{given['datatype']}'")
        tiles = np.frombuffer(body[header_bytes:], kind).reshape(given["shape"])
        names = [one["name"] for one in request["outputs"]]
        values = model.run(tiles, names)
        outputs = [
            {
                "name": name,
                "datatype": next(words for words, kind in WORDS.values() if kind == value.dtype),
                "shape": list(value.shape),
                "parameters": {"binary_data_size": value.nbytes},
            }
            for name, value in zip(names, values, strict=True)
        ]
        with self.lock:
            self.infers += 1
        head = json.dumps({"model_name": name, "model_version": "1", "outputs": outputs}).encode()
        return head + b"".join(value.tobytes() for value in values), len(head)


def handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(lambda: (json.dumps(server.get(self.path)).encode(), None))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v2/repository/index":
                self.answer(lambda: (json.dumps(server.index()).encode(), None))
            else:
                self.answer(lambda: server.infer(self.path, body, int(self.headers[HEADER])))

        def answer(self, work: Callable[[], tuple[bytes, int | None]]) -> None:
            status, header_bytes = 200, None
            try:
                server.before(self.path)
                content, header_bytes = work()
            except RefusedError as error:
                status, content = 400, json.dumps({"error": str(error)}).encode()
            except ConnectionAbortedError:  # the server dies in the middle
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            if header_bytes is not None:
                self.send_header(HEADER, str(header_bytes))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: Any) -> None:  # noqa: A002 - http.server's name
            """Say nothing."""

    return Handler


@contextmanager
def serve(repository: Path) -> Iterator[Server]:
    """Serve a repository from a thread."""
    server = Server({folder.name: load_model(folder) for folder in sorted(repository.iterdir()) if folder.is_dir()})
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
