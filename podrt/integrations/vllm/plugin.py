"""Registration of the backend, which vLLM asks for in each of its processes."""

from __future__ import annotations

NAME = "PODRT"
_BACKEND = "podrt.integrations.vllm.backend.PodrtBackend"


def register() -> None:
    """Make ``PODRT`` one of vLLM's attention backends; may be called any number of times.

    Nothing else of podrt is imported before the backend is selected.
    """
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    if NAME not in AttentionBackendEnum.__members__:
        AttentionBackendEnum.register(NAME, _BACKEND)
