"""The feature pyramid against torchvision's, with and without normalization."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FeaturePyramidNetwork

from ifkd import recipe
from ifkd.models.backbones import Backbone
from ifkd.models.fpn import CoarseLevels, Pyramid

CHANNELS = 16
IMAGES = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


def pyramid(**options: object) -> Pyramid:
    config = recipe.DetectorOptions.model_validate({"backbone": "resnet18", "channels": CHANNELS, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = Backbone(config, stages=(1, 2, 3))
        return Pyramid(body, config, CoarseLevels(body.out_channels[-1], CHANNELS))


def test_a_normalized_pyramid_has_mean_0_and_deviation_1_in_every_channel_while_it_learns() -> None:
    for level in pyramid(pyramid_norm="batch").train()(IMAGES)[:3]:
        torch.testing.assert_close(level.mean((0, 2, 3)), torch.zeros(CHANNELS), atol=1e-5, rtol=0)
        torch.testing.assert_close(level.std((0, 2, 3), unbiased=False), torch.ones(CHANNELS), atol=1e-2, rtol=0)


def test_merged_with_its_convolutions_it_is_torchvisions_pyramid_without_normalization() -> None:
    ours = pyramid(pyramid_norm="batch").train()
    ours(IMAGES)  # moves the running statistics
    ours.eval()
    plain = FeaturePyramidNetwork(ours.body.out_channels, CHANNELS, extra_blocks=ours.fpn.extra_blocks)
    for blocks, merged in ((ours.fpn.inner_blocks, plain.inner_blocks), (ours.fpn.layer_blocks, plain.layer_blocks)):
        for block, target in zip(blocks, merged, strict=True):
            convolution, norm = block
            assert isinstance(norm, nn.BatchNorm2d)
            fused = fuse_conv_bn_eval(convolution, norm)
            target[0].load_state_dict(fused.state_dict())
    with torch.no_grad():
        expected = plain.eval()(ours.body(IMAGES)).values()
        for level, reference in zip(ours(IMAGES), expected, strict=True):
            torch.testing.assert_close(level, reference, atol=1e-4, rtol=1e-4)
