"""MobileSAM's encoder: its shapes, its checkpoint's names, and its numbers against the original where that is here."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ifkd.core.errors import CheckpointError
from ifkd.distillation.ede import activate, resize
from ifkd.models import normalize
from ifkd.models.mobile_sam.encoder import (
    CHECKPOINT_NAME,
    MobileSamEncoder,
    available_weights,
    build_mobile_sam,
    default_checkpoint_path,
    encoder_state,
)


@pytest.fixture(scope="module")
def encoder() -> MobileSamEncoder:
    return build_mobile_sam("random")


def images(size: tuple[int, int], batch: int = 1, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return normalize(torch.randint(0, 256, (batch, 3, *size), generator=source, dtype=torch.uint8))


def published_form(encoder: MobileSamEncoder) -> dict[str, Tensor]:
    """Return the encoder's state with the names of the published checkpoint."""
    state = {}
    for name, value in encoder.state_dict().items():
        new = name.removeprefix("trunk.")
        new = new.replace("patch_embed.conv1.", "patch_embed.seq.0.").replace(
            "patch_embed.conv2.", "patch_embed.seq.2."
        )
        for stage in range(4):
            new = new.replace(f"stages.{stage}.downsample.", f"layers.{stage - 1}.downsample.")
            new = new.replace(f"stages.{stage}.blocks.", f"layers.{stage}.blocks.")
        if not new.startswith("neck."):
            new = new.replace(".conv.weight", ".c.weight")
        state[f"image_encoder.{new}"] = value
    state["image_encoder.norm_head.weight"] = torch.zeros(320)
    state["image_encoder.head.weight"] = torch.zeros(1000, 320)
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    return state


@pytest.mark.parametrize(
    ("size", "input_px", "shape"),
    [
        ((64, 64), "native", (4, 4)),
        ((64, 96), "native", (4, 6)),
        ((70, 50), "native", (5, 4)),
        ((64, 96), 128, (6, 8)),  # 85 of 128 rows are the image
        ((100, 40), 160, (10, 4)),
        ((300, 200), 128, (8, 6)),
    ],
)
def test_the_embedding_is_cut_to_the_image(
    encoder: MobileSamEncoder, size: tuple[int, int], input_px: int | str, shape: tuple[int, int]
) -> None:
    embedding = encoder(images(size), input_px=input_px)
    assert embedding.shape == (1, 256, *shape)
    assert not embedding.requires_grad
    assert embedding.isfinite().all()


def test_equal_images_have_equal_embeddings(encoder: MobileSamEncoder) -> None:
    twice = encoder(images((64, 64)).repeat(2, 1, 1, 1), input_px="native")
    torch.testing.assert_close(twice[0], twice[1])
    torch.testing.assert_close(encoder(images((64, 64)), input_px="native"), twice[:1], rtol=1e-4, atol=1e-5)
    other = encoder(images((64, 64), seed=1), input_px="native")
    assert (other - twice[:1]).abs().max() > 1e-3


class CellMeans(nn.Module):
    """A trunk with a simple embedding: the mean of each cell's first channel, 256 times."""

    def forward_features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images[:, :1], 16).expand(-1, 256, -1, -1)


def geometry() -> MobileSamEncoder:
    encoder = MobileSamEncoder()
    encoder.trunk, encoder.neck = CellMeans(), nn.Identity()
    return encoder


def test_native_images_are_padded_with_zeros() -> None:
    seen = images((70, 50)) + 1
    found = geometry()(seen, input_px="native")
    canvas = torch.zeros(80, 64)
    canvas[:70, :50] = seen[0, 0]
    torch.testing.assert_close(found[0, 0], canvas.reshape(5, 16, 4, 16).mean(dim=(1, 3)))


def test_the_long_side_is_resized_to_input_px() -> None:
    across = torch.arange(96.0).expand(1, 3, 64, 96)
    found = geometry()(across, input_px=192)[0, 0]
    assert found.shape == (8, 12)
    torch.testing.assert_close(found, (torch.arange(12) * 8 + 3.5).expand(8, 12), rtol=0, atol=0.1)
    down = torch.arange(64.0)[:, None].expand(1, 3, 64, 96)
    found = geometry()(down, input_px=128)[0, 0]
    assert found.shape == (6, 8)  # 64·128/96 = 85.3 rows, so the last cell's lower part is padding
    expected = (torch.arange(5) * 16 + 8) * 64 / 85 - 0.5
    torch.testing.assert_close(found[:5], expected[:, None].expand(5, 8), rtol=0, atol=0.1)
    assert (found[5] < 63 * 5 / 16).all()


def test_the_encoder_is_frozen(encoder: MobileSamEncoder) -> None:
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder.train()
    assert not any(module.training for module in encoder.modules())


