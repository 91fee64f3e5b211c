"""What Inspect loads to learn of ``ss_lens/…`` models; it imports no torch until one is opened."""

from __future__ import annotations

from typing import Any

from inspect_ai.model import modelapi


@modelapi(name="ss_lens")
def ss_lens() -> Any:
    """The provider; Inspect calls what this returns with the model's name and arguments."""
    from ss_lens.integrations.inspect.provider import open_model

    return open_model
