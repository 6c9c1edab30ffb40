"""The command `guerdon`: one module a command, imported only when it is used."""


def main() -> None:
    """Runs the command line and ends the process with its exit status; see `guerdon --help`."""
    from guerdon_server.cli.root import guerdon  # noqa: PLC0415  importing the package must stay free

    guerdon(prog_name="guerdon")
