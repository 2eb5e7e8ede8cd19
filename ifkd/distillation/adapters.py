"""Adapters: convolutions that map the student's pyramid to the teacher's number of channels."""

from torch import Tensor, nn

from ifkd.distillation.methods.method import NetworkPair


class Adapters(nn.ModuleList):
    """One convolution for each level, or one shared by all."""

    def __init__(self, networks: NetworkPair, *, kernel: int, shared: bool = False, bias: bool = True) -> None:
        super().__init__(
            nn.Conv2d(networks.channels, networks.teacher_channels, kernel, padding=kernel // 2, bias=bias)
            for _ in range(1 if shared else len(networks.levels))
        )

    def forward(self, pyramid: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the adapted levels of the student's pyramid in float32."""
        return [self[level % len(self)](features).float() for level, features in enumerate(pyramid)]


def in_float(pyramid: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the levels of a pyramid in float32."""
    return [features.float() for features in pyramid]
