"""Triton engine: a bundle's model on a Triton Inference Server, over HTTP by the KServe protocol (version 2).

There are two connections, each in its own thread, as a client is bound to one thread. So one batch is transferred while
the server computes the other.
"""

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from itertools import cycle
from typing import Any, TypeVar
from urllib.parse import urlsplit

from deploy.engines.engine import OUTPUT_DTYPES, Engine, EngineInfo, output_shapes
from export.bundle.bundle import Bundle
from export.bundle.manifest import Manifest, Precision
from export.triton.model_config import SOURCE_KEY, model_name
from ifkd.core.detections import Array, Candidates
from ifkd.core.errors import BundleError, EngineError, MissingExtraError, UsageError

T = TypeVar("T")
Signature = dict[str, tuple[str, list[int]]]
"""Tensor name -> KServe datatype and shape; -1 is the batch."""

DEFAULT_SERVER = "http://localhost:8000"
CONNECTIONS = 2
TIMEOUT_S = 60.0
"""Timeout of a connection attempt and of a response."""
KSERVE_TYPES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Address of a server and, optionally, of one of its models."""

    host: str
    """Host, port and, behind a proxy, a path."""
    secure: bool
    model: str | None
    """None for the model of the bundle and precision."""
    version: str
    """Empty for the version that the server chooses."""

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}"


def parse_server_address(url: str) -> ServerAddress:
    """Parse the URL of a server, or of a model on it: `http://host:8000/v2/models/NAME/versions/1`, or without version.

    Raises:
        UsageError: The URL has none of these forms.
    """
    parts = urlsplit(url)
    found = re.fullmatch(r"(?P<base>.*?)(/v2/models/(?P<model>[^/]+)(/versions/(?P<version>\d+))?)?/?", parts.path)
    if parts.scheme not in {"http", "https"} or not parts.netloc or found is None or "/v2" in found["base"]:
        expected = "http://HOST:PORT, or http://HOST:PORT/v2/models/NAME for one of its models"
        raise UsageError(f"{url!r} is not the address of a Triton server", expected=expected)
    return ServerAddress(parts.netloc + found["base"], parts.scheme == "https", found["model"], found["version"] or "")


class TritonEngine(Engine):
    """A model on a Triton server. Its metadata is compared with the bundle before the first inference."""

    overlaps_batches = True

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision = "fp32",
        server: str = DEFAULT_SERVER,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Connect to the bundle's model on a server.

        By default, the server's ONNX model of this precision is used, under the name that `ifkd export --triton` gives
        it; `URL/v2/models/NAME` selects another model of the bundle, such as a TensorRT model.

        Raises:
            UsageError: The URL is invalid.
            BundleError: The bundle has no ONNX file of this precision.
            EngineError: The server is unreachable, or its model is missing, not ready, or from another bundle.
            MissingExtraError: The Triton client is not installed.
        """
        address = parse_server_address(server)
        manifest = bundle.manifest
        names = bundle.find("onnx", precision)
        if not names:
            hint = "Export the checkpoint with this precision."
            raise BundleError(f"{bundle.path} has no ONNX file in {precision}", hint=hint)
        self._triton = _tritonclient()
        self._model = address.model or model_name(manifest, "onnx", precision)
        self._version, self._address, self._input = address.version, address, manifest.input.name
        self._connections = [_Connection(self._triton, address, timeout_s) for _ in range(CONNECTIONS)]
        self._next_connection = cycle(self._connections)
        try:
            read_info = partial(self._read_info, manifest=manifest, file=names[0])
            self.info = self._connections[0].submit(read_info).result()
        except BaseException:
            self.close()
            raise

    def _run_each(self, batches: Iterable[Array]) -> Generator[Candidates, None, None]:
        """Yield the candidates of each batch, in order; the next batch is sent while the server computes."""
        pending: deque[Future[Candidates]] = deque()
        for tiles in batches:
            self._check(tiles)
            pending.append(self._submit(tiles))
            if len(pending) == CONNECTIONS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _run(self, tiles: Array) -> Candidates:
        return self._submit(tiles).result()

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        for connection in self._connections:
            connection.close()
        self._connections = []

    def _submit(self, tiles: Array) -> "Future[Candidates]":
        if not self._connections:
            raise self._closed_error()
        return next(self._next_connection).submit(lambda client: self._request(client, tiles))

    def _request(self, client: Any, tiles: Array) -> Candidates:
        """Send an inference request; runs in a connection's thread."""
        tensor = self._triton.InferInput(self._input, list(tiles.shape), "UINT8")
        tensor.set_data_from_numpy(tiles, binary_data=True)
        shapes = self.info.output_shapes(len(tiles))
        requested = [self._triton.InferRequestedOutput(name, binary_data=True) for name in shapes]
        response = client.infer(self._model, [tensor], model_version=self._version, outputs=requested)
        outputs = []
        for name, shape in shapes.items():
            value, dtype = response.as_numpy(name), OUTPUT_DTYPES[name]
            if value is None or value.dtype != dtype or value.shape != shape:
                problem = f"The output {name} of Triton's model {self._model} differs from its metadata"
                got = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
                raise EngineError(problem, got=got, expected=f"{dtype} {list(shape)}")
            outputs.append(value.copy())  # the client returns a read-only view of the received bytes
        return Candidates(*outputs)

    def _read_info(self, client: Any, *, manifest: Manifest, file: str) -> EngineInfo:
        """Return the description of the model after comparing it with the bundle; runs in a connection's thread."""
        try:
            server_version = str(client.get_server_metadata()["version"])
            if not client.is_model_ready(self._model, self._version):
                raise self._not_ready(client)
            metadata = client.get_model_metadata(self._model, self._version)
            config = client.get_model_config(self._model, self._version)
            version = self._version or str(metadata["versions"][-1])
            tensors = {
                str(tensor["name"]): (str(tensor["datatype"]), [int(size) for size in tensor["shape"]])
                for tensor in [*metadata["inputs"], *metadata["outputs"]]
            }
            max_batch = int(config["max_batch_size"])
            source = config.get("parameters", {}).get(SOURCE_KEY, {}).get("string_value")
        except (LookupError, TypeError, AttributeError) as error:
            raise EngineError(f"The server at {self._address} is not a Triton server ({error!r})") from error
        self._check_model(tensors, source, manifest=manifest, file=file)
        return EngineInfo.of_file(
            manifest,
            file,
            backend="triton",
            version=server_version,
            device=f"Triton at {self._address}, model {self._model}, version {version}",
            max_batch=min(manifest.input.max_batch, max_batch),
        )

    def _not_ready(self, client: Any) -> EngineError:
        """Return an error with the reason why the model is not ready, as far as the server reports it."""
        index = client.get_model_repository_index()
        versions = [entry for entry in index if entry["name"] == self._model]
        model = f"version {self._version} of {self._model}" if self._version else self._model
        if not versions:
            return EngineError(
                f"Triton at {self._address} has no model {self._model}",
                got=", ".join(sorted({str(entry["name"]) for entry in index})) or "a server without models",
                hint="Write it with `ifkd export BUNDLE --triton DIR`, or name another: --server URL/v2/models/NAME.",
            )
        keys = ("version", "state", "reason")
        states = "; ".join(" ".join(str(entry[key]) for key in keys if entry.get(key)) for entry in versions)
        problem, hint = f"Triton at {self._address} cannot run {model}", "The server's log has the details."
        return EngineError(problem, got=states, expected="READY", hint=hint)

    def _check_model(self, tensors: Signature, source: str | None, *, manifest: Manifest, file: str) -> None:
        """Refuse a model of another bundle, by its tensors and the digest `source` of its ONNX file."""
        shapes = output_shapes(manifest.outputs.candidates, -1, oriented=manifest.outputs.oriented)
        expected: Signature = {
            manifest.input.name: ("UINT8", [-1, 3, *manifest.input.sizes.axes]),
            **{name: (KSERVE_TYPES[OUTPUT_DTYPES[name].name], list(shape)) for name, shape in shapes.items()},
        }
        hint = "Write the repository again with `ifkd export BUNDLE --triton DIR`, and let the server load it."
        problem = f"Triton's model {self._model} is not the bundle's"
        if tensors != expected:
            found, wanted = _format_signature(tensors), _format_signature(expected)
            raise EngineError(f"{problem}: its inputs or outputs differ", got=found, expected=wanted, hint=hint)
        digest = manifest.files[file].sha256
        if source != digest:
            got = f"sha256 {source}" if source else f"a model without the parameter {SOURCE_KEY}"
            raise EngineError(f"{problem}: it comes from another ONNX file", got=got, expected=digest, hint=hint)


