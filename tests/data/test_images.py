"""Unusable images: detected by their headers, and named by every reader."""

import re
import threading
import zlib

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image, features

from aid.config import load_config
from aid.data.build import build_test_loader, build_train_loader
from aid.data.images import (
    CHUNK,
    THREADS,
    ImageFault,
    check_header,
    check_size,
    in_threads,
    longest_side,
    read_image,
)
from aid.utils.errors import AIDError
from aid_tools.prediction import Source, read_frames
from aid_tools.visualization.sample import load_sample


def png_header(path, width: int, height: int) -> None:
    """Write a PNG file whose header has the given size, without the pixels."""
    Image.new("RGB", (1, 1)).save(path)
    content = path.read_bytes()
    header = content[12:16] + width.to_bytes(4) + height.to_bytes(4) + content[24:29]
    path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4) + content[33:])


@pytest.mark.parametrize(
    "name, dtype, mode",
    [
        ("a.png", np.uint16, "I;16"),
        ("a.tif", np.uint16, "I;16"),
        ("a.tif", np.int32, "I"),
        ("a.tif", np.float32, "F"),
    ],
)
def test_images_of_16_or_32_bits_are_refused(name, dtype, mode, tmp_path):
    path = str(tmp_path / name)
    Image.fromarray(np.full((4, 6), 20000, dtype)).save(path)
    with pytest.raises(ImageFault, match=rf"16 or 32 bits per pixel \(mode {mode} of.*0 to 255"):
        check_header(path)
    with pytest.raises(ImageFault, match="16 or 32 bits"):
        read_image(path, "BGR")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_8_bits_are_read(mode, tmp_path):
    path = str(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    Image.new("RGB", (6, 4), (255, 0, 255)).convert(mode).save(path)
    assert check_header(path) == (6, 4)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert (read_image(path, "RGB") == expected).all()
    assert (read_image(path, "BGR") == expected[:, :, ::-1]).all()


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [13_000, 30_000])
def test_size_is_checked_before_pixels_are_decoded(side, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    png_header(path, side, side)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ImageFault, match="limit"):
        read_image(str(path), "RGB")


def test_too_narrow_or_too_large_images_are_refused():
    check_size(3000, 10, 150)
    check_size(3000, 10)
    for size in ((3000, 10), (10, 3000)):
        with pytest.raises(ImageFault, match="of which nothing would be left.* to 149: cut"):
            check_size(*size, 149)
    with pytest.raises(ImageFault, match="70000x10 pixels, the limit is .* 65000 a side"):
        check_size(70_000, 10)


def test_longest_side_is_that_of_the_resizing(tiny_config):
    opts = ["INPUT.MAX_SIZE_TRAIN", 96, "INPUT.MAX_SIZE_TEST", 128, "INPUT.MIN_SIZE_TEST", 0]
    cfg = load_config(tiny_config("faster_rcnn", opts))
    assert longest_side(cfg, is_train=True) == 96
    assert longest_side(cfg, is_train=False) == 0


def narrow(path):
    Image.new("RGB", (3000, 10)).save(path)


def deep(path):
    Image.fromarray(np.zeros((64, 96), np.uint16)).save(path)


def bomb(path):
    png_header(path, 30_000, 30_000)


