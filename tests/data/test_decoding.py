import numpy as np
import pytest
from PIL import Image, ImageOps

from ofqctl.data import DataSpec, UnusableImageError, image_loader, open_data
from ofqctl.data.images import was_turned


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_an_image_is_upright_whatever_its_exif_orientation(tmp_path, noise, orientation, suffix):
    upright, exif = noise(0), Image.Exif()
    exif[0x0112] = orientation
    stored = upright
    for candidate in (None, *Image.Transpose):  # the way of storing it from which its orientation leads back
        stored = upright if candidate is None else upright.transpose(candidate)
        marked = stored.copy()
        marked.getexif()[0x0112] = orientation
        if ImageOps.exif_transpose(marked).tobytes() == upright.tobytes():
            break
    options = {"lossless": True} if suffix == ".webp" else {}
    decoded = opened(tmp_path / "images", stored, suffix, exif=exif, **options)
    assert decoded.tobytes() == upright.tobytes()
    assert was_turned(decoded) == (orientation > 1)


def test_turned_images_are_counted(tmp_path, noise, config):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(3):
        noise(number).save(tmp_path / f"{number}.jpg", **({"exif": exif} if number else {}))
    loader = image_loader(open_data(DataSpec(str(tmp_path))), config, batch_size=2)
    list(loader)
    assert loader.turned == 2


def test_damaged_exif_leaves_an_image_as_it_is(tmp_path, noise):
    assert not was_turned(opened(tmp_path / "images", noise(0), ".jpg", exif=b"Exif\0\0MM\0*damaged"))


@pytest.mark.parametrize("kind", ["u2", ">u2", "i4", "f4", "1.0", "16 bits as i4"])
def test_deep_grey_images_look_like_shallow_ones(tmp_path, kind):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    deep = {
        "u2": grey.astype(np.uint16) * 257,
        ">u2": (grey.astype(np.uint16) * 257).astype(">u2"),
        "i4": grey.astype(np.int32),
        "f4": grey.astype(np.float32),
        "1.0": grey.astype(np.float32) / 255,
        "16 bits as i4": grey.astype(np.int32) * 257,
    }[kind]
    decoded = opened(tmp_path / "images", Image.fromarray(deep), ".tif")
    assert np.array_equal(np.asarray(decoded)[..., 0], grey)


def test_sixteen_bits_in_pgm_keep_their_shades(tmp_path):
    grey = (np.arange(256).reshape(16, 16) * 257).astype(">u2")
    (tmp_path / "deep.pgm").write_bytes(b"P5 16 16 65535\n" + grey.tobytes())
    decoded = open_data(DataSpec(str(tmp_path)))[0][0]
    assert np.array_equal(np.asarray(decoded)[..., 0], grey >> 8)


@pytest.mark.parametrize("values", [[-5, 100], [0, 1 << 20], [0.0, 1e9], [-1.0, 1.0], [0.0, float("nan")]])
def test_grey_values_that_nothing_explains_are_refused(tmp_path, values):
    pixels = np.array([values], dtype=np.int32 if isinstance(values[0], int) else np.float32)
    with pytest.raises(UnusableImageError, match="nothing says what is black and white"):
        opened(tmp_path / "images", Image.fromarray(pixels), ".tif")


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "cut short"])
def test_a_damaged_file_is_unusable_and_named(tmp_path, noise, content):
    path = tmp_path / "broken.jpg"
    noise(0, 64).save(path)
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(UnusableImageError) as caught:
        open_data(DataSpec(str(tmp_path)))[0]
    assert caught.value.name == str(path)
    assert "0x" not in caught.value.reason
