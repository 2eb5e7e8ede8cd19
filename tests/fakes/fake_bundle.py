"""A bundle whose files are opened as fake engines, and functions for tests of commands."""

import deploy.accuracy.evaluated_model
import deploy.bench.bench
from deploy.cli.main import main
from export.bundle.bundle import record_file, write_manifest
from export.bundle.manifest import Defaults, InputSpec, Manifest, OutputSpec
from fakes import drifting_engine as fake
from fakes import report_inputs as parts
from ifkd.core.postprocess import PostprocessConfig

FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}
QUICK = ["--seconds", "1e-9", "--samples", "3", "--rounds", "3"]


def install_fake_bundle(tmp_path, monkeypatch):
    """Write a bundle of placeholder files into the working directory, and open drifting fake engines for them."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for precision, name in FILES.items():
        (folder / name).write_bytes(precision.encode())
    records = {name: record_file(folder, name, kind="onnx", precision=key) for key, name in FILES.items()}
    manifest = Manifest(
        name="squares",
        created="2026-11-20T10:00:00Z",
        producer="test",
        provenance={"notes": ["Random encoder."]},
        detector={"family": "retinanet", "backbone": "resnet18"},
        input=InputSpec(tile_px=(fake.TILE, fake.TILE), max_batch=4),
        outputs=OutputSpec(candidates=64),
        classes=fake.CLASSES,
        category_ids=(1, 2, 3),
        defaults=Defaults(postprocess=PostprocessConfig(), overlap_px=24),
        files=records,
    )
    write_manifest(folder, manifest)
    drifts = {}

    def open_fake(_, *, backend="onnxruntime", precision="fp32", threads=None, server=None):
        file = FILES[precision] if backend != "torch" else "model.safetensors"
        sha256 = records[file].sha256 if file in records else "4" * 64
        computed = "fp32" if precision == "fp16" else None  # as ONNX Runtime on a CPU
        names = {"backend": backend, "precision": precision, "file": file, "sha256": sha256}
        engine = fake.make_engine(**names, compute_type=computed)
        return fake.DriftingEngine(engine, drifts.get(precision, lambda candidates: candidates))

    monkeypatch.setattr(deploy.accuracy.evaluated_model, "open_engine", open_fake)
    monkeypatch.setattr(deploy.bench.bench, "measure_process_cost", lambda *_, **__: parts.process_cost(3.0))
    monkeypatch.chdir(tmp_path)
    open_fake.drifts = drifts
    return open_fake


def darken(candidates):
    candidates.scores[:] *= 0.9
    return candidates


def run_command(capsys, *words):
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def error_line(err):
    """Return the line of the error; the lines before it are progress bars."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    assert len(lines) == 1
    return lines[0]


def blind(candidates):
    candidates.scores[:] = 0
    return candidates


class Failing:
    """Candidates pass unchanged for some calls; then the error is raised."""

    def __init__(self, calls, error):
        self.left, self.error = calls, error

    def __call__(self, candidates):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return candidates
