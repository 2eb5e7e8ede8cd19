"""Command lines of trtexec and polygraphy that repeat the builds of `ifkd engine`."""

import shlex

from export.bundle.bundle import Bundle
from export.bundle.engine_metadata import BuildOptions
from export.bundle.manifest import Precision
from export.tensorrt.builder_config import batch_profiles

COMPATIBILITY = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}
"""Hardware compatibility -> its name in trtexec."""


def command_lines(bundle: Bundle, precision: Precision, options: BuildOptions) -> list[str]:
    """Return two command lines for a bundle's ONNX file: a build by trtexec, and a comparison by polygraphy.

    The commands have no precision flags, because networks are strongly typed by the ONNX file.

    Raises:
        BundleError: The ONNX file is missing, or its digest differs.
    """
    source, inputs = bundle.file(bundle.onnx_name(precision)), bundle.manifest.input
    name, sizes = inputs.name, inputs.sizes
    profiles = batch_profiles(options.opt_batch, inputs.max_batch)
    trtexec = ["trtexec", f"--onnx={source}", f"--saveEngine={source.with_suffix('.engine')}", "--stronglyTyped"]
    polygraphy = ["polygraphy", "run", str(source), "--onnxrt", "--trt"]
    for number, profile in enumerate(profiles if inputs.max_batch > 1 or sizes.side_range else ()):
        trtexec += [f"--profile={number}"] if len(profiles) > 1 else []
        batches = (profile.min, profile.opt, profile.max)
        shapes = zip(("min", "opt", "max"), batches, (sizes.smallest, sizes.opt, sizes.largest), strict=True)
        for kind, batch, (height, width) in shapes:
            trtexec.append(f"--{kind}Shapes={name}:{batch}x3x{height}x{width}")
            polygraphy += [f"--trt-{kind}-shapes", f"{name}:[{batch},3,{height},{width}]"]
    level = options.optimization_level
    trtexec += [f"--memPoolSize=workspace:{options.workspace_mib}M", f"--builderOptimizationLevel={level}"]
    trtexec += [] if options.tf32 else ["--noTF32"]
    trtexec += ["--profilingVerbosity=detailed", "--dumpLayerInfo"]
    if options.compatibility != "none":
        trtexec.append(f"--hardwareCompatibilityLevel={COMPATIBILITY[options.compatibility]}")
    if options.timing_cache is not None:
        trtexec.append(f"--timingCacheFile={options.timing_cache}")
    polygraphy += ["--builder-optimization-level", str(level), *(["--tf32"] if options.tf32 else [])]
    polygraphy += ["--input-shapes", f"{name}:[{profiles[-1].opt},3,{sizes.opt[0]},{sizes.opt[1]}]"]
    return [shlex.join(trtexec), shlex.join(polygraphy)]
