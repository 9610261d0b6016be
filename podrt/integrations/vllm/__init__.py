"""podrt as an attention backend of vLLM, selected by ``--attention-backend PODRT``.

vLLM finds it by the entry point ``vllm.general_plugins`` once podrt is installed beside it
(`podrt.integrations.vllm.plugin`); ``docs/vllm.md`` is the page for users.

    plugin      registration, in every process of vLLM
    backend     what podrt can serve, and what it refuses
    group       what the layers of a cache group have in common, and their limits
    options     what users ask of podrt, batch invariance among it
    builder     one plan for each step
    impl        one layer: cache write, then attention
    scratch     memory from vLLM's workspaces
    serving     what is being served in this process, for `status`
"""

from podrt.integrations.vllm.serving import status

__all__ = ["status"]
