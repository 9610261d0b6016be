"""Which releases of transformers this integration was written for, and tested with."""

from __future__ import annotations

import transformers

#: Minor releases. Continuous batching is not a stable interface, so others are refused.
SUPPORTED = ("5.23", "5.24")


def require_supported() -> None:
    """Refuse other releases.

    Raises
    ------
    ImportError
        Names the release that is installed and those that are supported.
    """
    found = transformers.__version__
    if ".".join(found.split(".")[:2]) not in SUPPORTED:
        raise ImportError(
            f"transformers {found} is installed; podrt.integrations.transformers serves "
            f"{' and '.join(SUPPORTED)}: install one of those"
        )
