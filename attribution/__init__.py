"""Training data attribution for diffusion models: which training images made a model produce an image."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attribution.images import Images
    from attribution.scoring import attribute
    from attribution.training.loop_recorder import LoopRecorder

_PLACES = {
    "Images": "attribution.images",
    "LoopRecorder": "attribution.training.loop_recorder",
    "attribute": "attribution.scoring",
}
"""The modules of the public names, which are imported when they are used."""

__all__ = ["Images", "LoopRecorder", "attribute"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
