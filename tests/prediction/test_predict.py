"""tools/predict.py: inputs, outputs and errors."""

import json
import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import VisImage

from aid import Predictor
from aid.utils.errors import AIDError
from aid_tools.files import output_folder
from aid_tools.prediction import (
    KITTIWriter,
    PictureWriter,
    Source,
    check_names,
    count_frames,
    find_sources,
    predict,
    read_frames,
)
from aid_tools.prediction.sources import Frame
from aid_tools.prediction.writers import draw

SIZE = (96, 64)


@pytest.fixture
def video(tmp_path):
    """A function (name, number of frames, share) -> path of a video of noise, truncated."""

    def make(name: str = "clip.avi", number: int = 6, share: float = 1.0) -> str:
        path = tmp_path / name
        rng = np.random.default_rng(4)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, SIZE)
        for _ in range(number):
            writer.write(rng.integers(256, size=(*SIZE[::-1], 3), dtype=np.uint8))
        writer.release()
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return str(path)

    return make


def detection(category=0, score=0.9):
    actual = Instances(SIZE[::-1])
    actual.pred_boxes = Boxes(torch.tensor([[10.0, 20.0, 50.0, 60.0]]))
    actual.scores = torch.tensor([score])
    actual.pred_classes = torch.tensor([category])
    return actual


def test_frame_and_equal_image_have_equal_detections(saved, video, call, read_detections, tmp_path):
    clip = video()
    reader = cv2.VideoCapture(clip)
    for i in range(6):
        cv2.imwrite(str(tmp_path / f"{i}.png"), reader.read()[1])
    files = saved("faster_rcnn")
    args = [clip, str(tmp_path / "*.png"), "--batch-size", "6", "--format", "kitti", "coco"]
    assert call(files, *args) == (0, [])
    actual = read_detections()
    for i in range(6):
        assert actual[clip, i] == actual[str(tmp_path / f"{i}.png")] != []
        frame = tmp_path / f"out/kitti/clip/{i:06d}.txt"
        assert frame.read_text() == (tmp_path / f"out/kitti/{i}.txt").read_text()
    drawn = cv2.VideoCapture(str(tmp_path / "out/pictures/clip.mp4"))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (6, 10)
    assert drawn.read()[1].shape == cv2.imread(str(tmp_path / "out/pictures/0.jpg")).shape


def test_unreadable_inputs_are_reported_and_skipped(saved, video, toy_dataset, call, tmp_path):
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:200])
    (tmp_path / "text.mp4").write_text("no video")
    names = ["0.png", "broken.png", "missing.png", "cut.avi", "text.mp4", "1.png"]
    video("cut.avi", 8, 0.5)
    args = [*(str(tmp_path / name) for name in names), "--no-pictures"]
    status, lines = call(saved("faster_rcnn"), *args)
    assert status == 1
    assert [line.split(": ")[1] for line in lines] == [str(tmp_path / x) for x in names[1:5]]
    assert lines[1].endswith("does not exist") and "no video" in lines[3]
    written = json.loads((tmp_path / "out/detections.json").read_text())["images"]
    frames = [x for x in written if x["file_name"].endswith("cut.avi")]
    assert f"{8 - len(frames)} of 8 frames" in lines[2] and 0 < len(frames) < 8
    assert [x["file_name"] for x in written if x not in frames] == [args[0], args[5]]


def test_at_most_one_batch_is_read_ahead(saved):
    read = []

    def frames():
        for i in range(7):
            read.append(i)
            yield Frame(Source("a.avi", "a"), np.zeros((*SIZE[::-1], 3), np.uint8), i)

    numbers = []
    for frame, _ in predict(Predictor(*saved("faster_rcnn")), frames(), batch_size=3):
        numbers.append(frame.number)
        assert len(read) - frame.number <= 3
    assert numbers == list(range(7))


def test_detections_below_the_threshold_are_dropped():
    frames = [Frame(Source("a.png", "a"), np.zeros((*SIZE[::-1], 3), np.uint8))]
    actual = Instances.cat([detection(score=s) for s in (0.25, 0.5, 0.75)])
    predictor = SimpleNamespace(predict=lambda images: [actual])
    ((_, kept),) = predict(predictor, frames, 1, 0.5)
    assert kept.scores.tolist() == [0.5, 0.75]


