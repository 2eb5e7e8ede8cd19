"""Triton model repositories; the configurations are read by Triton's protobuf."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.engine_file import with_engine
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.cli.main import main
from export.bundle.bundle import Bundle, add_file, open_bundle, write_manifest
from export.bundle.engine_metadata import BatchProfile
from export.bundle.manifest import Manifest, Precision
from export.triton.model_config import InstanceConfig
from export.triton.repository import write_repository
from ifkd.core.errors import BundleError, OutputError
from ifkd.core.files import sha256_of

CLASSES = ("cargo ship", "tanker", "remorqueur à quai")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle with dummy files: model.onnx and model.fp16.onnx, tiles of 96 x 160 px, batches of up to 6."""
    return make_bundle(tmp_path / "bundle")


def make_bundle(folder: Path, **given: Any) -> Bundle:
    folder.mkdir()
    postprocess = {"score_threshold": 0.05, "iou_threshold": 0.5, "max_detections": 50}
    manifest: dict[str, Any] = {
        "schema_version": 2,
        "name": "harbor, winter",
        "created": "2026-01-01T00:00:00Z",
        "producer": "test",
        "provenance": {},
        "detector": {},
        "input": {"name": "tiles", "tile_px": (96, 160), "max_batch": 6},
        "outputs": {"candidates": 77},
        "classes": CLASSES,
        "category_ids": (1, 2, 3),
        "defaults": {"postprocess": postprocess, "overlap_px": 20},
        "files": {},
    }
    write_manifest(folder, Manifest.model_validate(manifest | given))
    return with_onnx(with_onnx(open_bundle(folder), "fp32"), "fp16")


def with_onnx(bundle: Bundle, precision: Precision) -> Bundle:
    name = "model.onnx" if precision == "fp32" else f"model.{precision}.onnx"
    (bundle.path / name).write_bytes(b"onnx " + precision.encode())
    return add_file(bundle, name, kind="onnx", precision=precision)


