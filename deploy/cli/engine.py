"""`ifkd engine`: build engines from a bundle's ONNX files, those of its screen among them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deploy import cli

if TYPE_CHECKING:
    from export.bundle.manifest import Precision


class Arguments(cli.Arguments):
    """Arguments of `ifkd engine`."""

    bundle: Path
    builder: Literal["tensorrt-rtx", "tensorrt"]
    precision: "list[Precision] | None"
    workspace_mib: int
    tf32: bool
    opt_batch: list[int]
    optimization_level: int
    compatibility: Literal["none", "ampere_plus", "same_compute_capability"]
    timing_cache: Path | None
    print_commands: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `ifkd export`")
    parser.add_argument(
        "--builder",
        choices=["tensorrt-rtx", "tensorrt"],
        default="tensorrt-rtx",
        help="tensorrt-rtx builds portable engines without a GPU, tensorrt builds for the GPU of this machine "
        "(default: tensorrt-rtx)",
    )
    precisions = "precisions (default: all of the bundle but int8-cpu, which is for CPUs)"
    parser.add_argument("--precision", nargs="+", choices=["fp32", "fp16", "int8"], help=precisions)
    workspace = "limit of the workspace (default: 4096)"
    parser.add_argument("--workspace-mib", type=cli.positive_int, default=4096, metavar="N", help=workspace)
    parser.add_argument("--tf32", action="store_true", help="allow TF32 in FP32 engines: faster, less accurate")
    batches = "batch sizes to optimize for, one profile each (default: the largest, at most 8)"
    parser.add_argument("--opt-batch", type=cli.positive_int, nargs="+", default=[], metavar="N", help=batches)
    effort = "effort of the kernel search (default: 3)"
    parser.add_argument("--optimization-level", type=int, choices=range(6), default=3, help=effort)
    gpus = "other GPUs that the engine supports; for tensorrt (default: none)"
    kinds = ["none", "ampere_plus", "same_compute_capability"]
    parser.add_argument("--compatibility", choices=kinds, default="none", help=gpus)
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="timing cache to reuse; for tensorrt")
    commands = "print trtexec and polygraphy commands that repeat the builds, and build nothing"
    parser.add_argument("--print-commands", action="store_true", help=commands)


def run(arguments: Arguments) -> dict[str, Any]:
    """Build an engine of each precision, or print the commands."""
    from export.bundle.bundle import open_bundle
    from export.bundle.engine_metadata import BuildOptions
    from export.tensorrt.build import add_engine
    from export.tensorrt.trtexec_commands import command_lines
    from ifkd.core.files import require_writable

    _require_tensorrt_options(arguments)
    bundle = open_bundle(arguments.bundle)
    _require_batches(arguments.opt_batch, bundle.manifest.input.max_batch)
    available = [bundle.manifest.files[name].precision for name in bundle.find("onnx")]
    precisions = list(dict.fromkeys(arguments.precision or [one for one in available if one and one != "int8-cpu"]))
    options = BuildOptions.model_validate({name: getattr(arguments, name) for name in BuildOptions.model_fields})
    if arguments.print_commands:
        commands = {precision: command_lines(bundle, precision, options) for precision in sorted(precisions)}
        if not arguments.json:
            print("\n\n".join(line for lines in commands.values() for line in lines))  # noqa: T201
        return {"bundle": str(bundle.path), "commands": commands}
    for path in (bundle.path / "engines" / "probe", arguments.timing_cache):
        if path is not None:
            require_writable(path)  # before the builds, which take minutes
    engines: dict[str, Any] = {}
    wanted = [(precision, False) for precision in precisions]
    wanted += [(precision, True) for precision in precisions if bundle.find("screen-onnx", precision)]
    for precision, of_screen in wanted:
        builder: Any = arguments.builder.replace("-", "_")
        bundle, name, metadata = add_engine(
            bundle, builder=builder, precision=precision, options=options, of_screen=of_screen
        )
        engines[name] = metadata.model_dump(mode="json")
        part = "screen in " if of_screen else ""
        if not arguments.json:
            print(  # noqa: T201
                f"{part}{precision}: {metadata.engine_bytes / 1e6:.1f} MB in {metadata.build_seconds:.1f} s, "
                f"batch 1 to {metadata.batch.max}, for {metadata.device}\n{bundle.path / name}"
            )
    return {"bundle": str(bundle.path), "engines": engines}


def _require_tensorrt_options(arguments: Arguments) -> None:
    """Refuse options that the builder would ignore."""
    from ifkd.core.errors import UsageError

    ignored = {
        "--compatibility": arguments.compatibility != "none",
        "--timing-cache": arguments.timing_cache is not None,
    }
    names = [name for name, given in ignored.items() if given]
    if names and arguments.builder == "tensorrt-rtx" and not arguments.print_commands:
        hint = (
            "Engines of tensorrt-rtx are portable and have no timing cache; choose --builder tensorrt or leave it out."
        )
        raise UsageError(f"{' and '.join(names)} needs --builder tensorrt", got="tensorrt-rtx", hint=hint)


def _require_batches(sizes: list[int], largest: int) -> None:
    """Refuse batches that the bundle's files do not accept."""
    from ifkd.core.errors import UsageError

    if over := [size for size in sizes if size > largest]:
        hint = f"Export the bundle again with export.max_batch={max(over)}, or leave the larger ones out."
        got = " ".join(map(str, over))
        raise UsageError(
            "--opt-batch is above the bundle's largest batch", got=got, expected=f"1 to {largest}", hint=hint
        )
