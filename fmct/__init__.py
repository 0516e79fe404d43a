"""fmct: self-supervised 3D foundation models on CT, from scans to a published encoder.

Not a medical device: for research only. Importing this package loads no torch; the names below load on first use.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Volume", "__version__", "load_encoder", "read_volume"]

if TYPE_CHECKING:
    from fmct.io import read_volume
    from fmct.publish import load_encoder
    from fmct.volume import Volume

_LAZY = {"Volume": "fmct.volume", "load_encoder": "fmct.publish", "read_volume": "fmct.io"}


def __getattr__(name: str) -> Any:
    """Return a public name, importing the module that defines it."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fmct' has no attribute {name!r}; public names are {', '.join(__all__)}")
