"""`ifkd verify`: check that a bundle is complete and unchanged, and that its parity was computed from these files."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import cli

if TYPE_CHECKING:
    from export.bundle.verification import Verification


class Arguments(cli.Arguments):
    """Arguments of `ifkd verify`."""

    bundle: Path
    parity: list[Path]


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", type=Path, help="folder written by `ifkd export`")
    words = "results of `ifkd parity`, which must have passed with the files of this bundle"
    parser.add_argument("--parity", type=Path, nargs="+", action="extend", default=[], metavar="FILE", help=words)


def run(arguments: Arguments) -> dict[str, Any]:
    """Verify the bundle and print a summary.

    Raises:
        VerdictError: There are differences; the message lists all of them.
    """
    from export.bundle.verification import verify_bundle
    from ifkd.core.errors import VerdictError

    found = verify_bundle(arguments.bundle)
    if arguments.parity and found.name is not None:
        found = _with_parities(found, arguments)
    result = found.model_dump(mode="json")
    if found.differences:
        count = "1 difference" if len(found.differences) == 1 else f"{len(found.differences)} differences"
        lines = "\n  ".join([f"{arguments.bundle} has {count} from its records:", *found.differences])
        raise VerdictError(lines, result=result)
    if not arguments.json:
        print("\n".join(_summary(found)))  # noqa: T201
    return result


def _with_parities(found: "Verification", arguments: Arguments) -> "Verification":
    """Add the results of `ifkd parity` to a verification."""
    from deploy.accuracy.provenance import read_result
    from deploy.parity.parity_result import Parity, differences_from
    from export.bundle.bundle import open_bundle

    files = open_bundle(arguments.bundle).manifest.files
    evidence, differences = dict(found.evidence), list(found.differences)
    for path in arguments.parity:
        parity = read_result(path, Parity, command="ifkd parity")
        data = f"{parity.data.images} images with {parity.data.objects} objects"
        evidence[str(path)] = f"parity on {data} {parity.verdict}"
        differences += [f"{path}: {one}" for one in differences_from(parity, files)]
    return found.model_copy(update={"evidence": evidence, "differences": tuple(differences)})


def _summary(found: "Verification") -> list[str]:
    head = f"{found.name}: {found.files} files, {found.bytes / 1e6:.1f} MB, all as in the manifest"
    lines = [f"{name}: {words}" for name, words in found.evidence.items()]
    return [head, *lines, f"Verified: {found.bundle}, manifest sha256 {found.manifest_sha256}"]
