"""`ifkd engine`: engines from a bundle's ONNX files."""

import argparse
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument(
        "--builder",
        choices=["tensorrt-rtx", "tensorrt"],
        default="tensorrt-rtx",
        help="tensorrt-rtx builds portable engines, without a GPU; tensorrt builds for the GPU here (tensorrt-rtx)",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=["fp32", "fp16", "int8"],
        help="which ONNX files (all the bundle has but int8-cpu, which TensorRT does not read)",
    )
    parser.add_argument(
        "--workspace-mib", type=_positive, default=4096, metavar="N", help="memory the builder may plan with (4096)"
    )
    parser.add_argument("--tf32", action="store_true", help="let FP32 engines round to TF32: faster, not quite FP32")
    parser.add_argument(
        "--opt-batch",
        type=_positive,
        nargs="+",
        default=[],
        metavar="N",
        help="batches to tune for, one profile each (the largest, at most 8)",
    )
    parser.add_argument(
        "--optimization-level", type=int, choices=range(6), default=3, help="how long kernels are searched for (3)"
    )
    parser.add_argument(
        "--compatibility",
        choices=["none", "ampere_plus", "same_compute_capability"],
        default="none",
        help="GPUs besides this one that the engine shall run on; for tensorrt (none)",
    )
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="timings kept between builds; for tensorrt")
    parser.add_argument(
        "--print-commands",
        action="store_true",
        help="build nothing; print the same builds as trtexec and polygraphy commands",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Build, and say what came of it."""
    from export.bundle.bundle import open_bundle
    from export.bundle.engine_metadata import BuildOptions
    from export.tensorrt.build import add_engine
    from export.tensorrt.trtexec_commands import command_lines

    bundle = open_bundle(options.bundle)
    have = [bundle.manifest.files[name].precision for name in bundle.find("onnx")]
    precisions = options.precision or [one for one in have if one != "int8-cpu"]
    build_options = BuildOptions(
        opt_batch=tuple(options.opt_batch),
        workspace_mib=options.workspace_mib,
        level=options.optimization_level,
        tf32=options.tf32,
        compatibility=options.compatibility,
        timing_cache=options.timing_cache,
    )
    if options.print_commands:
        lines = {one: command_lines(bundle, one, build_options) for one in sorted(set(precisions))}
        if not options.json:
            print("\n\n".join(line for pair in lines.values() for line in pair))  # noqa: T201
        return {"bundle": str(bundle.path), "commands": lines}
    built: dict[str, Any] = {}
    for precision in sorted(set(precisions), key=precisions.index):
        bundle, name, sidecar = add_engine(
            bundle,
            builder=options.builder.replace("-", "_"),
            precision=precision,
            options=build_options,
        )
        built[name] = sidecar.model_dump(mode="json")
        if not options.json:
            print(  # noqa: T201
                f"{precision}: {sidecar.engine_bytes / 1e6:.1f} MB in {sidecar.build_seconds:.1f} s, "
                f"batch 1 to {sidecar.batch.max}, for {sidecar.device}\n{bundle.path / name}"
            )
    return {"bundle": str(bundle.path), "engines": built}


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
