"""The benchmark for GPUs runs on the CPU: all its cells, and none of them where there is no time."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, words)])
    return gpu.main()


def sections(path: Path) -> dict[str, dict[str, Any]]:
    return dict(json.loads(path.read_text())["sections"])


def test_all_cells_are_measured_on_the_cpu(
    whole_bundle: Path, stand_in_libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)  # a folder is not TensorRT
    assert run(monkeypatch, whole_bundle, "--smoke", "--stand-in", stand_in_libraries, "--out", out) == 0
    found = sections(out)
    assert list(found) == list(gpu.SHARES)
    for cell in found["stand-in"].values():
        assert cell["result"]["bindings"]
    assert found["stand-in"]["20 random shapes"]["result"]["batches"] == 20
    assert {name: len(rates) for name, rates in found["stand-in"]["overlap"]["result"]["tiles_per_s"].items()} == {
        "infer": 3, "infer_each": 3,
    }  # fmt: skip
    assert list(found["latency"]) == ["fp32 batch 1", "fp16 batch 1"]
    for cell in found["latency"].values():
        assert set(cell["result"]) == {"engine", "no graphs", "default options"}
        for variant in cell["result"].values():
            assert variant["per_batch"]["p50_ms"] > 0
            assert len(variant["windows_ns"]) == 3
    for cell in found["pipeline"].values():
        assert {name: len(rates) for name, rates in cell["result"].items()} == {"infer": 3, "infer_each": 3}
    assert found["shapes"]["20 batches"]["result"]["batches"] == 20
    for cell in found["topk"].values():
        assert set(cell["result"]) == {"one axis", "best class first"}
    (steps,) = found["training"].values()
    assert all(one["p50_ms"] > 0 for one in steps["result"].values())
    assert [cell["result"]["exit_code"] for cell in (*found["parity"].values(), *found["scene"].values())] == [0, 0, 0]
    assert found["scene"]["ifkd detect fp16"]["result"]["gpu_busy"]["mean"] is None


def test_tiles_of_several_sizes_are_among_the_random_shapes(
    free_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[int, ...]] = set()
    original = gpu.OnnxRuntimeEngine.infer

    def infer(engine: Any, tiles: Any) -> Any:
        seen.add(tiles.shape[2:])
        return original(engine, tiles)

    monkeypatch.setattr(gpu.OnnxRuntimeEngine, "infer", infer)
    words = argparse.Namespace(
        bundle=free_bundle, data=None, scene=None, smoke=True, out=tmp_path / "x", minutes=9.0, stand_in=None
    )
    with contextlib.closing(gpu.Run(words)) as measured:
        assert gpu.random_shapes(measured)["batches"] == 20
    assert len(seen) > 5
    assert all(32 <= side <= 128 for shape in seen for side in shape)


def test_without_time_each_cell_says_so(whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    words = ("--smoke", "--minutes", "0", "--data", "absent.json", "--scene", "absent.tif", "--out", out)
    assert run(monkeypatch, whole_bundle, *words) == 0
    cells = [cell for section in sections(out).values() for cell in section.values()]
    assert cells == [{"skipped": "no time left"}] * 15


def test_a_cell_that_fails_states_the_reason_and_the_others_run(
    whole_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image")

    out = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "variants_in_turns", fail)
    monkeypatch.setattr(gpu, "stand_in", lambda _: iter(()))
    for cell in ("tiles_per_second", "topk_in_turns", "training_steps", "ifkd"):
        monkeypatch.setattr(gpu, cell, lambda *_: {})
    assert run(monkeypatch, whole_bundle, "--smoke", "--out", out) == 1
    found = sections(out)
    assert {json.dumps(cell) for cell in found["latency"].values()} == {'{"failed": "RuntimeError: no kernel image"}'}
    assert "result" in found["shapes"]["20 batches"]
