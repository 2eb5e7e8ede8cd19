"""The choice of an engine file by its metadata, on machines with several kinds of GPUs."""

import sys
from pathlib import Path
from typing import Any

import pytest
from fakes.engine_file import with_engine

import deploy.engines.engine_choice as choice
from deploy.engines.engine_choice import find_engine
from export.bundle.bundle import Bundle, open_bundle, record_file
from export.tensorrt.tensorrt_api import Gpu
from ifkd.core.errors import BundleError, EngineError

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0", "12.9")
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "13.0")
A10, A40 = Gpu("NVIDIA A10", "8.6", "13.0"), Gpu("NVIDIA A40", "8.6", "13.0")
L4, T4 = Gpu("NVIDIA L4", "8.9", "13.0"), Gpu("NVIDIA T4", "7.5", "13.0")
ON_A10 = {"device": A10.name, "compute_capability": A10.capability}
PORTABLE = {"device": "portable", "compute_capability": None, "builder": "tensorrt_rtx", "builder_version": "1.7.1"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT 11.4.0 and TensorRT-RTX 1.7.1 seem to be installed."""
    versions = {"tensorrt": "11.4.0", "tensorrt_rtx": "1.7.1"}
    monkeypatch.setattr(choice, "load_tensorrt", lambda builder: (object(), versions[builder]))


def test_a_bundle_without_engines_says_how_to_build_one(whole_bundle: Path) -> None:
    with pytest.raises(
        EngineError, match=r"No fp16 engine .* Build one on this machine: ifkd engine .* --builder tensorrt"
    ):
        find_engine(open_bundle(whole_bundle), precision="fp16", gpu=H100)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"device": "NVIDIA A100"}, r"built for NVIDIA A100 \(9\.0\), this GPU is NVIDIA H100"),
        ({"compute_capability": "8.0"}, r"\(8\.0\), this GPU is NVIDIA H100 80GB HBM3 \(9\.0\)"),
        ({"builder_version": "10.13.3"}, r"built by tensorrt 10\.13\.3, installed is 11\.4\.0"),
        ({"driver_cuda": "13.0"}, r"built with a driver for CUDA 13\.0, this driver supports 12\.9"),
        ({"onnx_sha256": "0" * 64}, "built from another ONNX file"),
        ({"engine_sha256": "0" * 64}, "its metadata describes another file"),
        (
            PORTABLE,
            r"portable engines need compute capability 8\.0, 8\.6, 8\.9, 12\.0 and later, this GPU is NVIDIA H100",
        ),
    ],
)
@pytest.mark.usefixtures("installed")
def test_an_engine_that_does_not_fit_is_refused_by_its_metadata(
    bundle_copy: Bundle, values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(EngineError, match=reason):
        find_engine(with_engine(bundle_copy, **values), precision="fp16", gpu=H100)


@pytest.mark.usefixtures("installed")
def test_of_two_engines_that_fit_the_one_for_this_gpu_is_taken(bundle_copy: Bundle) -> None:
    bundle = with_engine(bundle_copy, "a_portable", **PORTABLE)
    assert find_engine(bundle, precision="fp16", gpu=RTX_4090).name == "engines/a_portable.engine"
    bundle = with_engine(bundle, "b_own", device=RTX_4090.name, compute_capability=RTX_4090.capability)
    assert find_engine(bundle, precision="fp16", gpu=RTX_4090).name == "engines/b_own.engine"


def test_a_runtime_that_is_absent_is_one_of_the_reasons(bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"made\.engine: .*needs the package tensorrt"):
        find_engine(with_engine(bundle_copy), precision="fp16", gpu=H100)


@pytest.mark.usefixtures("installed")
def test_changed_metadata_is_refused(bundle_copy: Bundle) -> None:
    bundle = with_engine(bundle_copy)
    path = bundle.path / "engines" / "made.json"
    path.write_text(path.read_text().replace("H100", "H200"))
    with pytest.raises(BundleError, match="differs from the manifest"):
        find_engine(bundle, precision="fp16", gpu=H100)


@pytest.mark.parametrize(
    ("compatibility", "fitting"),
    [
        ("none", {A10.name}),
        ("same_compute_capability", {A10.name, A40.name}),
        ("ampere_plus", {A10.name, A40.name, L4.name, H100.name, RTX_4090.name}),
    ],
)
@pytest.mark.usefixtures("installed")
def test_an_engine_runs_on_the_gpus_that_it_was_built_to_be_compatible_with(
    bundle_copy: Bundle, compatibility: str, fitting: set[str]
) -> None:
    bundle = with_engine(bundle_copy, **ON_A10, compatibility=compatibility)
    for gpu in (A10, A40, L4, T4, H100, RTX_4090):
        if gpu.name in fitting:
            assert find_engine(bundle, precision="fp16", gpu=gpu).name == "engines/made.engine"
        else:
            with pytest.raises(
                EngineError, match=rf"it was built for .*8\.\d.*, this GPU is {gpu.name} \({gpu.capability}\)"
            ):
                find_engine(bundle, precision="fp16", gpu=gpu)


@pytest.mark.usefixtures("installed")
def test_of_several_engines_that_fit_the_one_for_the_fewest_gpus_is_taken(bundle_copy: Bundle) -> None:
    names = ["a_portable", "b_ampere", "c_capability", "d_own"]
    bundle = with_engine(bundle_copy, names[0], **PORTABLE)
    bundle = with_engine(bundle, names[1], **ON_A10, compatibility="ampere_plus")
    bundle = with_engine(bundle, names[2], **ON_A10, compatibility="same_compute_capability")
    bundle = with_engine(bundle, names[3], device=A40.name, compute_capability=A40.capability)
    found = {gpu.name: find_engine(bundle, precision="fp16", gpu=gpu).name for gpu in (A40, A10, L4, H100)}
    chosen = {A40.name: names[3], A10.name: names[2], L4.name: names[1], H100.name: names[1]}
    assert found == {gpu: f"engines/{name}.engine" for gpu, name in chosen.items()}


@pytest.mark.usefixtures("installed")
def test_an_engine_with_tf32_is_taken_only_where_no_other_fits(bundle_copy: Bundle) -> None:
    bundle = with_engine(bundle_copy, "a-tf32", **ON_A10, tf32=True)
    assert find_engine(bundle, precision="fp16", gpu=A10).name == "engines/a-tf32.engine"
    bundle = with_engine(bundle, "b", **ON_A10, compatibility="ampere_plus")
    assert find_engine(bundle, precision="fp16", gpu=A10).name == "engines/b.engine"


def test_no_runtime_is_imported_for_an_engine_of_another_gpu(
    bundle_copy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = []

    def load(builder: str) -> tuple[object, str]:
        imported.append(builder)
        return object(), "1.7.1"

    monkeypatch.setattr(choice, "load_tensorrt", load)
    bundle = with_engine(with_engine(bundle_copy, "for_h100"), "portable", **PORTABLE)
    assert find_engine(bundle, precision="fp16", gpu=L4).name == "engines/portable.engine"
    assert imported == ["tensorrt_rtx"]


@pytest.mark.usefixtures("installed")
def test_an_engine_of_another_precision_s_onnx_file_is_refused(bundle_copy: Bundle) -> None:
    sha256 = bundle_copy.manifest.files["model.onnx"].sha256
    with pytest.raises(EngineError, match="built from another ONNX file than the bundle's fp16 file"):
        find_engine(with_engine(bundle_copy, onnx_sha256=sha256), precision="fp16", gpu=H100)


@pytest.mark.usefixtures("installed")
def test_an_unknown_compatibility_is_invalid_metadata(bundle_copy: Bundle) -> None:
    bundle = with_engine(bundle_copy)
    path = bundle.path / "engines" / "made.json"
    path.write_text(path.read_text().replace('"compatibility": "none"', '"compatibility": "turing_plus"'))
    record = record_file(bundle.path, "engines/made.json", kind="engine-metadata", precision="fp16")
    bundle.manifest.files["engines/made.json"] = record
    with pytest.raises(BundleError, match="compatibility"):
        find_engine(bundle, precision="fp16", gpu=H100)
