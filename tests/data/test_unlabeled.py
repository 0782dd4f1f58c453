"""Images without labels in the training stream."""

import copy
import os
from itertools import islice

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from aid.config import load_config
from aid.data import load_images, register_images
from aid.data.build import build_train_loader, start_at
from aid.data.images import read_image
from aid.data.unlabeled import num_unlabeled
from aid.utils.errors import AIDError


@pytest.fixture
def folder(tmp_path):
    """A folder of 6 images, two of them upright and one in a subfolder, and other files."""
    root = tmp_path / "drive"
    (root / "rear").mkdir(parents=True)
    sizes = [(96, 64), (64, 96), (96, 64), (96, 64), (64, 96)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (number * 40, 0, 0)).save(root / f"{number}.png")
    Image.new("RGB", (96, 64)).save(root / "rear" / "A.JPG")
    (root / "log.txt").write_text("")
    return str(root)


@pytest.fixture
def unlabeled(folder):
    """The folder's images as a registered dataset."""
    name = f"unlabeled_{folder}"
    register_images(name, folder)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def loader_config(tiny_config, toy_dataset, unlabeled):
    def make(opts=()):
        keys = ["DATASETS.TRAIN", (toy_dataset,), "DATASETS.UNLABELED", (unlabeled,)]
        keys += ["SOLVER.IMS_PER_BATCH", 3, "UNLABELED.SHARE", 0.4, "DATALOADER.NUM_WORKERS", 0]
        keys += ["INPUT.MIN_SIZE_TRAIN", (48, 56, 64)]
        return load_config(tiny_config("faster_rcnn", [*keys, *opts]))

    return make


def take(cfg, count, start_iter=0):
    loader = build_train_loader(cfg)
    start_at(loader, cfg, start_iter)
    return list(islice(loader, count))


def same(a, b):
    return all(
        x["file_name"] == y["file_name"] and torch.equal(x["image"], y["image"])
        for p, q in zip(a, b, strict=True)
        for x, y in zip(p, q, strict=True)
    )


def parts(batch):
    return [x for x in batch if "unlabeled" not in x], [x for x in batch if "unlabeled" in x]


def test_each_batch_has_its_share_at_the_end(loader_config):
    for batch in take(loader_config(), 10):
        assert [x.get("unlabeled", False) for x in batch] == [False, False, True]
        assert len(batch[2]["instances"]) == 0 and "drive" in batch[2]["file_name"]
        assert len(batch[0]["instances"]) > 0


def test_annotations_of_unlabeled_images_are_ignored(loader_config, toy_dataset):
    for batch in take(loader_config(["DATASETS.UNLABELED", (toy_dataset,)]), 7):
        assert all(len(x["instances"]) == 0 for x in parts(batch)[1])


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_stream_resumed_anywhere_goes_on_as_it_would_have(loader_config, grouping, steps):
    opts = ["DATALOADER.ASPECT_RATIO_GROUPING", grouping]
    opts += ["SOLVER.ACCUMULATION_STEPS", steps, "SOLVER.IMS_PER_BATCH", 3 * steps]
    cfg = loader_config(opts)
    whole = take(cfg, 12)
    for start in (1, 2, 5):
        assert same(take(cfg, 12 - start * steps, start), whole[start * steps :])


def test_workers_change_nothing(loader_config):
    alone = take(loader_config(), 6)
    assert same(take(loader_config(["DATALOADER.NUM_WORKERS", 2]), 6), alone)


def test_batches_have_one_orientation_and_epochs_are_whole(loader_config):
    counts = {}
    for batch in take(loader_config(), 60):
        assert len({x["width"] > x["height"] for x in batch}) == 1
        (sample,) = parts(batch)[1]
        counts.setdefault(sample["width"] > sample["height"], []).append(sample["file_name"])
    for names, number in ((counts[True], 4), (counts[False], 2)):
        times = [names.count(x) for x in set(names)]
        assert len(times) == number and max(times) - min(times) <= 1


def test_without_an_image_of_the_orientation_the_others_are_taken(loader_config, folder):
    name = f"{folder}_upright"
    upright = [x for x in load_images(folder) if x["height"] > x["width"]]
    DatasetCatalog.register(name, lambda: copy.deepcopy(upright))
    try:
        batches = take(loader_config(["DATASETS.UNLABELED", (name,)]), 8)
    finally:
        DatasetCatalog.remove(name)
    assert any(batch[0]["width"] > batch[0]["height"] for batch in batches)
    assert all(batch[2]["width"] < batch[2]["height"] for batch in batches)


