"""Run time: a bundle detects in scenes, and is measured.

from deploy import detect

result = detect("runs/ships/bundle", "scene.tif", score=0.3)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.scene.run.pipeline import detect

__all__ = ["detect"]


def __getattr__(name: str) -> Any:
    """Load `detect` when it is first asked for, so that importing any part of this package stays cheap."""
    if name == "detect":
        from deploy.scene.run.pipeline import detect  # noqa: PLC0415

        return detect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
