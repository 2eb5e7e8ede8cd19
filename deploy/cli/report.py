"""`ifkd report`: render results as a report, render a report.json again, or compare reports."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy import cli

if TYPE_CHECKING:
    from deploy.accuracy.evaluation import Evaluation
    from deploy.report.report import Report


class Arguments(cli.Arguments):
    """Arguments of `ifkd report`."""

    report: list[Path]
    limits: Path | None
    out: Path | None
    title: str
    evaluation: list[str]
    bench: list[Path]
    parity: list[Path]
    detection: list[Path]
    note: list[str]
    model_card: Path | None


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.usage = (
        "ifkd report --out DIR [--title T] [--evaluation NAME=evaluation.json ...] [--bench bench.json ...] "
        "[--parity parity.json ...] [--detection DIR ...] [--note TEXT ...] "
        "[--model-card BUNDLE]\n       ifkd report DIR/report.json [--model-card BUNDLE]\n"
        "       ifkd report compare A B ... [--limits TOML] [--out DIR]"
    )
    compare = "`compare` and two or more of them, the baseline first: exit code 1 for a regression"
    words = f"a report.json to render again, in its folder or in --out; or {compare}"
    parser.add_argument("report", type=Path, nargs="*", help=words)
    words = "limits of a regression (default: those in docs/reports.md)"
    parser.add_argument("--limits", type=Path, metavar="TOML", help=words)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the report")
    parser.add_argument("--title", default="Detector report", help="title of the report")
    several: tuple[tuple[str, type[Any], str, str], ...] = (
        ("--evaluation", str, "NAME=PATH", "results of `ifkd evaluate`"),
        ("--bench", Path, "PATH", "results of `ifkd bench`"),
        ("--parity", Path, "PATH", "results of `ifkd parity`"),
        ("--detection", Path, "DIR", "output folders of `ifkd detect`"),
        ("--note", str, "TEXT", "notes on the figures"),
    )
    for option, kind, metavar, words in several:
        parser.add_argument(option, nargs="+", action="extend", type=kind, default=[], metavar=metavar, help=words)
    words = "bundle whose files were measured: write the results into its model card"
    parser.add_argument("--model-card", type=Path, metavar="BUNDLE", help=words)


def run(arguments: Arguments) -> dict[str, Any]:
    """Render or compare reports, and print a summary.

    Raises:
        VerdictError: The verdict of the report is `failed`, or there is a regression; the files are written.
    """
    if arguments.report and str(arguments.report[0]) == "compare":
        return _compare(arguments)
    return _render(arguments)


def _render(arguments: Arguments) -> dict[str, Any]:
    from deploy.report.card_summary import open_measured_bundle, summarize
    from deploy.report.page import console, write_report
    from export.bundle.description import CARD_NAME, describe
    from ifkd.core.errors import VerdictError

    report, folder = _read(arguments) if arguments.report else _assemble(arguments)
    bundle = None if arguments.model_card is None else open_measured_bundle(arguments.model_card, report)
    paths = write_report(report, folder)
    if bundle is not None:
        describe(bundle, report=summarize(report, bundle, report_path=folder / "report.json"))
        paths.append(bundle.path / CARD_NAME)
    result = {
        "verdict": report.verdict.model_dump(mode="json"),
        "report": str(folder / "report.html"),
        "files": [str(path) for path in paths],
    }
    if not arguments.json:
        print(f"{console(report)}\n\n{_file_list(report, folder, arguments.model_card)}")  # noqa: T201
    if report.verdict.status == "failed":
        causes = "; ".join(reason.text for reason in report.verdict.reasons if reason.status == "failed")
        raise VerdictError(f"{report.verdict.headline} {causes}", result=result)
    return result


def _read(arguments: Arguments) -> "tuple[Report, Path]":
    from ifkd.core.errors import UsageError

    if arguments.evaluation or arguments.bench or arguments.parity or arguments.detection or arguments.note:
        hint = "Name either the report.json alone, or all results and --out."
        raise UsageError("A report.json is rendered unchanged", got="results or notes to add to it", hint=hint)
    if len(arguments.report) > 1:
        got, hint = ", ".join(map(str, arguments.report)), "To compare reports, run `ifkd report compare A B`."
        raise UsageError("Only one report.json is rendered at a time", got=got, hint=hint)
    path = _report_path(arguments.report[0])
    return _read_report(path), arguments.out or path.parent


def _report_path(path: Path) -> Path:
    return path / "report.json" if path.is_dir() else path


def _read_report(path: Path) -> "Report":
    from deploy.accuracy.provenance import read_result
    from deploy.report.report import Report

    return read_result(path, Report, command="ifkd report --out DIR")


def _assemble(arguments: Arguments) -> "tuple[Report, Path]":
    from deploy.accuracy.provenance import read_result
    from deploy.bench.bench_result import Bench
    from deploy.parity.parity_result import Parity
    from deploy.report.report import assemble
    from deploy.report.reported_scene import read_scene_run
    from ifkd.core.environment import describe_environment
    from ifkd.core.errors import UsageError

    if arguments.out is None:
        raise UsageError("`ifkd report` needs --out DIR, or a report.json to render again")
    if not (arguments.evaluation or arguments.bench or arguments.parity or arguments.detection):
        raise UsageError("There are no results to report", expected="--evaluation, --bench, --parity or --detection")
    report = assemble(
        title=arguments.title,
        evaluations=_read_evaluations(arguments.evaluation),
        benches=[read_result(path, Bench, command="ifkd bench") for path in arguments.bench],
        parities=[read_result(path, Parity, command="ifkd parity") for path in arguments.parity],
        scenes=[read_scene_run(folder) for folder in arguments.detection],
        notes=arguments.note,
        environment=None if arguments.bench else describe_environment(),
    )
    return report, arguments.out


def _read_evaluations(named_paths: list[str]) -> "dict[str, Evaluation]":
    from deploy.accuracy.evaluation import Evaluation
    from deploy.accuracy.provenance import read_result
    from ifkd.core.errors import UsageError

    found: dict[str, Evaluation] = {}
    for word in named_paths:
        name, equals, path = (part.strip() for part in word.partition("="))
        if not equals or not name or not path:
            example = "for example teacher=teacher/evaluation.json"
            raise UsageError(f"--evaluation {word!r} is not NAME=PATH", expected=example)
        if name in found:
            raise UsageError(f"Two evaluations have the name {name!r}", hint="Give each its own name.")
        found[name] = read_result(Path(path), Evaluation, command="ifkd evaluate")
    return found


def _compare(arguments: Arguments) -> dict[str, Any]:
    from deploy.report.compare import RegressionLimits, compare
    from deploy.report.comparison_page import comparison_markdown, comparison_page
    from ifkd.core.config import load
    from ifkd.core.errors import UsageError, VerdictError
    from ifkd.core.files import write_json, write_text

    if arguments.model_card is not None:
        raise UsageError("--model-card needs one report, not a comparison", hint="Run `ifkd report DIR/report.json`.")
    paths = [_report_path(path) for path in arguments.report[1:]]
    if len(paths) < 2 or len(set(paths)) < len(paths):
        got, expected = ", ".join(map(str, paths)) or "none", "`ifkd report compare A B`, the baseline first"
        raise UsageError("A comparison needs two or more different reports", got=got, expected=expected)
    limits = RegressionLimits() if arguments.limits is None else load(arguments.limits, RegressionLimits)
    comparison = compare({str(path): _read_report(path) for path in paths}, limits)
    markdown = comparison_markdown(comparison)
    result = comparison.model_dump(mode="json")
    if arguments.out is not None:
        pages = {"comparison.md": markdown, "comparison.html": comparison_page(comparison)}
        write_json(arguments.out / "comparison.json", result)
        for name, text in pages.items():
            write_text(arguments.out / name, text)
    if not arguments.json:
        print(markdown)  # noqa: T201
    if not comparison.passed:
        raise VerdictError(f"Worse than the baseline. {'; '.join(comparison.regressions)}", result=result)
    return result


def _file_list(report: "Report", folder: Path, bundle: Path | None) -> str:
    lines = [f"Report     {folder / 'report.html'}", f"Markdown   {folder / 'report.md'}"]
    lines += [] if bundle is None else [f"Model card {bundle / 'README.md'}"]
    for scene in report.scenes:
        lines += [f"Quicklook  {file}" for file in scene.files if file.endswith("quicklook.png")]
        lines += [f"GeoJSON    {file}" for file in scene.files if file.endswith(".geojson")]
    return "\n".join(lines)