class _Connection:
    """A client in its own thread."""

    def __init__(self, triton: Any, address: ServerAddress, timeout_s: float) -> None:
        self._triton, self._address, self._timeout_s = triton, address, timeout_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="triton")
        self._client: Any = None

    def submit(self, request: Callable[[Any], T]) -> "Future[T]":
        """Run a request with the client; the future may raise an `EngineError`."""
        return self._thread.submit(self._execute, request)

    def close(self) -> None:
        """Close the client in the thread that created it."""
        self._thread.submit(self._disconnect).result()
        self._thread.shutdown()

    def _execute(self, request: Callable[[Any], T]) -> T:
        server = f"Triton at {self._address}"
        try:
            if self._client is None:
                self._client = self._connect()
            return request(self._client)
        except TimeoutError as error:
            hint = "Check its log and its load, or use smaller batches."
            raise EngineError(f"{server} did not respond within {self._timeout_s:g} s", hint=hint) from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or error
            hint = "Start the server, or set its address with --server."
            raise EngineError(f"{server} cannot be reached ({reason})", hint=hint) from error
        except (self._triton.InferenceServerException, ValueError) as error:
            raise EngineError(f"{server} refused the request or sent an invalid response ({error})") from error

    def _connect(self) -> Any:
        import gevent.ssl  # noqa: PLC0415

        secure = {"ssl": True, "ssl_context_factory": gevent.ssl.create_default_context} if self._address.secure else {}
        return self._triton.InferenceServerClient(
            self._address.host, connection_timeout=self._timeout_s, network_timeout=self._timeout_s, **secure
        )

    def _disconnect(self) -> None:
        import gevent  # noqa: PLC0415

        if self._client is not None:
            self._client.close()
        gevent.get_hub().destroy(destroy_loop=True)


def _format_signature(tensors: Signature) -> str:
    return ", ".join(f"{name} {kind} {shape}" for name, (kind, shape) in tensors.items())


def _tritonclient() -> Any:
    try:
        import tritonclient.http  # noqa: PLC0415
    except (ImportError, RuntimeError) as error:  # RuntimeError: installed without its HTTP part
        raise MissingExtraError("tritonclient", extra="triton", need="The backend triton") from error
    return tritonclient.http
