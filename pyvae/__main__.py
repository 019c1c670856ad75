"""``pyvae`` and ``python -m pyvae``: the command line, which alone needs tyro."""

import sys


def main() -> None:
    """:func:`pyvae.cli.main`, or one line where tyro is missing."""
    try:
        from pyvae import cli
    except KeyboardInterrupt:  # while it is read, which takes a second
        sys.stderr.write("pyvae: interrupted\n")
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name != "tyro":
            raise
        sys.exit("pyvae: error: the command line needs tyro: pip install tyro")
    cli.main()


if __name__ == "__main__":
    main()