def config_of(repository: Path, model: str) -> Any:
    """Return a configuration, parsed by Triton's protobuf, which refuses unknown fields."""
    return text_format.Parse((repository / model / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig())


def type_of(tensor: Any) -> str:
    return str(model_config_pb2.DataType.Name(tensor.data_type))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_has_the_values_of_the_manifest(bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_repository(bundle, repository)
    assert sorted(path.name for path in repository.iterdir()) == [
        "harbor_winter_onnx_fp16",
        "harbor_winter_onnx_fp32",
    ]
    config = config_of(repository, "harbor_winter_onnx_fp16")
    assert (config.name, config.platform) == ("harbor_winter_onnx_fp16", "onnxruntime_onnx")
    assert (config.max_batch_size, config.default_model_filename) == (6, "model.fp16.onnx")
    assert [(one.name, type_of(one), list(one.dims)) for one in config.input] == [("tiles", "TYPE_UINT8", [3, 96, 160])]
    assert [(one.name, type_of(one), list(one.dims)) for one in config.output] == [
        ("boxes", "TYPE_FP32", [77, 4]),
        ("scores", "TYPE_FP32", [77]),
        ("labels", "TYPE_INT64", [77]),
    ]
    assert list(config.dynamic_batching.preferred_batch_size) == [6]
    assert {name: one.string_value for name, one in config.parameters.items()} == {
        "ifkd.bundle": "harbor, winter",
        "ifkd.manifest_sha256": sha256_of(bundle.path / "model.json"),
        "ifkd.precision": "fp16",
        "ifkd.onnx": "model.fp16.onnx",
        "ifkd.onnx_sha256": bundle.manifest.files["model.fp16.onnx"].sha256,
    }
    (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})


def test_the_version_contains_the_file_and_the_labels_are_the_classes(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models")
    model = tmp_path / "models" / "harbor_winter_onnx_fp32"
    assert (model / "1" / "model.onnx").read_bytes() == bundle.file("model.onnx").read_bytes()
    (labeled,) = [one for one in config_of(model.parent, model.name).output if one.label_filename]
    assert labeled.name == "labels"
    assert (model / labeled.label_filename).read_text("utf-8").splitlines() == list(CLASSES)


def test_every_model_is_warmed_up_with_its_optimal_batches(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models")
    warmups = config_of(tmp_path / "models", "harbor_winter_onnx_fp32").model_warmup
    assert [one.batch_size for one in warmups] == [1, 6]
    for one in warmups:
        tiles = one.inputs["tiles"]
        assert (type_of(tiles), list(tiles.dims), tiles.random_data) == ("TYPE_UINT8", [3, 96, 160], True)


def test_a_model_of_batch_1_has_no_dynamic_batching(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "single", input={"name": "image", "tile_px": (64, 64), "max_batch": 1})
    write_repository(bundle, tmp_path / "models")
    config = config_of(tmp_path / "models", "harbor_winter_onnx_fp32")
    assert (config.max_batch_size, config.HasField("dynamic_batching"), config.input[0].name) == (1, False, "image")
    assert [one.batch_size for one in config.model_warmup] == [1]


def test_int8_models_run_on_their_devices(bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_onnx(with_onnx(bundle, "int8"), "int8-cpu")
    write_repository(bundle, tmp_path / "models", InstanceConfig(instances=2))
    groups = {
        path.name: [(group.kind, group.count) for group in config_of(path.parent, path.name).instance_group]
        for path in (tmp_path / "models").iterdir()
    }
    gpu, cpu = model_config_pb2.ModelInstanceGroup.KIND_GPU, model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert groups == {
        "harbor_winter_onnx_fp32": [(gpu, 2)],
        "harbor_winter_onnx_fp16": [(gpu, 2)],
        "harbor_winter_onnx_int8": [(gpu, 2)],
        "harbor_winter_onnx_int8-cpu": [(cpu, 2)],
    }
    config = config_of(tmp_path / "models", "harbor_winter_onnx_int8")
    (tensorrt,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert tensorrt.name == "tensorrt"
    assert dict(tensorrt.parameters) == {
        "trt_profile_min_shapes": "tiles:1x3x96x160",
        "trt_profile_opt_shapes": "tiles:6x3x96x160",
        "trt_profile_max_shapes": "tiles:6x3x96x160",
    }


def test_a_server_without_a_gpu_gets_only_cpu_models(bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_engine(with_onnx(bundle, "int8"))
    plan = write_repository(bundle, tmp_path / "models", InstanceConfig(device="cpu"))
    assert [model.name for model in plan.models] == ["harbor_winter_onnx_fp16", "harbor_winter_onnx_fp32"]
    assert plan.skipped == {
        "model.int8.onnx": "it is made for TensorRT, which needs a GPU",
        "engines/made.engine": "engines need a GPU",
    }
    config = config_of(tmp_path / "models", "harbor_winter_onnx_fp32")
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert not config.HasField("optimization")


def test_engines_of_a_precision_are_one_model_by_compute_capability(bundle: Bundle, tmp_path: Path) -> None:
    profiles = (BatchProfile(opt=1, max=1), BatchProfile(opt=4, max=4))
    bundle = with_engine(bundle, "h100", batch_profiles=profiles)
    bundle = with_engine(bundle, "a10", device="NVIDIA A10", compute_capability="8.6", batch_profiles=profiles)
    ampere_plus = {"device": "NVIDIA L4", "compute_capability": "8.9", "compatibility": "ampere_plus"}
    bundle = with_engine(bundle, "ampere_plus", batch_profiles=profiles, **ampere_plus)
    write_repository(bundle, tmp_path / "models")
    model = tmp_path / "models" / "harbor_winter_tensorrt_fp16"
    config = config_of(model.parent, model.name)
    assert config.platform == "tensorrt_plan"
    assert dict(config.cc_model_filenames) == {"9.0": "h100.engine", "8.6": "a10.engine"}
    assert config.default_model_filename == "ampere_plus.engine"
    assert {path.name for path in (model / "1").iterdir()} == {"h100.engine", "a10.engine", "ampere_plus.engine"}
    assert (config.max_batch_size, list(config.dynamic_batching.preferred_batch_size)) == (4, [1, 4])
    (group,) = config.instance_group
    assert (group.kind, list(group.profile)) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, ["0", "1"])
    assert config.parameters["ifkd.tensorrt"].string_value == "11.4.0"
    assert config.parameters["ifkd.onnx_sha256"].string_value == bundle.manifest.files["model.fp16.onnx"].sha256


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"builder": "tensorrt_rtx", "device": "portable"}, "it is an engine of TensorRT-RTX"),
        ({"onnx_sha256": "0" * 64}, "it was built from another ONNX file than the bundle's"),
        ({"tf32": True}, "engines/first.engine is for the same GPUs"),
        (
            {"compute_capability": "8.6", "builder_version": "10.9.0"},
            "its TensorRT version, largest batch or profiles differ",
        ),
        (
            {"compute_capability": "8.6", "batch": BatchProfile(opt=2, max=2)},
            "its TensorRT version, largest batch or profiles",
        ),
    ],
)
def test_skipped_engines_have_a_reason(bundle: Bundle, tmp_path: Path, values: dict[str, Any], reason: str) -> None:
    bundle = with_engine(with_engine(bundle, "first"), "a_second" if values.get("tf32") else "second", **values)
    plan = write_repository(bundle, tmp_path / "models")
    ((name, found),) = plan.skipped.items()
    assert "second" in name
    assert reason in found
    assert dict(config_of(tmp_path / "models", "harbor_winter_tensorrt_fp16").cc_model_filenames) == {
        "9.0": "first.engine"
    }


def test_portable_engines_are_skipped(bundle: Bundle, tmp_path: Path) -> None:
    plan = write_repository(
        with_engine(bundle, builder="tensorrt_rtx", device="portable", compute_capability=None), tmp_path / "models"
    )
    assert [model.name for model in plan.models] == ["harbor_winter_onnx_fp16", "harbor_winter_onnx_fp32"]
    assert list(plan.skipped) == ["engines/made.engine"]


def test_other_models_are_kept_and_existing_ones_replaced(bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    (repository / "resnet" / "1").mkdir(parents=True)
    (repository / "resnet" / "config.pbtxt").write_text('platform: "onnxruntime_onnx"')
    write_repository(bundle, repository)
    first = tree(repository)
    (repository / "harbor_winter_onnx_fp32" / "1" / "model.old").write_bytes(b"x")
    write_repository(bundle, repository)
    assert tree(repository) == first
    assert "resnet/config.pbtxt" in first
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "models"}


def test_a_folder_of_another_model_is_refused_before_anything_is_written(bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    (repository / "harbor_winter_onnx_fp32").mkdir(parents=True)
    with pytest.raises(OutputError, match="was not written by ifkd export"):
        write_repository(bundle, repository)
    assert [path.name for path in repository.iterdir()] == ["harbor_winter_onnx_fp32"]


def test_a_model_of_another_bundle_is_not_replaced(tmp_path: Path) -> None:
    """Other characters than Triton allows are the same in the models' names."""
    ship, plane = (make_bundle(tmp_path / str(number), name=name) for number, name in enumerate(("船", "飞机")))
    repository = tmp_path / "models"
    write_repository(ship, repository)
    before = tree(repository)
    with pytest.raises(OutputError, match="is a model of another bundle: got 船, expected 飞机"):
        write_repository(plane, repository)
    assert tree(repository) == before
    write_repository(ship, repository)


def test_a_changed_file_leaves_the_repository_unchanged(bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_repository(bundle, repository)
    before = tree(repository)
    (bundle.path / "model.onnx").write_bytes(b"onnx fp33")
    with pytest.raises(BundleError, match="differs from the manifest"):
        write_repository(bundle, repository)
    assert tree(repository) == before
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "models"}


def test_a_folder_that_is_not_writable_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        write_repository(bundle, tmp_path / "file" / "models")


def test_a_bundle_is_not_exported_again(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(bundle.path), "--triton", str(tmp_path / "models")]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == [
        "harbor_winter_onnx_fp16: model.fp16.onnx",
        "harbor_winter_onnx_fp32: model.onnx",
        str(tmp_path / "models"),
    ]
    assert main([*words, "--json", "--device", "cpu"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bundle"] == str(bundle.path)
    assert result["triton"]["models"]["harbor_winter_onnx_fp32"] == ["model.onnx"]


def test_a_checkpoint_is_exported_to_a_bundle_and_a_repository(
    checkpoint_path: Path, tmp_path: Path, without_exporting: Callable[[], None]
) -> None:
    without_exporting()
    words = ["--out", str(tmp_path / "b"), "--triton", str(tmp_path / "models"), "export.precisions=['fp32']"]
    assert main(["export", str(checkpoint_path), *words]) == 0
    assert (tmp_path / "models/tiny_onnx_fp32/1/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "is a folder: expected a checkpoint, or a bundle with --screen CHECKPOINT or --triton DIR"),
        (["--triton", "m", "--out", "b"], "is exported already: got --out"),
        (["--triton", "m", "max_batch=2"], "is exported already: got max_batch=2"),
        (["--triton", "m", "--instances", "0"], "must be an integer of at least 1, got 0"),
    ],
)
def test_arguments_that_do_not_apply_to_a_bundle_are_refused(
    bundle: Bundle, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(bundle.path), *words]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


def test_a_checkpoint_needs_a_folder_for_its_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "best.safetensors"), "--triton", str(tmp_path / "m")]) == 2
    assert "Name it with --out" in capsys.readouterr().err


def test_a_bundle_without_models_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    empty = Bundle(bundle.path, bundle.manifest.model_copy(update={"files": {}}))
    with pytest.raises(BundleError, match="has no file for Triton: got no ONNX file"):
        write_repository(empty, tmp_path / "models")