def damaged_avif(path):
    if not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    noise = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "AVIF")
    content = bytearray(path.read_bytes())
    pixels = content.index(b"mdat") + 4
    content[pixels:] = b"\xff" * (len(content) - pixels)
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [narrow, deep, bomb, damaged_avif, empty])
def test_every_reader_names_an_unusable_image(damage, tiny_config, toy_dataset, tmp_path):
    keys = ["DATASETS.TRAIN", (toy_dataset,), "SOLVER.IMS_PER_BATCH", 1, "INPUT.MAX_SIZE_TEST", 96]
    keys += ["DATALOADER.NUM_WORKERS", 0, "INPUT.MAX_SIZE_TRAIN", 96]
    cfg = load_config(tiny_config("faster_rcnn", keys))
    records = DatasetCatalog.get(toy_dataset)
    path = tmp_path / "4.png"
    damage(path)
    if damage is narrow:
        records[4]["width"], records[4]["height"] = 3000, 10
        DatasetCatalog.remove(toy_dataset)
        DatasetCatalog.register(toy_dataset, lambda: records)

    def train():
        batches = iter(build_train_loader(cfg))
        return [next(batches) for _ in range(8)]

    for run in (
        train,
        lambda: list(build_test_loader(cfg, toy_dataset)),
        lambda: load_sample(cfg, records[4]),
    ):
        with pytest.raises(AIDError, match=f"^image {path} cannot be used: .+: replace the") as e:
            run()
        assert "\n" not in str(e.value)
    messages = []
    sources = [Source(str(tmp_path / f"{i}.png"), str(i)) for i in (3, 4, 5)]
    frames = list(read_frames(sources, messages.append, longest_side(cfg, is_train=False)))
    assert [x.name for x in frames] == ["3", "5"]
    (line,) = messages
    assert re.match(f"{path}: .+", line) and "\n" not in line


def cropping(tiny_config, toy_dataset, *opts):
    """Config of a training that crops images, which are 96x64 and 64x96."""
    keys = ["DATASETS.TRAIN", (toy_dataset,), "SOLVER.IMS_PER_BATCH", 1, "INPUT.CROP.ENABLED", True]
    keys += ["DATALOADER.NUM_WORKERS", 0, "INPUT.MAX_SIZE_TRAIN", 40]
    return load_config(tiny_config("faster_rcnn", [*keys, *opts]))


@pytest.mark.parametrize(
    "kind, size, left",
    [
        ("absolute", [1, 96], r"(96|64)x1"),
        ("absolute", [0, 50], r"50x0"),
        ("relative", [0.01, 1.0], r"(96|64)x1"),
        ("relative", [0.001, 0.001], r"0x0"),
    ],
)
def test_too_small_crop_of_an_image_is_refused(kind, size, left, tiny_config, toy_dataset):
    crop = ["INPUT.CROP.TYPE", kind, "INPUT.CROP.SIZE", size, "INPUT.MAX_SIZE_TRAIN", 30]
    batches = iter(build_train_loader(cropping(tiny_config, toy_dataset, *crop)))
    text = f"^image .*png cannot be used: a crop has left {left} of .*: raise INPUT.CROP.SIZE or "
    with pytest.raises(AIDError, match=text) as error:
        next(batches)
    assert "\n" not in str(error.value)


def test_valid_crops_equal_detectron2(tiny_config, toy_dataset, monkeypatch):
    """The check draws no random numbers and changes neither pixels nor boxes."""
    cfg = cropping(tiny_config, toy_dataset, "INPUT.CROP.SIZE", [0.5, 0.5])

    def first():
        batches = iter(build_train_loader(cfg))
        return [next(batches)[0] for _ in range(8)]

    checked = first()
    monkeypatch.setattr("aid.data.build.check_crops", lambda augmentations: 0)
    for a, b in zip(first(), checked, strict=True):
        assert torch.equal(a["image"], b["image"])
        boxes = (x["instances"].gt_boxes.tensor for x in (a, b))
        assert torch.equal(*boxes)
    assert len({x["image"].shape for x in checked}) > 2


def test_files_are_read_at_the_same_time_and_returned_in_order():
    barrier = threading.Barrier(THREADS, timeout=20)

    def read(k):
        if k % CHUNK == 0:
            barrier.wait()  # for one item of every thread
        return -k

    assert in_threads(read, range(THREADS * CHUNK)) == [-k for k in range(THREADS * CHUNK)]
    assert in_threads(read, []) == []


def test_the_first_faulty_file_is_reported_whichever_is_read_first():
    failed = threading.Event()

    def read(k):
        if k == CHUNK:
            failed.set()
        elif k == 3:
            assert failed.wait(20)
        else:
            return
        raise ImageFault(f"file {k}")

    with pytest.raises(ImageFault, match="file 3$"):
        in_threads(read, range(2 * CHUNK))
