"""An engine file in a bundle."""

from typing import Any

from export.bundle.bundle import Bundle, add_file
from export.bundle.engine_metadata import BatchProfile, DeliveredPrecision, EngineMetadata, engine_metadata_path
from ifkd.core.files import sha256_of, write_json


def with_engine(bundle: Bundle, name: str = "made", *, plan: bytes = b"", **values: Any) -> Bundle:
    """Add an FP16 engine for an H100 to a bundle, with the given metadata; by default its content is a dummy."""
    path = bundle.path / "engines" / f"{name}.engine"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plan or b"plan " + name.encode())
    metadata: dict[str, Any] = {
        "device": "NVIDIA H100 80GB HBM3",
        "compute_capability": "9.0",
        "driver_cuda": "12.4",
        "builder": "tensorrt",
        "builder_version": "11.4.0",
        "onnx_file": "model.fp16.onnx",
        "onnx_sha256": bundle.manifest.files["model.fp16.onnx"].sha256,
        "engine_sha256": sha256_of(path),
        "engine_bytes": path.stat().st_size,
        "batch": BatchProfile(opt=4, max=4),
        "tile_px": (64, 64),
        "workspace_mib": 64,
        "tf32": False,
        "build_seconds": 1.0,
        "requested_precision": "fp16",
        "delivered_precision": DeliveredPrecision(weight_types={"FLOAT16": 1}, size_ratio=1.0),
    }
    write_json(engine_metadata_path(path), EngineMetadata(**{**metadata, **values}).model_dump(mode="json"))
    bundle = add_file(bundle, f"engines/{name}.engine", kind="engine", precision="fp16")
    return add_file(bundle, f"engines/{name}.json", kind="engine-metadata", precision="fp16")
