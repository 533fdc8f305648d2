"""Tables of rich -> plain text, for what `print` and a notebook show of an object."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["as_text"]


def as_text(*parts: RenderableType, width: int) -> str:
    """Lay parts out below one another, in lines of so many characters at most."""
    from rich.console import Console

    # In a notebook, rich would display what it prints, instead of returning it.
    console = Console(file=io.StringIO(), width=width, force_jupyter=False, force_terminal=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return captured.get().rstrip()
