"""`python -m guerdon_server`: the command `guerdon` without its script."""

from guerdon_server.cli import main

if __name__ == "__main__":
    main()
