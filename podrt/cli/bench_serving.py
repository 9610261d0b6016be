"""``podrt bench serving``: whole steps of an engine, podrt beside other attention."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import typer

#: Engine, and the module that measures it, whose ``main`` takes a command line.
ENGINES = {
    "transformers": "podrt.bench.serving.transformers",
    "vllm": "podrt.bench.serving.vllm",
}
#: What stands in the place of an engine that is measured, and needs none: draws results; predicts.
OTHERS = {"figures": "podrt.bench.serving.figures", "predict": "podrt.bench.serving.predict"}


def serving(context: typer.Context, engine: str) -> None:
    """Serve requests with an engine, podrt beside other attention: transformers or vllm.

    Or draw results, `podrt bench serving figures FILE.json ...`, or predict what attention of a
    trace takes, `podrt bench serving predict`. Everything behind that word is the benchmark's own;
    `podrt bench serving vllm --help` lists it. Models have random weights, so that nothing needs to
    be fetched.
    """
    modules = ENGINES | OTHERS
    if engine not in modules:
        raise ValueError(f"engine={engine!r}: allowed are {', '.join(modules)}")
    asks_for_help = bool({"-h", "--help"} & set(context.args))
    if engine in ENGINES and find_spec(engine) is None and not asks_for_help:
        raise _not_installed(engine, engine)
    try:
        module = import_module(modules[engine])
    except ModuleNotFoundError as error:
        raise _not_installed(engine, error.name) from error
    module.main(context.args)


def _not_installed(engine: str, package: str | None) -> ValueError:
    return ValueError(
        f"podrt bench serving {engine}: {package} is not installed; see docs/{engine}.md"
    )