def test_random_weights_are_deterministic_and_keep_the_global_generator(encoder: MobileSamEncoder) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = build_mobile_sam("random")
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_published_names_load(tmp_path: Path, encoder: MobileSamEncoder) -> None:
    state = published_form(encoder)
    assert len([name for name in state if name.startswith("image_encoder.") and "head." not in name]) == 292 + 6
    assert encoder_state(state).keys() == encoder.state_dict().keys()
    torch.save(state, tmp_path / "sam.pt")
    loaded = build_mobile_sam(str(tmp_path / "sam.pt"))
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_other_files_are_refused(tmp_path: Path, encoder: MobileSamEncoder) -> None:
    state = published_form(encoder)
    del state["image_encoder.neck.2.weight"]
    torch.save(state, tmp_path / "sam.pt")
    with pytest.raises(CheckpointError, match="does not contain MobileSAM's encoder"):
        build_mobile_sam(str(tmp_path / "sam.pt"))
    (tmp_path / "text.pt").write_text("x")
    with pytest.raises(CheckpointError, match="does not contain MobileSAM's weights"):
        build_mobile_sam(str(tmp_path / "text.pt"))


def test_path_and_digest_of_the_published_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IFKD_CACHE", str(tmp_path))
    assert default_checkpoint_path() == tmp_path / CHECKPOINT_NAME
    assert available_weights("mobile_sam") == "random"
    assert available_weights("/a/b.pt") == "/a/b.pt"
    with pytest.raises(CheckpointError, match="are missing at") as absent:
        build_mobile_sam("mobile_sam")
    assert "40,728,226 bytes" in str(absent.value)
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"another file")
    assert available_weights("mobile_sam") == "mobile_sam"
    with pytest.raises(CheckpointError, match="is not MobileSAM's published checkpoint: got sha256"):
        build_mobile_sam("mobile_sam")
    monkeypatch.delenv("IFKD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_checkpoint_path() == tmp_path / "xdg" / "ifkd" / CHECKPOINT_NAME


ORIGINAL = """
import torch
from mobile_sam.modeling import TinyViT
import ifkd.models.mobile_sam.encoder as ours

torch.manual_seed(0)
original = TinyViT(
    img_size=1024, in_chans=3, num_classes=1000, embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2],
    num_heads=[2, 4, 5, 10], window_sizes=[7, 7, 14, 7], mlp_ratio=4.0, drop_rate=0.0, drop_path_rate=0.0,
    use_checkpoint=False, mbconv_expand_ratio=4.0, local_conv_size=3, layer_lr_decay=0.8,
)
for module in original.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
        torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
        torch.nn.init.uniform_(module.running_var, 0.8, 1.2)
        torch.nn.init.uniform_(module.weight, 0.8, 1.2)
        torch.nn.init.uniform_(module.bias, -0.1, 0.1)
for name, parameter in original.named_parameters():
    if "attention_biases" in name:
        torch.nn.init.normal_(parameter, std=0.5)
original.eval()
encoder = ours.MobileSamEncoder()
state = ours.encoder_state({f"image_encoder.{name}": value for name, value in original.state_dict().items()})
assert len([name for name in state if name.startswith("trunk.")]) == 292
encoder.load_state_dict(state)
images = torch.randn(1, 3, 1024, 1024)
with torch.no_grad():
    expected = original(images)
difference = (encoder(images, input_px=1024) - expected).abs().max().item()
assert expected.std() > 0.1
print("largest difference", difference)
assert difference < 1e-4
"""


def test_the_encoder_equals_mobilesams() -> None:
    """Run in a separate process, because importing mobile_sam replaces timm's model of the same name."""
    try:
        importlib.metadata.version("mobilesam_mirror")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package mobilesam_mirror is not installed")
    done = subprocess.run([sys.executable, "-c", ORIGINAL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "largest difference" in done.stdout


def test_identical_images_have_identical_disturbances(encoder: MobileSamEncoder) -> None:
    seen = images((64, 96)).repeat(2, 1, 1, 1)
    first, again = (encoder(seen, input_px="native") for _ in range(2))
    for shape in ((8, 12), (4, 6), (1, 2)):
        first_disturbance = resize(activate(first), shape)
        assert torch.equal(resize(activate(again), shape), first_disturbance)
        torch.testing.assert_close(first_disturbance[0], first_disturbance[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "input_px"), [((64, 96), "native"), ((64, 96), 192), ((96, 64), 192)])
def test_the_disturbance_is_equivariant_to_flips(size: tuple[int, int], input_px: int | str) -> None:
    """With an equivariant trunk, the disturbance is equivariant to flips."""
    seen, sam = images(size), geometry()
    for shape in ((13, 21), (8, 12), (3, 5), (1, 1)):
        straight, turned = (resize(activate(sam(each, input_px=input_px)), shape) for each in (seen, seen.flip(3)))
        torch.testing.assert_close(turned, straight.flip(3), rtol=1e-4, atol=1e-5)
        if shape[1] > 1:
            assert (turned - straight).abs().max() > 1e-3
