"""transformers: continuous batching and `generate` on podrt.

Importing this module registers the attention implementations ``"podrt"`` and ``"podrt_flash"`` with
transformers, which change nothing until a model asks for one. `enable` makes a model's continuous
batching run on podrt.
"""

from podrt.integrations.transformers.enabling import Enabled, Status, enable, status
from podrt.integrations.transformers.failures import StepError
from podrt.integrations.transformers.functions import register

register()

__all__ = ["Enabled", "Status", "StepError", "enable", "status"]
