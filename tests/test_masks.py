"""Mask R-CNN on data with masks: training, evaluation and checks of the data."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Boxes, Instances
from PIL import Image

from aid.data import build_train_loader, register_coco
from aid.engine import AIDTrainer, setup, start_run
from aid.evaluation import build_evaluator
from aid.evaluation.coco_evaluation import CheckedCOCOEvaluator
from aid.utils.errors import AIDError
from aid_tools.report import load_run, write_report
from aid_tools.train_arguments import argument_parser

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools

HEIGHT, WIDTH = 64, 96
# x, y, width, height of the objects of every image, disjoint; the last one is a crowd.
BOXES = ([4, 6, 30, 22], [40, 10, 20, 44], [66, 8, 24, 20], [70, 40, 20, 16])
COLORS = ((200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90))


def ellipse(box):
    """Polygon of 32 points of the ellipse that fills a box x, y, width, height."""
    x, y, width, height = box
    turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    points = [x + width / 2 * (1 + np.cos(turn)), y + height / 2 * (1 + np.sin(turn))]
    return np.stack(points, axis=1).round(2).flatten().tolist()


def as_rle(polygon):
    (rle,) = mask_util.frPyObjects([polygon], HEIGHT, WIDTH)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def as_pixels(polygon):
    return mask_util.decode(as_rle(polygon)).astype(bool)


def annotation(number, image_id, box, is_polygon):
    crowd = box == BOXES[-1]
    segmentation = [ellipse(box)] if is_polygon and not crowd else as_rle(ellipse(box))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1 + BOXES.index(box) % 3,
        "bbox": box,
        "area": float(as_pixels(ellipse(box)).sum()),
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }


@pytest.fixture
def dataset(tmp_path):
    """A function (are masks polygons, change) -> name of a dataset of 4 images with ellipses.

    ``change`` is called with the content of the json file before that is written.
    """
    names = []

    def make(is_polygon=True, change=lambda coco: None) -> str:
        pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        for box, color in zip(BOXES, COLORS, strict=True):
            pixels[as_pixels(ellipse(box))] = color
        names.append(f"ellipses_{len(names)}_{tmp_path.name}")
        coco = {"images": [], "annotations": [], "categories": []}
        coco["categories"] = [{"id": i, "name": f"color {i}"} for i in (1, 2, 3)]
        for i in (1, 2, 3, 4):
            Image.fromarray(pixels).save(tmp_path / f"{i}.png")
            size = {"height": HEIGHT, "width": WIDTH}
            coco["images"].append({"id": i, "file_name": f"{i}.png", **size})
            for box in BOXES:
                number = len(coco["annotations"]) + 1
                coco["annotations"].append(annotation(number, i, box, is_polygon))
        change(coco)
        path = tmp_path / f"{names[-1]}.json"
        path.write_text(json.dumps(coco))
        register_coco(names[-1], str(path), str(tmp_path))
        return names[-1]

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def configure(student_config, tmp_path):
    """A function (train set, test set, opts, teacher) -> config of 2 steps of a Mask R-CNN."""

    def call(train: str, test: str, opts=(), teacher="mask_rcnn"):
        keys = ["DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,), "DATALOADER.NUM_WORKERS", 0]
        keys += ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 0.001]
        keys += ["INPUT.MIN_SIZE_TRAIN", (0,), "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
        keys += ["OUTPUT_DIR", str(tmp_path / "out"), *opts]
        path = tmp_path / "run.yaml"
        path.write_text(student_config("mask_rcnn", teacher, keys).dump())
        return setup(argument_parser().parse_args(["--config-file", str(path)]))

    return call


# --- training


@pytest.mark.parametrize("teacher", ["mask_rcnn", "faster_rcnn"])
def test_distilled_run_reports_box_and_mask_ap(teacher, dataset, configure, tmp_path):
    name = dataset()
    cfg = configure(name, name, ["TEACHER.EVAL_FIRST", True], teacher)
    trainer = AIDTrainer(cfg)
    start_run(cfg, resume=False)
    trainer.resume_or_load(resume=False)
    trainer.train()
    run = load_run(cfg.OUTPUT_DIR)
    last = {name: value for line in run.metrics for name, value in line.items()}
    assert last["loss_mask"] > 0 and last["loss_distill_feature"] > 0
    measured = {f"{task}/{x}" for task in ("bbox", "segm") for x in ("AP", "AP50", "AP-color 3")}
    assert all(0 <= last[name] <= 100 for name in measured)
    assert run.results["mask AP"] == last["segm/AP"]
    write_report([run], str(tmp_path / "report"), num_images=1, num_train=1, threshold=0.5)
    lines = (tmp_path / "report" / "report.md").read_text().splitlines()
    header, _, row = [line for line in lines if line.startswith("|")][:3]
    column = [name.strip() for name in header.split("|")].index("mask AP")
    assert row.split("|")[column].strip() == f"{last['segm/AP']:.1f}"


def test_mask_teacher_is_evaluated_by_boxes_without_mask_labels(
    toy_dataset, student_config, tmp_path
):
    keys = ["DATASETS.TRAIN", (toy_dataset,), "DATASETS.TEST", (toy_dataset,)]
    keys += ["OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", 0]
    keys += ["SOLVER.IMS_PER_BATCH", 2]
    cfg = student_config("faster_rcnn", "mask_rcnn", keys)
    trainer = AIDTrainer(cfg)
    trainer.model.teacher.detector.roi_heads.box_predictor.test_score_thresh = 0.0
    (results,) = trainer.test_teachers()
    assert set(results) == {"bbox"}


def test_labels_without_masks_are_evaluated_by_boxes_and_keypoints(dataset, tmp_path):
    def change(coco):
        coco["annotations"][0].pop("segmentation")
        coco["annotations"].append({**coco["annotations"][1], "id": 99, "image_id": 99})

    evaluator = CheckedCOCOEvaluator(dataset(change=change), str(tmp_path))
    prediction = {"segmentation": as_rle(ellipse(BOXES[0])), "keypoints": [1.0, 1.0, 2.0]}
    assert evaluator._tasks_from_predictions([prediction]) == ["bbox", "keypoints"]


@pytest.mark.parametrize("crop", [False, True])
def test_masks_boxes_and_pixels_are_transformed_together(crop, dataset, configure):
    """Masks are compared pixel by pixel after flips and crops."""
    name = dataset(is_polygon=False)
    opts = ["INPUT.MASK_FORMAT", "bitmask", "INPUT.CROP.ENABLED", crop]
    opts += ["INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", [0.6, 0.6]]
    loader = iter(build_train_loader(configure(name, name, opts)))
    firsts = set()
    for _ in range(8):
        for sample in next(loader):
            firsts.add(tuple(sample["image"][:, 10, :].flatten().tolist()))
            instances = sample["instances"]
            assert len(instances) == 3 if not crop else len(instances) > 0
            boxes = instances.gt_masks.get_bounding_boxes().tensor
            assert (boxes - instances.gt_boxes.tensor).abs().max() <= 1
            for category, mask in zip(instances.gt_classes, instances.gt_masks, strict=True):
                color = torch.tensor(COLORS[category], dtype=torch.uint8)[:, None, None]
                assert torch.equal(mask, (sample["image"] == color).all(dim=0))
    assert len(firsts) > 1  # some image was flipped


def test_polygons_are_flipped_with_the_image(dataset, configure):
    name = dataset()
    for sample in next(iter(build_train_loader(configure(name, name)))):
        instances = sample["instances"]
        size = sample["image"].shape[1:]
        masks = BitMasks.from_polygon_masks(instances.gt_masks, *size).tensor
        for category, mask in zip(instances.gt_classes, masks, strict=True):
            color = torch.tensor(COLORS[category], dtype=torch.uint8)[:, None, None]
            drawn = (sample["image"] == color).all(dim=0)
            assert (mask & drawn).sum() / (mask | drawn).sum() > 0.85


# --- evaluation


def detections(boxes, shift=0):
    instances = Instances((HEIGHT, WIDTH))
    xywh = torch.tensor(boxes, dtype=torch.float32)
    instances.pred_boxes = Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1))
    instances.scores = torch.linspace(0.9, 0.5, len(boxes))
    instances.pred_classes = torch.arange(len(boxes)) % 3
    masks = np.stack([np.roll(as_pixels(ellipse(box)), shift, axis=1) for box in boxes])
    instances.pred_masks = torch.from_numpy(masks)
    return instances


@pytest.mark.parametrize("is_polygon", [True, False])
def test_perfect_masks_have_an_ap_of_100_and_shifted_ones_0(is_polygon, dataset, tmp_path):
    name = dataset(is_polygon)
    DatasetCatalog.get(name)  # registers the classes, as in a run
    evaluator = build_evaluator(name, str(tmp_path / "inference"))

    def evaluate(instances):
        evaluator.reset()
        evaluator.process([{"image_id": i} for i in (1, 2, 3, 4)], [{"instances": instances}] * 4)
        results = evaluator.evaluate()
        return {task: round(x["AP"], 3) for task, x in results.items()}

    # Detections in the crowd are ignored.
    assert evaluate(detections(BOXES)) == {"bbox": 100, "segm": 100}
    assert evaluate(detections(BOXES[:3])) == {"bbox": 100, "segm": 100}
    assert evaluate(detections(BOXES[:3], shift=16)) == {"bbox": 100, "segm": 0}


# --- invalid data


def without(*numbers):
    def change(coco):
        for number in numbers:
            del coco["annotations"][number]["segmentation"]

    return change


def empty(coco):
    coco["annotations"][2]["segmentation"] = []


@pytest.mark.parametrize("change, number", [(without(1), 1), (without(0, 1, 4), 3), (empty, 1)])
def test_missing_masks_are_reported_before_training(change, number, dataset, configure):
    good, bad = dataset(), dataset(change=change)
    message = f"{bad} has no mask for {number} of"
    with pytest.raises(AIDError, match=f"^DATASETS.TRAIN: {message} 12 objects, first in .*/1.png"):
        configure(bad, good)
    with pytest.raises(AIDError, match=f"^DATASETS.TEST: {message} 16 objects, .* MODEL.MASK_ON"):
        configure(good, bad)
    configure(bad, bad, ["MODEL.MASK_ON", False])


def test_masks_of_another_format_are_refused_before_training(dataset, configure, monkeypatch):
    polygons, pixels = dataset(), dataset(is_polygon=False)
    with pytest.raises(AIDError, match=f"{pixels} has masks that are no polygons, 12 of 12: set I"):
        configure(pixels, polygons)
    configure(pixels, pixels, ["INPUT.MASK_FORMAT", "bitmask"])
    monkeypatch.setattr("aid.data.masks.find_spec", lambda name: None)
    with pytest.raises(AIDError, match="polygons, which INPUT.CROP cuts with shapely: install it"):
        configure(polygons, polygons, ["INPUT.CROP.ENABLED", True])


def box_as_polygon(coco):
    coco["annotations"][1]["segmentation"] = [[4, 6, 30, 22]]


def nested(coco):
    points = coco["annotations"][1]["segmentation"][0]
    coco["annotations"][1]["segmentation"] = [np.reshape(points, (-1, 2)).tolist()]


@pytest.mark.parametrize("change", [box_as_polygon, nested])
def test_objects_without_a_usable_polygon_are_counted(change, dataset, configure, caplog):
    good, bad = dataset(), dataset(change=change)
    with pytest.raises(AIDError, match=f"^DATASETS.TEST: {bad} has no mask for 1 of 16 objects"):
        configure(good, bad)
    cfg = configure(bad, good)
    message = [x.getMessage() for x in caplog.records if "no usable polygon" in x.getMessage()]
    assert len(message) == 1 and message[0].startswith(
        f"DATASETS.TRAIN: {bad}: 1 of 12 objects, first"
    )

    def numbers(cfg):
        loader = iter(build_train_loader(cfg))
        return sorted(len(x["instances"]) for _ in range(2) for x in next(loader))

    assert numbers(cfg) == [2, 3, 3, 3]
    assert numbers(configure(bad, good, ["MODEL.MASK_ON", False])) == [3, 3, 3, 3]


def test_metric_and_training_use_the_same_polygons(dataset, tmp_path):
    def change(coco):
        coco["annotations"][0]["segmentation"].append([1, 2, 3, 4])

    name = dataset(change=change)
    DatasetCatalog.get(name)
    evaluator = build_evaluator(name, str(tmp_path / "inference"))
    labels = evaluator._coco_api.dataset["annotations"]
    assert [len(x["segmentation"]) for x in labels[:3]] == [1, 1, 1]


def test_metric_refuses_masks_unsafe_for_pycocotools(dataset, tmp_path):
    name = dataset()
    DatasetCatalog.get(name)
    path = MetadataCatalog.get(name).json_file
    with open(path) as f:
        coco = json.load(f)
    coco["annotations"][5]["segmentation"][0][0] = 1e9
    with open(path, "w") as f:
        json.dump(coco, f)
    with pytest.raises(AIDError, match=f"{name}: annotation 6 of image 2: its polygon has x 1000"):
        build_evaluator(name, str(tmp_path / "inference"))


def test_masks_of_registered_records_are_checked(dataset, configure):
    good = dataset()
    records = DatasetCatalog.get(good)
    records[0]["annotations"][0]["segmentation"][0][0] = float("nan")
    name = f"{good}_registered"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = MetadataCatalog.get(good).thing_classes
    try:
        with pytest.raises(AIDError, match=f"{name}: an object in .*/1.png: its polygon has x nan"):
            configure(name, good)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