def test_labeled_images_are_augmented_as_without_the_others(loader_config):
    mixed = take(loader_config(), 8)
    alone = take(
        loader_config(
            ["DATASETS.UNLABELED", (), "UNLABELED.SHARE", 0.0, "SOLVER.IMS_PER_BATCH", 2]
        ),
        8,
    )
    assert same([parts(batch)[0] for batch in mixed], alone)


def test_processes_have_streams_of_their_own(loader_config, monkeypatch):
    opts = ["SOLVER.IMS_PER_BATCH", 4, "UNLABELED.SHARE", 0.5]
    cfg = loader_config([*opts, "DATALOADER.ASPECT_RATIO_GROUPING", False])
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "all_gather", lambda x: [x])  # of what the seed makes the same
    counts = {}
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        stream = take(cfg, 6)  # 6 images: an epoch of both processes is 3 of each
        assert same(take(cfg, 4, start_iter=2), stream[2:])
        for batch in stream:
            (sample,) = parts(batch)[1]
            counts[sample["file_name"]] = counts.get(sample["file_name"], 0) + 1
    assert len(counts) == 6 and set(counts.values()) == {2}


@pytest.mark.parametrize(
    "share, size, expected", [(0.5, 4, 2), (0.5, 5, 3), (0.4, 3, 1), (0.25, 2, 1), (0.9, 16, 14)]
)
def test_the_number_is_rounded_halves_up(share, size, expected, loader_config):
    assert num_unlabeled(loader_config(["UNLABELED.SHARE", share]), size) == expected


@pytest.mark.parametrize(
    "opts, said",
    [
        (["UNLABELED.SHARE", 1.0], "UNLABELED.SHARE is 1.0: it must be 0 .off. or a share below"),
        (["UNLABELED.SHARE", -0.1], "UNLABELED.SHARE is -0.1"),
        (["UNLABELED.SHARE", 0.0], "UNLABELED.SHARE is 0.0 and .* names 1 dataset: set both"),
        (["DATASETS.UNLABELED", ()], "UNLABELED.SHARE is 0.4 and .* names 0 datasets: set both"),
        (["UNLABELED.SHARE", 0.9], "of the 3 images of a forward pass 3 would be unlabeled"),
        (["UNLABELED.SHARE", 0.1], "of the 3 images of a forward pass 0 would be unlabeled"),
    ],
)
def test_shares_that_cannot_be_had(opts, said, loader_config):
    with pytest.raises(AIDError, match=said):
        build_train_loader(loader_config(opts))


def test_a_folder_of_images(folder):
    records = load_images(folder)
    assert [x["image_id"] for x in records] == list(range(6))
    assert [x["file_name"][len(folder) :] for x in records[-2:]] == ["/4.png", "/rear/A.JPG"]
    assert (records[1]["width"], records[1]["height"]) == (64, 96)
    assert "annotations" not in records[0]


def test_an_image_that_is_read_upright(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64)).save(f"{folder}/0.png", exif=exif)
    first = load_images(folder)[0]
    assert (first["width"], first["height"]) == (64, 96)


def test_sizes_are_those_that_detectron2_reads(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    damaged = b"Exif\x00\x00no TIFF header"
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    image = Image.new("RGB", (96, 64))
    for name, options in (
        ("damaged.jpg", {"exif": damaged}),
        ("damaged.png", {"exif": damaged}),
        ("rotated.png", {"exif": exif}),
        ("rotated.tif", {"exif": exif}),
        ("rotated.webp", {"exif": exif}),
        ("xmp.jpg", {"xmp": xmp}),
    ):
        image.save(tmp_path / name, **options)
    records = load_images(str(tmp_path))
    assert len(records) == 6
    for x in records:
        assert read_image(x["file_name"], "RGB").shape == (x["height"], x["width"], 3)


def test_no_image_of_a_folder_comes_twice(folder):
    os.symlink(folder, f"{folder}/self")
    os.symlink(f"{folder}/rear", f"{folder}/again")
    with open(f"{folder}/._0.png", "w") as f:  # as macOS writes them beside images
        f.write("no image")
    assert len(load_images(folder)) == 6


def test_folders_without_images(folder, tmp_path):
    with pytest.raises(AIDError, match=f"^image folder {tmp_path}/gone does not exist"):
        load_images(f"{tmp_path}/gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AIDError, match="empty has no file with extension .bmp, .jpeg"):
        load_images(f"{tmp_path}/empty")
    with open(f"{folder}/3.png", "rb") as f:
        header = f.read(20)  # of IHDR, with the size
    for content in (b"no image", header):
        with open(f"{folder}/3.png", "wb") as f:
            f.write(content)
        with pytest.raises(AIDError, match="3.png cannot be read: .*: replace or remove it"):
            load_images(folder)


def test_pixels_are_not_decoded(folder, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert len(load_images(folder)) == 6
