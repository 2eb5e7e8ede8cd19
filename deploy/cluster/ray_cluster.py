"""Connect to a Ray cluster or start one, and check that its nodes have the same versions as this machine."""

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
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no usage report
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # actors without a GPU keep CUDA_VISIBLE_DEVICES
}
PACKAGES = ("ifkd", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "rasterio", "ray", "tensorrt")
"""Packages whose versions may affect the results."""
SAME_VERSIONS = "Install the same Python and the same packages on every node."
INSPECTION_TIMEOUT_S = 120.0
CONNECTION_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster."""

    node_id: str
    name: str
    cores: int
    gpus: int


@contextmanager
def connected() -> Iterator[Any]:
    """Yield ray, connected to the cluster of RAY_ADDRESS, or to a new one on this machine.

    Raises:
        EngineError: There is no cluster at the address.
        MissingExtraError: Ray is not installed.
        UsageError: The cluster has another version of Ray or Python.
    """
    ray = require_ray()
    if ray.is_initialized():  # by the calling program
        yield ray
        return
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = os.environ.get(ADDRESS_VARIABLE)
    if address:
        _require_listener(address)
    local: dict[str, Any] = {} if address else {"num_cpus": usable_cores(), "include_dashboard": False}
    try:
        ray.init(address=address or "local", **local, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise _no_cluster(str(address), error) from error
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        problem = f"The cluster's versions differ from those of this machine ({' '.join(str(error).split())})"
        raise UsageError(problem, hint=SAME_VERSIONS) from error
    try:
        with redirect_stdout(sys.stderr):  # Ray prints messages about lost workers to stdout
            yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Refuse an address where nothing listens: Ray would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():  # `auto` and other special addresses of Ray
        return
    try:
        connection = (host.removeprefix("ray://").strip("[]"), int(port))
        socket.create_connection(connection, timeout=CONNECTION_TIMEOUT_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> EngineError:
    hint = f"Start it, or unset {ADDRESS_VARIABLE} to use only this machine."
    return EngineError(f"There is no Ray cluster at {address} ({error})", hint=hint)


def require_ray() -> Any:
    """Return the module ray.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise MissingExtraError("ray", extra="ray", need="--cluster ray") from error
    return ray


def nodes_of(ray: Any) -> tuple[Node, ...]:
    """Return the running nodes of the cluster."""
    alive = [(node, node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return tuple(
        Node(node["NodeID"], node["NodeManagerHostname"], int(counts.get("CPU", 0)), int(counts.get("GPU", 0)))
        for node, counts in alive
    )


def check_nodes(ray: Any, nodes: tuple[Node, ...], bundle: Bundle) -> bool:
    """Refuse nodes whose versions differ from this machine's, and return whether all have the bundle at its path.

    Raises:
        EngineError: A node does not respond.
        UsageError: Versions differ.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415 - an optional package

    path = str(bundle.path.absolute() / MANIFEST_NAME)
    inspect = ray.remote(_inspection())
    strategies = [NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes]
    pending = [inspect.options(num_cpus=0, scheduling_strategy=one).remote(path, PACKAGES) for one in strategies]
    try:
        reports = ray.get(pending, timeout=INSPECTION_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        first_line = str(error).strip().partition("\n")[0]
        problem = f"The nodes of the cluster do not respond ({type(error).__name__}: {first_line})"
        raise EngineError(problem, hint="Check `ray status` and the logs of the nodes.") from error
    local = local_versions(path)
    mismatches = [
        f"{name} {local.get(name, 'absent')} here, {versions.get(name, 'absent')} on {node.name}"
        for node, (versions, _) in zip(nodes, reports, strict=True)
        for name in sorted({*local, *versions})
        if local.get(name) != versions.get(name)
    ]
    if mismatches:
        problem = "The cluster's versions differ from those of this machine"
        raise UsageError(problem, got="; ".join(mismatches), hint=SAME_VERSIONS)
    digest = sha256_of(Path(path))
    return all(found == digest for _, found in reports)


def local_versions(path: str) -> dict[str, str]:
    """Return the versions on this machine, with which those of the nodes are compared."""
    return _inspection()(path, PACKAGES)[0]


def _inspection() -> Any:
    """Return the function that inspects a node. It is sent by value, so it runs on nodes without ifkd."""

    def inspect(manifest: str, packages: tuple[str, ...]) -> tuple[dict[str, str], str | None]:
        import hashlib  # noqa: PLC0415 - a function that is sent by value imports its modules itself
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

    return unwrap(inspect)  # a type checker's wrapper cannot be sent
