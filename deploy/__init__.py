"""Deployment: detect objects in scenes with a bundle, and measure latency, parity and accuracy.

from deploy import detect

result = detect("runs/ships/bundle", "scene.tif", score_threshold=0.3)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.scene.run.pipeline import detect

__all__ = ["detect"]


def __getattr__(name: str) -> Any:
    """Import `detect` on first access, so that `import deploy` is fast."""
    if name == "detect":
        from deploy.scene.run.pipeline import detect  # noqa: PLC0415

        return detect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
