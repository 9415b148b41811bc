"""Pictures of any mode become the same numbers; feature maps are fixed."""

import numpy as np
import pytest
import torch

from cbam_triton.demo.photograph import Stage, feature_maps, load_photograph, make_layer, square_views

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("sklearn")

SMALL = (Stage("stage 1", 32, 8), Stage("stage 4", 64, 7))
GREY = np.random.default_rng(0).integers(0, 256, (9, 5), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I", "I;16"])
def test_images_of_any_mode_and_size_are_read(tmp_path, mode):
    Image.new(mode, (5, 9), 1).save(tmp_path / "image.tiff")
    photograph = load_photograph(str(tmp_path / "image.tiff"))
    assert photograph.shape == (3, 9, 5)
    assert 0 <= photograph.min() <= photograph.max() <= 1
    assert square_views(photograph, 3, side=32).shape == (3, 3, 32, 32)


def test_feature_maps_are_fixed_and_half_zeros():
    views = square_views(load_photograph(None), 2, side=64)
    x = feature_maps(views, SMALL[0])
    assert x.shape == (2, 32, 8, 8)
    assert torch.equal(x, feature_maps(views, SMALL[0]))
    assert 0.2 < (x == 0).float().mean() < 0.8
    assert not torch.equal(x[0], x[1])
    layer = make_layer(x)
    assert not layer.training
    assert layer.spatial.norm.running_mean.item() != 0


@pytest.mark.parametrize(
    "pixels, name",
    [
        (GREY, "grey.png"),
        (GREY.astype(np.uint16) * 257, "grey16.png"),
        (GREY.astype(np.int32) * 257, "grey32.tiff"),
        (GREY.astype(np.float32) / 255, "unit.tiff"),
        (GREY.astype(np.float32), "bytes.tiff"),
    ],
)
def test_a_picture_of_more_bits_is_scaled_not_clipped(tmp_path, pixels, name):
    Image.fromarray(pixels).save(tmp_path / name)
    found = load_photograph(str(tmp_path / name))
    torch.testing.assert_close(found, torch.from_numpy(GREY / np.float32(255)).expand(3, 9, 5))


@pytest.mark.parametrize("mode, name", [("CMYK", "x.jpg"), ("CMYK", "x.tiff"), ("YCbCr", "x.jpg"), ("LAB", "x.tiff")])
def test_a_picture_in_other_colours_looks_the_same(tmp_path, mode, name):
    from PIL import ImageCms

    red = Image.new("RGB", (16, 16), (200, 40, 40))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        red = ImageCms.profileToProfile(red, *profiles, outputMode="LAB")
    red = red.convert(mode) if red.mode != mode else red
    red.save(tmp_path / name)
    found = load_photograph(str(tmp_path / name)).mean((1, 2))
    torch.testing.assert_close(found, torch.tensor([200, 40, 40]) / 255, rtol=0, atol=0.05)


def test_transparent_pixels_are_white(tmp_path):
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 1)
    picture.save(tmp_path / "palette.png", transparency=bytes([0, 255]))
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "rgba.png")
    palette, rgba = (load_photograph(str(tmp_path / f"{name}.png")) for name in ("palette", "rgba"))
    assert palette[:, 0, 0].tolist() == [0, 0, 1]
    assert palette[:, 1:].min() == rgba.min() == 1


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path):
    notes = Image.Exif()
    notes[0x0112] = 6
    Image.fromarray(GREY).convert("RGB").save(tmp_path / "sideways.jpg", exif=notes)
    assert load_photograph(str(tmp_path / "sideways.jpg")).shape == (3, 5, 9)
