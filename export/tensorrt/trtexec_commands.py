"""The builds of `ifkd engine` as command lines of NVIDIA's own programs, to check or repeat them without ours."""

import shlex
from pathlib import Path

from export.bundle.bundle import Bundle
from export.bundle.engine_metadata import BuildOptions
from export.bundle.manifest import Precision
from export.tensorrt.build import batch_profiles, onnx_of

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
    sizes = bundle.manifest.input.sizes
    name = bundle.manifest.input.name
    profiles = batch_profiles(options.opt_batch, largest)
    trtexec = ["trtexec", f"--onnx={source}", f"--saveEngine={Path(source).with_suffix('.engine')}", "--stronglyTyped"]
    polygraphy = ["polygraphy", "run", source, "--onnxrt", "--trt"]
    for number, profile in enumerate(profiles if largest > 1 or sizes.side_range else ()):
        trtexec += [f"--profile={number}"] if len(profiles) > 1 else []
        for kind, batch, (height, width) in (
            ("min", profile.min, sizes.smallest),
            ("opt", profile.opt, sizes.opt),
            ("max", profile.max, sizes.largest),
        ):
            trtexec.append(f"--{kind}Shapes={name}:{batch}x3x{height}x{width}")
            polygraphy += [f"--trt-{kind}-shapes", f"{name}:[{batch},3,{height},{width}]"]
    trtexec += [f"--memPoolSize=workspace:{options.workspace_mib}M", f"--builderOptimizationLevel={options.level}"]
    trtexec += [] if options.tf32 else ["--noTF32"]
    trtexec += ["--profilingVerbosity=detailed", "--dumpLayerInfo"]
    if options.compatibility != "none":
        trtexec.append(f"--hardwareCompatibilityLevel={COMPATIBILITY[options.compatibility]}")
    if options.timing_cache is not None:
        trtexec.append(f"--timingCacheFile={options.timing_cache}")
    polygraphy += ["--builder-optimization-level", str(options.level), *(["--tf32"] if options.tf32 else [])]
    polygraphy += ["--input-shapes", f"{name}:[{profiles[-1].opt},3,{sizes.opt[0]},{sizes.opt[1]}]"]
    return [shlex.join(trtexec), shlex.join(polygraphy)]
