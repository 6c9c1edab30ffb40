"""`guerdon demo`: real purchases through a real server, the books beside the file."""

from __future__ import annotations

from pathlib import Path

import click

from guerdon_server.cli.options import is_json

_INTERRUPTED = 130


@click.command()
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the data in this folder and use it again: what an earlier run granted there is replayed. Without it a"
    " fresh folder is made, and removed at the end.",
)
@click.option(
    "--crash", is_flag=True, help="Kill the server (SIGKILL) three times on the way; the totals are the same."
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the result for machines to this file.",
)
@click.option(
    "--purchases",
    metavar="N",
    type=click.IntRange(300, 6919),
    help="Only the first N by date; stock and budget shrink in proportion.",
)
@click.option(
    "--seed", type=int, default=1997, show_default=True, help="Chooses the purchases that are delivered twice."
)
@click.pass_context
def demo(
    ctx: click.Context, *, data: Path | None, crash: bool, json_file: Path | None, purchases: int | None, seed: int
) -> None:
    """Replay 6,919 real purchases and prove the books.

    Starts PostgreSQL, Valkey and a server of its own, sends 20,757 reward requests through gRPC, compares every total
    of the ledger with the purchase file, delivers everything once more to show that nothing moves, and stops it all.

    Exit status: 0 if every check holds, 1 if one fails or the demo can't go on, 130 after Ctrl-C.
    """
    from guerdon_server.demo.main import interruptible_demo  # noqa: PLC0415  --help must not load all this
    from guerdon_server.demo.run import Options  # noqa: PLC0415

    options = Options(data=data, crash=crash, purchases=purchases, seed=seed)
    result = interruptible_demo(options, json_file=json_file, json_to_stdout=is_json(ctx))
    if result is None:
        ctx.exit(_INTERRUPTED)
    ctx.exit(0 if result.passed else 1)
