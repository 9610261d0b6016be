"""Scratch memory from vLLM's workspaces, so that it is counted before the cache is sized."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker.workspace import current_workspace_manager, is_workspace_manager_initialized


def scratch_of(nbytes: int) -> Any:
    """Return uint8 memory of so many bytes on this process's GPU.

    Asked for in the profiling run and again by builders, which get the same memory: launches of
    one process follow one another on one stream. None where vLLM has no workspaces.
    """
    if not is_workspace_manager_initialized():
        return None
    manager = current_workspace_manager()
    return manager.get_persistent(("podrt", nbytes), (nbytes,), torch.uint8, zero_init=True)
