"""What podrt serves in this process: how to see that it is really in use."""

from __future__ import annotations

import logging
import weakref
from typing import Any, Protocol

#: Under vLLM's own logger, so that lines appear in its log, in its format.
logger = logging.getLogger("vllm.podrt")


class Served(Protocol):
    """Layers that are being served."""

    def describe(self) -> list[dict[str, Any]]:
        """Return what, how, and how often so far, an entry for each shape of layers."""


_served: weakref.WeakSet[Any] = weakref.WeakSet()


def add(served: Served) -> None:
    """Note layers for as long as they are served, and log what serves them."""
    _served.add(served)
    for entry in served.describe():
        logger.info(
            "podrt serves %(layers)d layers: %(num_heads)d query and %(num_kv_heads)d KV heads of "
            "%(head_size)d, %(dtype)s, pages of %(page_size)d, policy %(policy)s%(mode)s, "
            "kernels of the family %(family)s",
            entry | {"mode": " (deterministic)" if entry["deterministic"] else ""},
        )


def status(worker: Any = None) -> list[dict[str, Any]]:
    """Return what podrt serves in this process, one entry for each group of layers of a shape.

    vLLM's engine is a process of its own, unless ``VLLM_ENABLE_V1_MULTIPROCESSING=0``. There,
    ``llm.collective_rpc(podrt.integrations.vllm.status)`` asks every worker, for which this takes
    an argument that it makes no use of.

    Returns
    -------
    list of dict
        ``layers``, ``num_heads``, ``num_kv_heads``, ``head_size``, ``scale``, ``policy``,
        ``deterministic``, ``page_size``, ``dtype``, ``family`` and ``kernels`` (those in graphs),
        ``limits``, ``steps`` (planned so far) and ``runs`` (layers run outside of graphs, or
        captured into one). Empty: podrt is not in use here.
    """
    return [entry for served in list(_served) for entry in served.describe()]
