"""A Ray cluster, as a run finds it: connected or started here, its nodes looked at before any work."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from inspect import unwrap
from pathlib import Path
from typing import Any

from export.bundle.bundle import MANIFEST_NAME, Bundle
from ifkd.core.environment import usable_cores
from ifkd.core.errors import EngineError, MissingExtraError, UsageError
from ifkd.core.files import sha256_of

ADDRESS_VARIABLE = "RAY_ADDRESS"
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # actors without a GPU keep the variables they have
}
PACKAGES = ("ifkd", "numpy", "onnxruntime", "onnxruntime-gpu", "rasterio", "ray", "tensorrt")
"""What answers may depend on."""
INSPECTION_S = 120.0
CONNECTION_S = 10.0


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster."""

    identity: str
    """Ray's."""
    name: str
    cores: int
    gpus: int


@contextmanager
def connected() -> Iterator[Any]:
    """Yield ray, connected to the cluster that RAY_ADDRESS names, or to one of its own on this machine.

    Raises:
        EngineError: No cluster answers there.
        MissingExtraError: Ray is not installed.
        UsageError: The cluster's Ray or Python is another.
    """
    ray = require_ray()
    if ray.is_initialized():  # by the program that uses this one
        yield ray
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    address = os.environ.get(ADDRESS_VARIABLE)
    options: dict[str, Any] = (
        {"address": address}
        if address
        else {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False}
    )
    if address:
        _require_listener(address)
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise _no_cluster(str(address), error) from error
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        raise UsageError(
            f"The cluster's versions are not those of this machine ({' '.join(str(error).split())})",
            hint="Install the same Python and the same packages on every node.",
        ) from error
    try:
        with redirect_stdout(sys.stderr):  # what Ray says of lost workers is no result
            yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Refuse an address where nothing listens: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():  # `auto`, and what else Ray understands
        return
    try:
        socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), timeout=CONNECTION_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> EngineError:
    return EngineError(
        f"There is no Ray cluster at {address} ({error})",
        hint=f"Start it, or unset {ADDRESS_VARIABLE} to use this machine alone.",
    )


def require_ray() -> Any:
    """Return ray.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise MissingExtraError("ray", extra="ray", need="--cluster ray") from error
    return ray


def nodes_of(ray: Any) -> tuple[Node, ...]:
    """Return the machines of the cluster that live."""
    return tuple(
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def require_alike(ray: Any, nodes: tuple[Node, ...], bundle: Bundle) -> bool:
    """Refuse nodes whose versions differ from this machine's, and return whether all have the bundle at its path.

    Raises:
        EngineError: A node does not answer.
        UsageError: Versions differ.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an optional package

    look = _inspection()
    path = str(bundle.path.absolute() / MANIFEST_NAME)
    asked = ray.remote(look)
    answers = [
        asked.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.identity, soft=False)).remote(
            path, PACKAGES
        )
        for node in nodes
    ]
    try:
        reports = ray.get(answers, timeout=INSPECTION_S)
    except ray.exceptions.RayError as error:
        said = str(error).strip().partition("\n")[0]
        raise EngineError(
            f"The nodes of the cluster do not answer ({type(error).__name__}: {said})",
            hint="Look at `ray status`, and at the nodes' logs.",
        ) from error
    mine = versions_here(path)
    differences = [
        f"{name} {mine.get(name, 'absent')} here, {report.get(name, 'absent')} on {node.name}"
        for node, (report, _) in zip(nodes, reports, strict=True)
        for name in sorted({*mine, *report})
        if mine.get(name) != report.get(name)
    ]
    if differences:
        raise UsageError(
            "The cluster's versions are not those of this machine",
            got="; ".join(differences),
            hint="Install the same Python and the same packages on every node.",
        )
    digest = sha256_of(Path(path))
    return all(found == digest for _, found in reports)


def versions_here(path: str) -> dict[str, str]:
    """Return the versions of this machine that must be those of every node."""
    return _inspection()(path, PACKAGES)[0]


def _inspection() -> Any:
    """Return the function that looks at a node; it travels as it is, so that a node without ifkd can run it."""

    def look(manifest: str, packages: tuple[str, ...]) -> tuple[dict[str, str], str | None]:
        import hashlib  # noqa: PLC0415 - what it needs it brings along
        import importlib.metadata  # noqa: PLC0415
        import importlib.util  # noqa: PLC0415
        import pathlib  # noqa: PLC0415
        import platform  # noqa: PLC0415

        versions = {"python": platform.python_version()}
        for name in packages:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        source = hashlib.sha256()
        for package in ("ifkd", "export", "deploy"):
            spec = importlib.util.find_spec(package)
            if spec is not None and spec.origin:
                root = pathlib.Path(spec.origin).parent
                for file in sorted(root.rglob("*.py")):
                    source.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
        versions["source of ifkd"] = source.hexdigest()[:12]
        path = pathlib.Path(manifest)
        return versions, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    return unwrap(look)  # a checker of types, which may be around it, cannot travel
