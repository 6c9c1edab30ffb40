"""`guerdon bench`: what a reward costs, measured beside a bare echo."""

from __future__ import annotations

from pathlib import Path

import click

from guerdon_server.cli.first_steps import examples
from guerdon_server.cli.options import is_json

_INTERRUPTED = 130
_QUICK_ROUNDS, _QUICK_SECONDS, _QUICK_WARM_UP_SECONDS = 1, 1.0, 0.5


@click.command(
    epilog=examples(
        "guerdon bench --quick    # does it run here? about 20 s",
        "guerdon bench --json bench.json    # every workload in 5 rounds, about 4 minutes",
        "guerdon bench --only batch --rounds 11",
        "guerdon bench --servers --rounds 11 --json servers.json    # 1, 2, 4 servers, the model; 10 minutes",
        "guerdon bench --soak 30 --data /srv/disk --json soak.json    # does it slow down, what grows; needs 60 GB",
    )
)
@click.option(
    "--quick", is_flag=True, help="One short round: shows that everything works, not what it costs. About 20 s."
)
@click.option("--rounds", metavar="N", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(0.2, 600),
    default=3.0,
    show_default=True,
    help="Length of one round of one workload.",
)
@click.option(
    "--grants",
    metavar="N",
    type=click.IntRange(0, 100_000_000),
    default=0,
    help="Go on granting until the ledger has so many, and watch the server's memory: --grants 1000000.",
)
@click.option(
    "--servers",
    is_flag=True,
    help="Instead: 1, 2 and 4 servers on one PostgreSQL and one Valkey, in batches of 100 coupons, beside what the"
    " model of docs/SCALING.md says of them; and one hot prize beside load spread over 100. A round takes about"
    " 13 x --seconds.",
)
@click.option(
    "--soak",
    "soak_minutes",
    metavar="MINUTES",
    type=click.FloatRange(0.02, 10_000),
    help="Instead: one server, the demo's mix in batches as fast as it goes, for so long; a line every 30 s with"
    " throughput, memory and size of the database.",
)
@click.option(
    "--generator",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="grpcblast (in C, cheap; built from a checkout's loadtest/grpcblast.c with libnghttp2-dev), python, the path"
    " of a built grpcblast, or auto: the first that can be had.",
)
@click.option(
    "--only",
    metavar="WORKLOAD",
    multiple=True,
    help="issue, crowd, sold_out, replay, mix, batch or batch_mix. Repeat for more.",
)
@click.option(
    "--transport",
    type=click.Choice(("grpcio", "native")),
    default="grpcio",
    show_default=True,
    help="Of the server, and of the echo that it is compared with.",
)
@click.option(
    "--cores", metavar="N", type=click.IntRange(1), default=2, show_default=True, help="Keep everything on so many."
)
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="A folder on the disk to be measured; what is written there is removed at the end.",
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the result for machines to this file.",
)
@click.pass_context
def bench(
    ctx: click.Context,
    *,
    quick: bool,
    rounds: int,
    seconds: float,
    grants: int,
    servers: bool,
    soak_minutes: float | None,
    generator: str,
    only: tuple[str, ...],
    transport: str,
    cores: int,
    data: Path | None,
    json_file: Path | None,
) -> None:
    """Measure throughput and CPU per call beside a bare echo.

    Starts PostgreSQL (fsync on), Valkey, a server and a bare gRPC echo of its own, loads them in interleaved rounds,
    and reports calls and durable grants a second and the CPU of each process, the server's also as a multiple of the
    echo's. Some are also offered on a schedule: how long calls take at 60 and 80 % of the capacity, and what becomes of
    them at three times it (with grpcblast only). Every answer is checked, the grants are counted in the ledger, and
    the books are proven at the end.

    --servers and --soak measure something else on the same stage. Keep the machine quiet meanwhile: the result says how
    many cores others kept busy.

    Exit status: 0 if it ran to its end and the books are right (a missed target is told, not a failure), 1 otherwise,
    130 after Ctrl-C.
    """
    from guerdon_server.bench.main import interruptible_bench  # noqa: PLC0415  --help must not load all this
    from guerdon_server.bench.stage import Options  # noqa: PLC0415
    from guerdon_server.bench.workloads import WORKLOADS  # noqa: PLC0415

    known = [workload.name for workload in WORKLOADS]
    if unknown := set(only) - set(known):
        raise click.UsageError(f"--only {', '.join(sorted(unknown))}: there are {', '.join(known)}.")
    if (servers and soak_minutes) or ((servers or soak_minutes) and (only or grants)):
        raise click.UsageError("--servers, --soak, and the workloads (--only, --grants) are measured one at a time.")
    options = Options(
        rounds=_QUICK_ROUNDS if quick else rounds,
        seconds=_QUICK_SECONDS if quick else seconds,
        warm_up_seconds=_QUICK_WARM_UP_SECONDS if quick else 1.0,
        grants=grants,
        servers=servers,
        soak_minutes=soak_minutes or 0.0,
        generator=generator,
        only=only,
        cores=cores,
        transport=transport,
        folder=data,
    )
    result = interruptible_bench(options, json_file=json_file, json_to_stdout=is_json(ctx))
    if result is None:
        ctx.exit(_INTERRUPTED)
    ctx.exit(0 if result.sound else 1)
