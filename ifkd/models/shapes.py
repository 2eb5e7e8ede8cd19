"""Shape annotations of feature maps; see jaxtyping for the notation."""

from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

FeatureMap: TypeAlias = Float[Tensor, "batch channels height width"]
LogitMap: TypeAlias = Float[Tensor, "batch classes height width"]
LocationMap: TypeAlias = Float[Tensor, "batch 1 height width"]
"""One value for each location."""
Images: TypeAlias = Float[Tensor, "batch 3 height width"]
"""Images normalized with ImageNet's statistics."""
Scalar: TypeAlias = Float[Tensor, ""]