def test_names_are_relative_to_the_common_folder(tmp_path):
    for name in ("a/1.png", "a/deep/1.png", "b/1.PNG", "b/note.txt", "b/clip.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def names(*inputs):
        return [x.name for x in find_sources([f"{tmp_path}/{pattern}" for pattern in inputs])]

    assert names("a") == ["1", "deep/1"]
    assert names("a", "b") == ["a/1", "a/deep/1", "b/1", "b/clip"]
    assert names("b/1.PNG", "a/1.png", "b") == ["b/1", "a/1", "b/clip"]
    assert names("**/1.png") == ["1", "deep/1"]  # all in subfolders of a
    assert names("b/missing.png") == ["missing"]


@pytest.mark.parametrize(
    "files", [("1.png", "1.jpg"), ("1.mp4", "1/000000.png"), ("1.avi", "1.png")]
)
def test_outputs_of_the_same_name_are_refused(files, tmp_path):
    (tmp_path / "1").mkdir()
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(AIDError, match="same name"):
        check_names(find_sources([str(tmp_path)]))


@pytest.mark.parametrize("pattern", [".", "*.png"])
def test_inputs_without_images_or_videos_are_refused(pattern, tmp_path):
    with pytest.raises(AIDError, match="neither an image nor a video"):
        find_sources([f"{tmp_path}/{pattern}"])


def test_linked_folders_are_searched_and_hidden_files_are_not(tmp_path):
    """As tools/convert_dataset.py links images, and as macOS adds files."""
    photos, data = tmp_path / "photos", tmp_path / "data"
    photos.mkdir()
    data.mkdir()
    (photos / ".Trash").mkdir()
    for name in ("a.png", "._a.png", ".Trash/b.png"):
        (photos / name).touch()
    (data / "images").symlink_to(photos)
    assert [x.path for x in find_sources([str(data)])] == [f"{data}/images/a.png"]


def test_output_folder_with_files_is_refused(saved, toy_dataset, call, tmp_path):
    files, image = saved("faster_rcnn"), str(tmp_path / "0.png")
    assert call(files, image)[0] == 0
    before = (tmp_path / "out/detections.json").read_bytes()
    status, lines = call(files, image)
    assert status == 2 and "is not empty" in lines[0]
    assert (tmp_path / "out/detections.json").read_bytes() == before


def test_nothing_is_written_if_no_input_can_be_read(saved, toy_dataset, call, tmp_path):
    """The corrected command can then have the same output folder."""
    files, formats = saved("faster_rcnn"), ["--format", "kitti", "coco"]
    status, lines = call(files, str(tmp_path / "gone.png"), *formats)
    assert (status, lines) == (1, [f"skipped: {tmp_path}/gone.png: does not exist"])
    assert os.listdir(tmp_path / "out") == []
    assert call(files, str(tmp_path / "0.png"), *formats) == (0, [])


@pytest.mark.parametrize("output", ["0.png", "0.png/below"])
def test_invalid_output_folder_is_refused(output, saved, toy_dataset, call, tmp_path):
    status, lines = call(saved("faster_rcnn"), str(tmp_path / "1.png"), output=output)
    assert status == 2 and "0.png" in lines[0] and "cannot be made" in lines[0]


def test_frames_of_videos_and_images_are_counted(video, tmp_path):
    sources = [Source(video(number=5), "clip"), Source("a.png", "a"), Source("gone.mp4", "gone")]
    assert count_frames(sources) == 6


def test_boxes_are_drawn_in_the_color_of_their_class():
    image = np.full((*SIZE[::-1], 3), 128, np.uint8)
    images = [draw(image, detection(k), ["Car", "Pedestrian"]) for k in (0, 1)]
    factor = images[0].shape[0] // SIZE[1]
    edge = [drawn[55 * factor, 50 * factor].astype(int) for drawn in images]
    assert np.abs(edge[0] - edge[1]).sum() > 60
    for drawn in images:
        assert (drawn[55 * factor, 30 * factor] == 128).all()  # inside the box


@pytest.mark.parametrize(
    "box", [[0, 57, 12, 63], [80, 50, 95, 60], [88, 0, 95, 63], [60, 2, 96, 9]]
)
def test_labels_are_inside_of_the_picture(box, monkeypatch):
    """Detectron2 puts that of a small object below it."""
    scenes = []
    real = VisImage.get_image
    monkeypatch.setattr(VisImage, "get_image", lambda self: scenes.append(self) or real(self))
    actual = detection()
    actual.pred_boxes = Boxes(torch.tensor([box], dtype=torch.float))
    height, width = draw(np.zeros((*SIZE[::-1], 3), np.uint8), actual, ["Pedestrian"]).shape[:2]
    (label,) = scenes[0].ax.texts
    extent = label.get_window_extent()
    assert 12 <= extent.height < height / 10
    assert 0 <= extent.x0 < extent.x1 < width + 1
    assert -1 < extent.y0 < extent.y1 < height + 1


def test_masks_are_enlarged_with_their_image():
    actual = detection()
    actual.pred_masks = torch.zeros(1, *SIZE[::-1], dtype=torch.bool)
    actual.pred_masks[0, 30:50, 20:40] = True
    drawn = draw(np.full((*SIZE[::-1], 3), 128, np.uint8), actual, ["Car"])
    factor = drawn.shape[0] // SIZE[1]
    assert (drawn[40 * factor, 30 * factor] != 128).any()
    assert (drawn[40 * factor, 45 * factor] == 128).all()


@pytest.mark.parametrize(
    "width, height, factor", [(1242, 375, 1), (640, 480, 2), (97, 65, 10), (320, 96, 3)]
)
def test_pictures_of_small_images_are_enlarged(width, height, factor, tmp_path):
    frames = [
        Frame(Source(f"a{suffix}", "a"), np.zeros((height, width, 3), np.uint8), 0, 9)
        for suffix in (".png", ".avi")
    ]
    with PictureWriter(str(tmp_path), ["Car"]) as writer:
        for frame in frames:
            writer.write(frame, detection())
    height, width = height * factor, width * factor
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (height, width, 3)
    size = cv2.VideoCapture(str(tmp_path / "a.mp4")).read()[1].shape
    assert size == (height // 2 * 2, width // 2 * 2, 3)  # which encoders require


def test_class_names_ambiguous_in_kitti_files_are_refused(tmp_path):
    with pytest.raises(AIDError, match="--format kitti: .*not distinct"):
        KITTIWriter(str(tmp_path), ["traffic light", "traffic_light"])
    with KITTIWriter(str(tmp_path), [" "]) as writer:
        writer.write(Frame(Source("a.png", "a"), np.zeros((4, 4, 3), np.uint8)), detection())
    assert (tmp_path / "a.txt").read_text().startswith("_ -1 ")


def test_class_name_is_drawn_literally():
    image = np.full((*SIZE[::-1], 3), 128, np.uint8)
    assert draw(image, detection(), ["$\\frac{$"]).any()


def test_class_name_with_spaces_is_one_field(tmp_path):
    with KITTIWriter(str(tmp_path), ["traffic light"]) as writer:
        writer.write(Frame(Source("a.png", "below/a"), np.zeros((4, 4, 3), np.uint8)), detection())
    fields = (tmp_path / "below/a.txt").read_text().split()
    assert len(fields) == 16 and fields[0] == "traffic_light"
    assert [float(x) for x in fields[4:8]] == [10, 20, 50, 60]


def test_classes_are_read_from_the_json_file(saved, toy_dataset, call, tmp_path):
    """Registration reads no file; categories have the ids of the file."""
    rows = [{"id": k, "name": n} for k, n in ((90, "pallet"), (3, "forklift"), (7, "person"))]
    content = {"categories": rows, "images": [], "annotations": []}
    (tmp_path / "val.json").write_text(json.dumps(content))
    name = f"file_{tmp_path.name}"
    (tmp_path / "own.py").write_text(
        "from aid.data import register_coco\n"
        f"register_coco({name!r}, {str(tmp_path / 'val.json')!r}, 'nowhere')\n"
    )
    files = saved("faster_rcnn", ["DATASETS.TEST", (name,)])
    args = [str(tmp_path / "0.png"), "--no-pictures", "--register", str(tmp_path / "own.py")]
    try:
        assert call(files, *args) == (0, [])
        (tmp_path / "val.json").unlink()
        status, lines = call(files, *args, output="gone")
        assert status == 2 and "val.json does not exist" in lines[0]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    written = json.loads((tmp_path / "out/detections.json").read_text())
    assert [(x["id"], x["name"]) for x in written["categories"]] == [
        (3, "forklift"), (7, "person"), (90, "pallet")
    ]  # fmt: skip
    assert {x["category_id"] for x in written["annotations"]} <= {3, 7, 90}


def test_number_of_detections_is_printed(saved, toy_dataset, load_script, tmp_path, capsys):
    """Empty pictures are then no riddle."""
    config, weights = saved("faster_rcnn")
    args = ["--config-file", config, "--weights", weights, "--no-pictures", "--score-threshold"]
    args += ["0", "--output", str(tmp_path / "out"), str(tmp_path / "0.png")]
    load_script("tools/predict.py").main(args)
    number = len(json.loads((tmp_path / "out/detections.json").read_text())["annotations"])
    expected = f"1 image, {number} detections with a score of at least 0: {tmp_path}/out\n"
    assert number > 1 and capsys.readouterr().out == expected


class Claim:
    """Video of three frames, the second unreadable, whose header claims 2**31 - 1."""

    def __init__(self, path):
        self.reads = 0
        self.isOpened, self.release = lambda: True, lambda: None

    def get(self, key):
        return 2.0**31 - 1 if key == cv2.CAP_PROP_FRAME_COUNT else 10.0

    def read(self):
        self.reads += 1
        assert self.reads < 10_000
        is_read = self.reads in (1, 3)
        return is_read, np.zeros((*SIZE[::-1], 3), np.uint8) if is_read else None


def test_false_length_of_a_video_ends_the_reading(monkeypatch):
    monkeypatch.setattr("cv2.VideoCapture", Claim)
    lines = []
    actual = [x.number for x in read_frames([Source("a.avi", "a")], lines.append)]
    assert actual == [0, 2]
    assert lines == ["a.avi: 2147483645 of 2147483647 frames cannot be read"]


def test_file_names_other_than_utf8_are_reported_and_skipped(saved, toy_dataset, call, tmp_path):
    """OpenCV would abort the process on such a name."""
    folder = tmp_path / "in"
    folder.mkdir()
    names = [b"a\xe9.avi", b"b\xe9.png"]
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), "wb") as f:
            f.write((tmp_path / "0.png").read_bytes())
    (folder / "plain.png").write_bytes((tmp_path / "0.png").read_bytes())
    status, lines = call(saved("faster_rcnn"), str(folder))
    assert status == 1 and len(lines) == 2
    for name, line in zip((r"a\xe9.avi", r"b\xe9.png"), lines, strict=True):
        assert line == f"skipped: {folder}/{name}: its name is not UTF-8: rename the file"
    assert os.listdir(tmp_path / "out/pictures") == ["plain.jpg"]


