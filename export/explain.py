"""The builds of `ifkd engine` as command lines of NVIDIA's own programs, to check or repeat them without ours."""

import shlex
from pathlib import Path

from export.bundle import Bundle
from export.engine_build import LARGEST_OPTIMAL_BATCH, onnx_of
from export.manifest import Precision
from export.sidecar import BuildOptions

COMPATIBILITY = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
"""Our name of a hardware compatibility -> trtexec's."""


def command_lines(bundle: Bundle, precision: Precision, options: BuildOptions) -> list[str]:
    """Return two command lines for a bundle's ONNX file: a build by trtexec, and a comparison by polygraphy.

    Neither names a precision: the file states it, and networks are strongly typed.

    Raises:
        BundleError: The bundle has no such file, or it was changed.
    """
    path = onnx_of(bundle, precision)
    source, largest = str(path), bundle.manifest.input.max_batch
    opt = min(options.opt_batch or LARGEST_OPTIMAL_BATCH, largest)
    height, width = bundle.manifest.input.tile_px
    name = bundle.manifest.input.name
    shapes = {
        kind: f"{name}:{batch}x3x{height}x{width}" for kind, batch in (("min", 1), ("opt", opt), ("max", largest))
    }
    trtexec = ["trtexec", f"--onnx={source}", f"--saveEngine={Path(source).with_suffix('.engine')}", "--stronglyTyped"]
    trtexec += [f"--{kind}Shapes={shape}" for kind, shape in shapes.items()] if largest > 1 else []
    trtexec += [f"--memPoolSize=workspace:{options.workspace_mib}M", f"--builderOptimizationLevel={options.level}"]
    trtexec += [] if options.tf32 else ["--noTF32"]
    trtexec += ["--profilingVerbosity=detailed", "--dumpLayerInfo"]
    if options.compatibility != "none":
        trtexec.append(f"--hardwareCompatibilityLevel={COMPATIBILITY[options.compatibility]}")
    if options.timing_cache is not None:
        trtexec.append(f"--timingCacheFile={options.timing_cache}")
    polygraphy = ["polygraphy", "run", source, "--onnxrt", "--trt"]
    dimensions = {
        kind: f"{name}:[{batch},3,{height},{width}]" for kind, batch in (("min", 1), ("opt", opt), ("max", largest))
    }
    for kind, shape in dimensions.items() if largest > 1 else ():
        polygraphy += [f"--trt-{kind}-shapes", shape]
    polygraphy += ["--builder-optimization-level", str(options.level), *(["--tf32"] if options.tf32 else [])]
    polygraphy += ["--input-shapes", f"{name}:[{opt},3,{height},{width}]"]
    return [shlex.join(trtexec), shlex.join(polygraphy)]
