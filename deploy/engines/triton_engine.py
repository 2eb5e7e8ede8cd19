"""A bundle's model on a Triton Inference Server, over HTTP by the KServe protocol (version 2).

Each of two connections lives in a thread of its own, as the client may be used by one thread only; so tiles of one
batch travel while the server computes the one before.
"""

import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from itertools import cycle
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from deploy.engines.engine import Engine, EngineInfo
from export.bundle.bundle import Bundle
from export.bundle.manifest import Manifest, Precision
from export.triton.repository import SOURCE_KEY, model_name
from ifkd.core.detections import Array, Candidates
from ifkd.core.errors import BundleError, EngineError, MissingExtraError, UsageError

T = TypeVar("T")

DEFAULT_SERVER = "http://localhost:8000"
CONNECTIONS = 2
"""Requests on their way at once."""
TIMEOUT_S = 60.0
"""Longest wait for a connection, and for an answer."""
ANSWERS: dict[str, tuple[str, Any]] = {
    "boxes": ("FP32", np.float32),
    "scores": ("FP32", np.float32),
    "labels": ("INT64", np.int64),
}
"""Output -> its type in the protocol's words and in numpy's."""


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where a server is, and which of its models is meant."""

    host: str
    """Host, port and, where the server stands behind another, a path."""
    secure: bool
    model: str | None
    """None leaves the choice to the bundle and the precision."""
    version: str
    """Empty leaves the choice to the server."""

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}"


def parse_server_address(url: str) -> ServerAddress:
    """Return what a URL names: a server, or a model of it in the protocol's own words.

    Args:
        url: As `http://host:8000`, `http://host:8000/v2/models/NAME` or `http://host:8000/v2/models/NAME/versions/1`.

    Raises:
        UsageError: It is none of these.
    """
    parts = urlsplit(url)
    found = re.fullmatch(r"(?P<base>.*?)(/v2/models/(?P<model>[^/]+)(/versions/(?P<version>\d+))?)?/?", parts.path)
    if parts.scheme not in {"http", "https"} or not parts.netloc or found is None or "/v2" in found["base"]:
        raise UsageError(
            f"{url!r} is no address of a Triton server",
            expected="http://HOST:PORT, or http://HOST:PORT/v2/models/NAME for one of its models",
        )
    return ServerAddress(parts.netloc + found["base"], parts.scheme == "https", found["model"], found["version"] or "")


class TritonEngine(Engine):
    """A model that a Triton server computes. What the server says of it is held against the bundle before first use."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision = "fp32",
        server: str = DEFAULT_SERVER,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Find the bundle's model on a server.

        Args:
            bundle: Whose model it must be.
            precision: Of the model.
            server: URL of the server; by default its ONNX model of this precision, as `ifkd export --triton` names
                it, is taken. `URL/v2/models/NAME` names another, such as that of the TensorRT engines.
            timeout_s: Longest wait for a connection, and for an answer, seconds.

        Raises:
            UsageError: The URL is no such address.
            BundleError: The bundle has no such precision.
            EngineError: No server answers, or its model is absent, not ready, or not the bundle's.
            MissingExtraError: Triton's client is not installed.
        """
        address = parse_server_address(server)
        manifest = bundle.manifest
        names = bundle.find("onnx", precision)
        if not names:
            raise BundleError(
                f"{bundle.path} has no ONNX file in {precision}", hint="Export the checkpoint with this precision."
            )
        self._triton = _tritonclient()
        self._model = address.model or model_name(manifest, "onnx", precision)
        self._version, self._address, self._input = address.version, address, manifest.input.name
        self._open = [_Connection(self._triton, address, timeout_s) for _ in range(CONNECTIONS)]
        self._turn = cycle(self._open)
        try:
            found = self._ask(self._look)
            self._check_model(found, manifest, source=manifest.files[names[0]].sha256)
        except BaseException:
            self.close()
            raise
        self.info = EngineInfo(
            backend="triton",
            backend_version=found.server,
            device=f"Triton at {address}, model {self._model}, version {found.version}",
            precision=precision,
            file=names[0],
            sha256=manifest.files[names[0]].sha256,
            tile_px=manifest.input.tile_px,
            max_batch=min(manifest.input.max_batch, found.max_batch),
            candidates=manifest.outputs.candidates,
            classes=manifest.classes,
            tile_sides_px=manifest.input.tile_sides_px,
        )

    def infer_each(self, batches: Iterable[Array]) -> Iterator[Candidates]:
        """Yield the candidates of each batch, in order; the next one travels while the server computes.

        Raises:
            EngineError: A batch is not what the engine takes, or the server failed.
        """
        waiting: deque[Future[Candidates]] = deque()
        for tiles in batches:
            self._check(tiles)
            waiting.append(self._send(tiles))
            if len(waiting) == CONNECTIONS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _run(self, tiles: Array) -> Candidates:
        return self._send(tiles).result()

    def close(self) -> None:
        """End the connections; a second call does nothing."""
        for connection in self._open:
            connection.close()
        self._open = []

    # --- the conversation -------------------------------------------------------------------------------------------

    def _send(self, tiles: Array) -> "Future[Candidates]":
        if not self._open:
            raise EngineError("This engine is closed", hint="Open it again.")
        return next(self._turn).ask(lambda client: self._infer(client, tiles))

    def _ask(self, question: Callable[[Any], T]) -> T:
        return self._open[0].ask(question).result()

    def _infer(self, client: Any, tiles: Array) -> Candidates:
        """Have the server compute; called in a connection's thread."""
        given = self._triton.InferInput(self._input, list(tiles.shape), "UINT8")
        given.set_data_from_numpy(tiles, binary_data=True)
        wanted = [self._triton.InferRequestedOutput(name, binary_data=True) for name in ANSWERS]
        answer = client.infer(self._model, [given], model_version=self._version, outputs=wanted)
        k, found = self.info.candidates, {}
        shapes = {"boxes": (len(tiles), k, 4), "scores": (len(tiles), k), "labels": (len(tiles), k)}
        for name, (_, kind) in ANSWERS.items():
            value = answer.as_numpy(name)
            if value is None or value.dtype != kind or value.shape != shapes[name]:
                got = "nothing" if value is None else f"{value.dtype} {list(value.shape)}"
                raise EngineError(
                    f"Triton's model {self._model} answers otherwise than it said, in {name}",
                    got=got,
                    expected=f"{np.dtype(kind)} {list(shapes[name])}",
                )
            found[name] = value.copy()  # what the client gives is a view of the received bytes, and read-only
        return Candidates(**found)

    def _look(self, client: Any) -> "_Served":
        """Return what the server says of itself and of the model."""
        try:
            server = str(client.get_server_metadata()["version"])
            if not client.is_model_ready(self._model, self._version):
                raise self._not_ready(client)
            metadata = client.get_model_metadata(self._model, self._version)
            config = client.get_model_config(self._model, self._version)
            return _Served(
                server=server,
                version=self._version or str(metadata["versions"][-1]),
                tensors={
                    str(one["name"]): (str(one["datatype"]), [int(size) for size in one["shape"]])
                    for one in [*metadata["inputs"], *metadata["outputs"]]
                },
                max_batch=int(config["max_batch_size"]),
                source=config.get("parameters", {}).get(SOURCE_KEY, {}).get("string_value"),
            )
        except (LookupError, TypeError, AttributeError) as error:
            raise EngineError(f"What answers at {self._address} is no Triton server ({error!r})") from error

    def _not_ready(self, client: Any) -> EngineError:
        """Return why a model cannot be asked, as far as the server tells."""
        index = client.get_model_repository_index()
        versions = [one for one in index if one["name"] == self._model]
        wanted = f"version {self._version} of {self._model}" if self._version else self._model
        if not versions:
            return EngineError(
                f"Triton at {self._address} has no model {self._model}",
                got=", ".join(sorted({str(one["name"]) for one in index})) or "a server without models",
                hint="Write it with `ifkd export BUNDLE --triton DIR`, or name another: --server URL/v2/models/NAME.",
            )
        states = [" ".join(str(one[key]) for key in ("version", "state", "reason") if one.get(key)) for one in versions]
        return EngineError(
            f"Triton at {self._address} cannot run {wanted}",
            got="; ".join(states),
            expected="READY",
            hint="The server's log says more.",
        )

    def _check_model(self, found: "_Served", manifest: Manifest, *, source: str) -> None:
        """Refuse a model that is not the bundle's: by its shapes, its batches and the digest it carries."""
        k, axes = manifest.outputs.candidates, manifest.input.sizes.axes
        expected = {
            manifest.input.name: ("UINT8", [-1, 3, *axes]),
            "boxes": (ANSWERS["boxes"][0], [-1, k, 4]),
            "scores": (ANSWERS["scores"][0], [-1, k]),
            "labels": (ANSWERS["labels"][0], [-1, k]),
        }
        hint = "Write the repository anew with `ifkd export BUNDLE --triton DIR`, and let the server load it."
        if found.tensors != expected:
            raise EngineError(
                f"Triton's model {self._model} is not the bundle's: it takes and answers something else",
                got=_signature(found.tensors),
                expected=_signature(expected),
                hint=hint,
            )
        if found.source != source:
            raise EngineError(
                f"Triton's model {self._model} is not the bundle's: it comes from another ONNX file",
                got=f"sha256 {found.source}" if found.source else f"a model without the parameter {SOURCE_KEY}",
                expected=source,
                hint=hint,
            )


