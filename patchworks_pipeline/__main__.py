"""``python -m patchworks_pipeline`` is ``patchworks``."""

from patchworks_pipeline.cli.main import app

if __name__ == "__main__":
    app(prog_name="patchworks")
