import numpy as np
import pytest
from PIL import Image

from ofqctl.data import DataSpec, UnusableImageError, open_data


def opened(folder, image, suffix=".png", **options):
    folder.mkdir(exist_ok=True)
    image.save(folder / f"image{suffix}", **options)
    return open_data(DataSpec(str(folder)))[0][0]


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, noise, mode):
    image = noise(0).convert(mode)
    decoded = opened(tmp_path / "images", image, ".tif" if mode == "CMYK" else ".png")
    assert decoded.mode == "RGB"
    assert decoded.tobytes() == image.convert("RGB").tobytes()


def test_a_palette_with_transparency_becomes_rgb(tmp_path, noise):
    assert opened(tmp_path / "images", noise(0).convert("P"), transparency=b"\x00\x80").mode == "RGB"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_keeps_its_shades(tmp_path, suffix):
    grey = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    decoded = np.asarray(opened(tmp_path / "images", Image.fromarray(grey), suffix))
    assert np.abs(decoded[..., 0].astype(int) - grey // 256).max() <= 1


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "cut short"])
def test_a_damaged_file_is_unusable_and_named(tmp_path, noise, content):
    path = tmp_path / "broken.jpg"
    noise(0, 64).save(path)
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(UnusableImageError) as caught:
        open_data(DataSpec(str(tmp_path)))[0]
    assert caught.value.name == str(path)
    assert "0x" not in caught.value.reason