@dataclass(frozen=True, slots=True)
class _Served:
    """What a server says of a model."""

    server: str
    """The server's version."""
    version: str
    """The model's."""
    tensors: dict[str, tuple[str, list[int]]]
    """Input or output -> type and shape, in the protocol's words; -1 stands for the batch."""
    max_batch: int
    source: str | None
    """Digest of the ONNX file that the model says to come from."""


class _Connection:
    """A client in a thread of its own."""

    def __init__(self, triton: Any, address: ServerAddress, timeout_s: float) -> None:
        self._triton, self._address, self._timeout_s = triton, address, timeout_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="triton")
        self._own = threading.local()

    def ask(self, question: Callable[[Any], T]) -> "Future[T]":
        """Put a question to the server; its answer may raise an `EngineError`."""
        return self._thread.submit(self._put, question)

    def close(self) -> None:
        """End the connection in the thread that made it."""
        self._thread.submit(self._hang_up).result()
        self._thread.shutdown()

    def _put(self, question: Callable[[Any], T]) -> T:
        try:
            if not hasattr(self._own, "client"):
                self._own.client = self._dial()
            return question(self._own.client)
        except TimeoutError as error:
            raise EngineError(
                f"Triton at {self._address} did not answer within {self._timeout_s:g} s",
                hint="See its log and its load; smaller batches are answered sooner.",
            ) from error
        except (OSError, HTTPException) as error:
            raise EngineError(
                f"Triton at {self._address} cannot be reached ({getattr(error, 'strerror', None) or error})",
                hint="Start the server, or name its address with --server.",
            ) from error
        except (self._triton.InferenceServerException, ValueError) as error:
            raise EngineError(f"Triton at {self._address} refused or answered what is no answer ({error})") from error

    def _dial(self) -> Any:
        import gevent.ssl  # noqa: PLC0415

        secure = {"ssl": True, "ssl_context_factory": gevent.ssl.create_default_context} if self._address.secure else {}
        return self._triton.InferenceServerClient(
            self._address.host, connection_timeout=self._timeout_s, network_timeout=self._timeout_s, **secure
        )

    def _hang_up(self) -> None:
        import gevent  # noqa: PLC0415

        if hasattr(self._own, "client"):
            self._own.client.close()
        gevent.get_hub().destroy(destroy_loop=True)


def _signature(values: dict[str, tuple[str, list[int]]]) -> str:
    return ", ".join(f"{name} {kind} {shape}" for name, (kind, shape) in values.items())


def _tritonclient() -> Any:
    try:
        import tritonclient.http  # noqa: PLC0415
    except (ImportError, RuntimeError) as error:  # the latter where it is installed without its HTTP part
        raise MissingExtraError("tritonclient", extra="triton", need="The backend triton") from error
    return tritonclient.http
