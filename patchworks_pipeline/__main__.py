"""The program ``patchworks``, and what ``python -m patchworks_pipeline`` runs."""

import sys


def main() -> None:
    """Run a command; Ctrl-C while it is imported, which takes seconds, ends it without a word."""
    try:
        from patchworks_pipeline.cli.main import app

        app(prog_name="patchworks")
    except KeyboardInterrupt:
        sys.exit(130)  # EXIT_CODE_OF_INTERRUPT, which cannot be imported here


if __name__ == "__main__":
    main()
