"""`btray bench`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from btray.cli.predict import find_images
from btray.cli.progress import counting
from btray.cli.runs import Format, Output, print_json
from btray.errors import CheckFailed, UserError

if TYPE_CHECKING:
    from btray.serve.load import Plan, Sample, Step
    from btray.serve.load_clients import Client

app = typer.Typer(no_args_is_help=True, help="Measure.")


@app.callback()
def bench() -> None:
    """Measure a server."""


@app.command()
def serve(
    url: Annotated[
        str,
        typer.Argument(
            help="Where it is: http://HOST:PORT, which means /v1/classify there; "
            "with --grpc HOST:PORT.",
            metavar="URL",
        ),
    ],
    connections: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10000,
            help="Connections that ask on and on; with --rate or --step, the most open at once. "
            "By default 32, and 1024.",
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Open loop: requests a second on average, come what may.", metavar="R"
        ),
    ] = None,
    step: Annotated[
        str | None,
        typer.Option(
            help="Open loop in steps, such as 5:10,50:20,0:30: requests a second, for seconds.",
            metavar="RATE:SECONDS,…",
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds that are measured; by default 30.")
    ] = None,
    warmup: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds before, not counted; 0 also measures a server's cold start."
        ),
    ] = 2.0,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds until a request is an error.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the arrivals in an open loop.")] = 0,
    images: Annotated[
        list[str] | None,
        typer.Option(
            help="Image, folder or glob to send, again and again; may be given several times. "
            "By default eight drawings of 256 by 256 pixels, whose answers mean nothing.",
            metavar="PATH",
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(envvar="BTRAY_KEY", help="API key, if the server wants one.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask; by default the first.")] = None,
    grpc: Annotated[
        bool, typer.Option("--grpc", help="Ask btray.v1.Classifier/Classify over gRPC.")
    ] = False,
    ca: Annotated[
        Path | None, typer.Option(help="Certificate to trust, in PEM, for https.")
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help="Exit with code 3 if any is so: p50, p90, p95, p99, p99.9, mean, max in ms or s, "
            "errors as a count or in %, rate of answers a second.",
            metavar="'p99>50ms,errors>0.5%'",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for load.json, latency.png and timeline.png.")
    ] = None,
    output: Output = Format.table,
) -> None:
    """Put load on a server and say how it bears it.

    By default a closed loop: each connection asks again once it is answered. With --rate or
    --step requests come at random (Poisson), and latency counts from when they were due, so a
    server that stalls cannot hide whom it kept waiting. Latencies are of answered requests;
    errors are counted apart, by reason.
    """
    from btray.serve.load_report import parse_checks, summarise, write

    plan = _plan(connections, rate, step, duration, warmup, timeout, seed)
    checks = parse_checks(fail_on or "")
    client = _client(grpc, url, images or [], key, model, ca)
    samples = _run(client, plan)
    summary = summarise(client.url, plan, samples)
    if output is Format.json:
        print_json(summary)
    else:
        _print(summary)
    if out is not None:
        from btray.serve.load_report import measured

        for path in write(out, summary, measured(plan, samples)):
            typer.echo(str(path), err=output is Format.json)
    findings = [found for check in checks if (found := check.finding(summary))]
    if findings:
        raise CheckFailed("; ".join(findings))
    if not summary["answered"]:
        raise typer.Exit(1)


def _plan(
    connections: int | None,
    rate: float | None,
    step: str | None,
    duration: float | None,
    warmup: float,
    timeout: float,
    seed: int,
) -> "Plan":
    """Return what the options ask for.

    Raises:
        UserError: they contradict each other.

    """
    from btray.serve.load import Plan, Step

    if step is not None and (rate is not None or duration is not None):
        raise UserError("--step says rates and seconds itself; leave out --rate and --duration")
    seconds = 30.0 if duration is None else duration
    if step is None and rate is None:
        return Plan(connections or 32, seconds, (), warmup, timeout, seed)
    steps = (Step(rate, seconds),) if rate is not None else _steps(step or "")
    return Plan.open_loop(
        steps, connections=connections or 1024, warmup=warmup, timeout=timeout, seed=seed
    )


def _steps(text: str) -> "tuple[Step, ...]":
    """Read `RATE:SECONDS,…`.

    Raises:
        UserError: it is not that.

    """
    from btray.serve.load import Step

    try:
        pairs = [tuple(map(float, part.split(":"))) for part in text.split(",")]
        steps = tuple(Step(rate, seconds) for rate, seconds in pairs)
    except ValueError:
        steps = ()
    if not steps or not all(0 <= step.rate < 1e6 and 0 < step.seconds < 1e6 for step in steps):
        raise UserError(f"--step: {text!r}; write it like 5:10,50:20, requests a second:seconds")
    return steps


def _client(
    grpc: bool,
    url: str,
    paths: list[str],
    key: str | None,
    model: str | None,
    ca: Path | None,
) -> "Client":
    from btray.serve.load_clients import GrpcClient, HttpClient
    from btray.serve.load_images import draw_images, read_images

    contents = read_images(find_images(paths)) if paths else draw_images()
    kind = GrpcClient if grpc else HttpClient
    return kind(url, contents, key, model, ca)


def _run(client: "Client", plan: "Plan") -> "list[Sample]":
    from btray.serve.load import run_load

    with counting(f"Asking {client.url}: seconds") as report:
        return run_load(client, plan, report)


def _print(summary: Mapping[str, Any]) -> None:
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print(_table(summary))
    for remark in _remarks(summary):
        console.print(remark)


def _table(summary: Mapping[str, Any]) -> Table:
    table = Table("what", "value", title=summary["url"], title_justify="left")
    table.columns[1].justify = "right"
    for name, value in _rows(summary):
        table.add_row(name, value)
    return table


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "requests", f"{summary['requests']:,}"
    yield "answered", f"{summary['answered']:,}"
    yield "answers a second", f"{summary['requests_per_second']:,.1f}"
    errors = sum(summary["errors"].values())
    yield "errors", f"{errors:,} ({summary['error_percent']:.2f} %)"
    for reason, count in summary["errors"].items():
        yield f"  {reason}", f"{count:,}"
    for name, value in summary["latency_ms"].items():
        yield f"latency {name}", "-" if value is None else f"{value:,.2f} ms"


def _remarks(summary: Mapping[str, Any]) -> Iterator[str]:
    """Say what a reader of the table should know."""
    from btray.serve.load_report import LATE_MS

    late = summary["late_ms_p99"]
    if late is not None and late > LATE_MS:
        yield (
            f"The load test itself was late, by {late:,.0f} ms at its p99: this machine cannot "
            "make that load while it does the rest; the latencies hold that delay."
        )
    if not summary["requests"]:
        yield "No request was due in that time; raise --rate or --duration."
