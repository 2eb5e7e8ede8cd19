"""`ifkd report`: results become one report; a report.json is drawn again; or reports are compared."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.report.report import Report


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.usage = (
        "ifkd report --out DIR [--title T] [--evaluation NAME=evaluation.json ...] [--bench bench.json ...] "
        "[--parity parity.json ...] [--detection DIR ...] [--note TEXT ...]\n       ifkd report DIR/report.json\n"
        "       ifkd report compare A B ... [--limits TOML] [--out DIR]"
    )
    parser.add_argument(
        "report",
        type=Path,
        nargs="*",
        help="a report.json to draw again, where it lies or in --out; or `compare` and two or more of them, the first "
        "being the baseline: exit code 1 when a later one is worse beyond noise",
    )
    parser.add_argument(
        "--limits", type=Path, metavar="TOML", help="how much worse a figure may become (docs/reports.md lists them)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report")
    parser.add_argument("--title", default="Detector report", help="the page's title")
    parser.add_argument(
        "--evaluation", nargs="+", action="extend", default=[], metavar="NAME=PATH", help="results of `ifkd evaluate`"
    )
    parser.add_argument(
        "--bench", nargs="+", action="extend", type=Path, default=[], metavar="PATH", help="results of `ifkd bench`"
    )
    parser.add_argument(
        "--parity", nargs="+", action="extend", type=Path, default=[], metavar="PATH", help="results of `ifkd parity`"
    )
    parser.add_argument(
        "--detection", nargs="+", action="extend", type=Path, default=[], metavar="DIR", help="folders of `ifkd detect`"
    )
    parser.add_argument(
        "--note", nargs="+", action="extend", default=[], metavar="TEXT", help="what a reader must know"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Assemble or read the report, write its files and print its tables.

    Raises:
        VerdictError: The report's verdict is `failed`; its files are written all the same.
    """
    from deploy.report.page import console, write_report
    from ifkd.core.errors import VerdictError

    if options.report and str(options.report[0]) == "compare":
        return _compare(options)
    report, folder = _read(options) if options.report else _assemble(options)
    paths = write_report(report, folder)
    result = {
        "verdict": report.verdict.model_dump(mode="json"),
        "report": str(folder / "report.html"),
        "files": [str(path) for path in paths],
    }
    failed = report.verdict.status == "failed"
    if not options.json:
        print(f"{console(report)}\n\n{_places(report, folder)}")  # noqa: T201
    if failed:
        causes = "; ".join(finding.text for finding in report.verdict.findings if finding.status == "failed")
        raise VerdictError(f"{report.verdict.headline} {causes}", result=result)
    return result


def _read(options: argparse.Namespace) -> "tuple[Report, Path]":
    from deploy.accuracy.provenance import read_result
    from deploy.report.report import Report
    from ifkd.core.errors import UsageError

    if options.evaluation or options.bench or options.parity or options.detection or options.note:
        raise UsageError(
            "A report.json is drawn as it is",
            got=f"{options.report} together with parts",
            hint="Name either the report.json alone, or its parts and --out.",
        )
    if len(options.report) > 1:
        raise UsageError(
            "One report.json is drawn at a time",
            got=[str(path) for path in options.report],
            hint="To compare several, write `ifkd report compare A B`.",
        )
    path = _file_of(options.report[0])
    return read_result(path, Report), options.out or path.parent


def _file_of(path: Path) -> Path:
    return path / "report.json" if path.is_dir() else path


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    """Compare reports, write comparison.json, .md and .html into --out, and print the Markdown.

    Raises:
        VerdictError: A later report is worse than the first; the files are written all the same.
    """
    from deploy.accuracy.provenance import read_result
    from deploy.report.compare import Limits, compare, comparison_markdown
    from deploy.report.comparison_page import comparison_page
    from deploy.report.report import Report
    from ifkd.core.config import load
    from ifkd.core.errors import UsageError, VerdictError
    from ifkd.core.files import atomic_path, make_folder, write_json

    paths = [_file_of(path) for path in options.report[1:]]
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise UsageError(
            "A comparison needs two or more different reports",
            got=[str(path) for path in paths],
            expected="`ifkd report compare A B`, the baseline first",
        )
    limits = Limits() if options.limits is None else load(options.limits, Limits)
    comparison = compare({str(path): read_result(path, Report) for path in paths}, limits)
    summary = comparison_markdown(comparison)
    result = comparison.model_dump(mode="json")
    if options.out is not None:
        pages = {"comparison.md": summary, "comparison.html": comparison_page(comparison)}
        make_folder(options.out)
        write_json(options.out / "comparison.json", result)
        for name, text in pages.items():
            with atomic_path(options.out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    if not options.json:
        print(summary)  # noqa: T201
    if not comparison.passed:
        raise VerdictError(f"Worse than the baseline. {'; '.join(comparison.regressions)}", result=result)
    return result


def _assemble(options: argparse.Namespace) -> "tuple[Report, Path]":
    from deploy.accuracy.provenance import read_result
    from deploy.bench.bench import Bench
    from deploy.parity.parity import Parity
    from deploy.report.report import assemble, read_scene_run
    from ifkd.core.environment import describe
    from ifkd.core.errors import UsageError

    if options.out is None:
        raise UsageError("`ifkd report` needs --out DIR, or a report.json to draw again")
    if not (options.evaluation or options.bench or options.parity or options.detection):
        raise UsageError(
            "There is nothing to report", expected="at least one of --evaluation, --bench, --parity and --detection"
        )
    report = assemble(
        title=options.title,
        evaluations=_evaluations(options.evaluation),
        benches=[read_result(path, Bench) for path in options.bench],
        parities=[read_result(path, Parity) for path in options.parity],
        scenes=[read_scene_run(folder) for folder in options.detection],
        notes=options.note,
        environment=None if options.bench else describe(),
    )
    return report, options.out


def _evaluations(words: list[str]) -> dict[str, Any]:
    from deploy.accuracy.evaluation import Evaluation
    from deploy.accuracy.provenance import read_result
    from ifkd.core.errors import UsageError

    found: dict[str, Any] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name.strip() or not path:
            raise UsageError(
                f"--evaluation {word!r} is not NAME=PATH", expected="for example teacher=teacher/evaluation.json"
            )
        if name.strip() in found:
            raise UsageError(f"Two evaluations are called {name.strip()!r}", hint="Give each its own name.")
        found[name.strip()] = read_result(Path(path), Evaluation)
    return found


def _places(report: "Report", folder: Path) -> str:
    lines = [f"Report     {folder / 'report.html'}", f"Markdown   {folder / 'report.md'}"]
    for scene in report.scenes:
        lines += [f"Quicklook  {file}" for file in scene.files if file.endswith("quicklook.png")]
        lines += [f"GeoJSON    {file}" for file in scene.files if file.endswith(".geojson")]
    return "\n".join(lines)
