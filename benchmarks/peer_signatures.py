"""Write down the public signatures of patchworks 3.3.0, which `docs/api-parity.md` is held against.

Run it with the Python of an environment of its own, which has that package and not this one:

    python -m venv peer && peer/bin/pip install patchworks==3.3.0
    peer/bin/python benchmarks/peer_signatures.py > benchmarks/peer_signatures.json

Only what `inspect.signature` says of public names is written: names, and defaults as `repr`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil

import patchworks

PLUGINS = {"cellpose_fn": "cellpose", "write_labels": "ome_zarr"}
"""Public functions of plugins that have one of that name here."""


def parameters_of(function: object) -> dict[str, str]:
    """Return the default of each parameter, `required` where there is none."""
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}
    return {
        p.name: "any"
        if p.kind is p.VAR_KEYWORD
        else "required"
        if p.default is p.empty
        else repr(p.default)
        for p in parameters
    }


def main() -> None:
    """Print the facts as JSON."""
    functions = {name: getattr(patchworks, name) for name in patchworks.__all__}
    for name, plugin in PLUGINS.items():
        functions[name] = getattr(importlib.import_module(f"patchworks.plugins.{plugin}"), name)
    facts = {
        "version": patchworks.__version__,
        "functions": {name: parameters_of(functions[name]) for name in sorted(functions)},
        "plugins": sorted(m.name for m in pkgutil.iter_modules(patchworks.plugins.__path__)),
    }
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