def test_output_folder_name_other_than_utf8_is_refused(saved, toy_dataset, call, tmp_path):
    status, lines = call(saved("faster_rcnn"), str(tmp_path / "0.png"), output="o\udce9")
    assert status == 2 and lines[0].endswith(r"o\xe9 is not UTF-8: choose another name")


@pytest.mark.parametrize("suffix", ["avi", "png"])
def test_images_and_videos_are_written_atomically(suffix, file_limit, tmp_path):
    """OpenCV does not report a failed write of a video."""
    rng = np.random.default_rng(1)
    noise = rng.integers(256, size=(480, 640, 3), dtype=np.uint8)  # more than a buffer
    frames = [Frame(Source(f"a.{suffix}", "a"), noise, i, 9) for i in range(5)]
    with (
        pytest.raises(AIDError, match=f"{tmp_path}.* cannot be written"),
        output_folder(str(tmp_path)),
        PictureWriter(str(tmp_path), ["Car"]) as writer,
        file_limit(10_000),
    ):
        for frame in frames:
            writer.write(frame, detection())
    assert os.listdir(tmp_path) == []
    with PictureWriter(str(tmp_path), ["Car"]) as writer:
        writer.write(frames[0], detection())
        assert (os.listdir(tmp_path) == ["a.jpg"]) == (suffix == "png")
    assert os.listdir(tmp_path) == ["a.mp4" if suffix == "avi" else "a.jpg"]


@pytest.mark.parametrize("rate", [119.9812, 90000.0])
def test_video_of_a_rate_that_mpeg4_lacks_is_written(rate, tmp_path):
    image = np.zeros((*SIZE[::-1], 3), np.uint8)
    with PictureWriter(str(tmp_path), ["Car"]) as writer:
        writer.write(Frame(Source("slow.mp4", "slow"), image, 0, rate), detection())
    assert (tmp_path / "slow.mp4").stat().st_size > 0


def test_interrupted_video_is_removed(tmp_path):
    frame = Frame(Source("a.avi", "a"), np.zeros((64, 96, 3), np.uint8), 0, 9)
    with (
        pytest.raises(KeyboardInterrupt),
        PictureWriter(str(tmp_path), ["Car"]) as writer,
    ):
        writer.write(frame, detection())
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_video_in_a_folder_named_like_a_url(video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("Exp:3")
    video("Exp:3/clip.avi", 2)
    frames = list(read_frames([Source("Exp:3/clip.avi", "clip")], pytest.fail))
    with PictureWriter("Exp:3", ["Car"]) as writer:
        for frame in frames:
            writer.write(frame, detection())
    assert sorted(os.listdir("Exp:3")) == ["clip.avi", "clip.mp4"]
