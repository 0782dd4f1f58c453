"""Setup of a config from arguments: seeds, devices, folders and datasets."""

import re

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from aid.config import load_config
from aid.data.classes import check_class_lists
from aid.data.coco import register_coco
from aid.data.kitti import register_kitti
from aid.engine import AIDTrainer
from aid.engine.setup import check_dataset
from aid.evaluation import check_evaluator
from aid.utils.errors import AIDError


def test_configured_seed_is_kept(configure):
    cfg = configure("--num-gpus", "0")
    assert cfg.SEED == 3 and cfg.MODEL.DEVICE == "cpu" and cfg.is_frozen()


def test_drawn_seed_is_on_the_screen(configure, no_handlers, capsys):
    seed = configure(opts=["SEED", -1]).SEED
    assert f"; SEED {seed}\n" in capsys.readouterr().out


def test_trainer_without_a_seed_is_refused(configure):
    cfg = configure().clone()
    cfg.defrost()
    cfg.SEED = -1
    with pytest.raises(AIDError, match="SEED is -1: set one of 0 or more"):
        AIDTrainer(cfg)


def test_seed_that_numpy_does_not_take_is_refused(configure):
    with pytest.raises(AIDError, match=f"SEED is 20240115123456: it must be {2**32 - 1} at most"):
        configure(opts=["SEED", 20240115123456])


def test_drawn_seed_is_restored_at_resume(configure):
    seed = configure(opts=["SEED", -1]).SEED
    assert seed >= 0
    assert configure("--resume", opts=["SEED", -1]).SEED == seed
    assert configure(opts=["SEED", -1]).SEED != seed


@pytest.mark.parametrize("config", ["without a seed", "gone"])
def test_drawn_seed_is_restored_from_the_checkpoint(config, configure, tmp_path):
    configure(opts=["SEED", -1])
    path = tmp_path / "out" / "config.yaml"
    if config == "gone":
        path.unlink()
    else:
        path.write_text(re.sub("(?m)^SEED: .*$", "SEED: -1", path.read_text()))
    assert configure("--resume", opts=["SEED", -1]).SEED >= 0  # no checkpoint yet
    torch.save({"trainer": {"conditions": {"SEED": 12}}}, tmp_path / "out" / "model_0000001.pth")
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000001.pth")
    if config == "gone":
        path.unlink()
    else:
        path.write_text(re.sub("(?m)^SEED: .*$", "SEED: -1", path.read_text()))
    assert configure("--resume", opts=["SEED", -1]).SEED == 12


def test_main_process_determines_the_seed(configure, monkeypatch):
    """The other processes may read a missing or incomplete config.yaml."""
    configure(opts=["SEED", -1])
    monkeypatch.setattr(comm, "all_gather", lambda x: [5, x])
    assert configure("--resume", opts=["SEED", -1]).SEED == 5


def test_evaluation_keeps_the_config_of_the_run(configure, tmp_path):
    seed = configure(opts=["SEED", -1]).SEED
    before = (tmp_path / "out" / "config.yaml").read_bytes()
    cfg = configure("--eval-only", opts=["SEED", -1, "SOLVER.MAX_ITER", 7])
    assert cfg.OUTPUT_DIR == str(tmp_path / "out")
    assert (tmp_path / "out" / "config.yaml").read_bytes() == before
    assert b"MAX_ITER: 7" in (tmp_path / "out" / "inference" / "config.yaml").read_bytes()
    assert configure("--resume", opts=["SEED", -1]).SEED == seed


def test_reference_number_of_processes_is_in_the_records_of_the_run(configure):
    """Reports read the values of the run from them."""
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 3]
    cfg = configure(opts=opts)
    saved = load_config(f"{cfg.OUTPUT_DIR}/config.yaml")
    assert (saved.SOLVER.IMS_PER_BATCH, saved.SOLVER.MAX_ITER) == (2, 6)
    assert AIDTrainer(cfg).max_iter == 6


def test_missing_gpu_is_refused(configure, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(AIDError, match="MODEL.DEVICE is cuda, but torch finds no GPU"):
        configure(opts=["MODEL.DEVICE", "cuda"])
    assert configure("--num-gpus", "0", opts=["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cpu"


def test_several_gpus_are_refused_for_a_cpu_model(configure):
    with pytest.raises(AIDError, match="MODEL.DEVICE is cpu, but --num-gpus is 4"):
        configure("--num-gpus", "4")
    with pytest.raises(AIDError, match="--num-gpus is 1.* --num-processes starts several"):
        configure("--num-machines", "2")


def test_single_gpu_is_refused_for_several_processes(configure, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(AIDError, match="MODEL.DEVICE cuda:1 is one GPU for several processes"):
        configure(opts=["MODEL.DEVICE", "cuda:1"])


def test_mixed_precision_is_refused_on_the_cpu(configure):
    amp = ["SOLVER.AMP.ENABLED", True]
    with pytest.raises(AIDError, match="AMP.ENABLED is on, but MODEL.DEVICE is cpu: mixed preci"):
        configure(opts=amp)
    assert configure("--eval-only", opts=amp).SOLVER.AMP.ENABLED
    assert configure(opts=[*amp, "SOLVER.AMP.DTYPE", "bfloat16"]).SOLVER.AMP.ENABLED


@pytest.mark.parametrize("key", ["TRAIN", "UNLABELED", "TEST"])
def test_records_without_the_size_of_their_image_are_refused(key, configure, toy_dataset):
    records = DatasetCatalog.get(toy_dataset)
    del records[3]["width"]
    name = f"{toy_dataset}_{key}"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = ["Car", "Pedestrian", "Cyclist"]
    opts = [f"DATASETS.{key}", (name,), "UNLABELED.SHARE", 0.5 if key == "UNLABELED" else 0.0]
    try:
        with pytest.raises(AIDError, match=f"^DATASETS.{key}: in {name} .*3.png has no width and"):
            configure(opts=opts)
        if key == "TRAIN":
            configure(opts=[*opts, "DATALOADER.ASPECT_RATIO_GROUPING", False])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_test_set_without_class_names_is_refused(configure, toy_dataset):
    """Such as a folder of images; COCO's metric would end with an error after the training."""
    name = f"{toy_dataset}_unnamed"
    DatasetCatalog.register(name, lambda: DatasetCatalog.get(toy_dataset))
    try:
        with pytest.raises(AIDError, match=f"^DATASETS.TEST: the names of the classes of {name}"):
            configure(opts=["DATASETS.TEST", (name,)])
        configure(opts=["DATASETS.TRAIN", (name,)])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "image_id, message",
    [(0, "3.png has the image_id of .*0.png: give every image"), (None, "3.png has no image_id")],
)
def test_missing_or_duplicate_image_ids_are_refused(image_id, message, configure, toy_dataset):
    records = DatasetCatalog.get(toy_dataset)
    records[3]["image_id"] = image_id
    DatasetCatalog.remove(toy_dataset)
    DatasetCatalog.register(toy_dataset, lambda: records)
    with pytest.raises(AIDError, match=message):
        configure()


@pytest.mark.parametrize("annotations", [[], [{"iscrowd": 1}], None])
def test_dataset_without_objects_is_refused(annotations, configure, toy_dataset, caplog):
    records = [{**x, "annotations": annotations} for x in DatasetCatalog.get(toy_dataset)]
    if annotations is None:
        records = [{k: v for k, v in x.items() if k != "annotations"} for x in records]
    DatasetCatalog.remove(toy_dataset)
    DatasetCatalog.register(toy_dataset, lambda: records)
    with pytest.raises(AIDError, match="has no object to train on in 7 images"):
        configure()
    configure("--eval-only")
    assert "has no object in 7 images, and every AP will be NaN: check its labels" in caplog.text
    records.clear()
    with pytest.raises(AIDError, match="DATASETS.TEST: .* has no image"):
        configure("--eval-only")


def test_missing_kitti_labels_are_reported_before_training(configure, toy_dataset):
    del MetadataCatalog.get(toy_dataset).evaluator_type
    MetadataCatalog.get(toy_dataset).evaluator_type = "kitti"
    with pytest.raises(AIDError, match="has evaluator_type 'kitti', but no kitti_labels"):
        configure()


def test_unsupported_metric_is_reported_before_training(configure, toy_dataset):
    del MetadataCatalog.get(toy_dataset).evaluator_type
    MetadataCatalog.get(toy_dataset).evaluator_type = "lvis"
    with pytest.raises(AIDError, match="evaluator_type 'lvis', this project evaluates by COCO's"):
        configure("--num-gpus", "0")


def test_settings_without_effect_are_refused(configure):
    with pytest.raises(AIDError, match="TEST.AUG.ENABLED is on, .*: turn it off"):
        configure(opts=["TEST.AUG.ENABLED", True])
    configure(opts=["DATASETS.TEST", ()])  # a training without evaluation
    with pytest.raises(AIDError, match="--eval-only: DATASETS.TEST is empty: name"):
        configure("--eval-only", opts=["DATASETS.TEST", ()])


def test_evaluation_needs_no_training_set(configure):
    with pytest.raises(AIDError, match=r"'kiti_train' is not registered .did you mean kitti_train"):
        configure(opts=["DATASETS.TRAIN", ("kiti_train",)])
    with pytest.raises(AIDError, match="'gone' is not registered"):
        configure(opts=["DATASETS.TRAIN", ("gone",)])
    configure("--eval-only", opts=["DATASETS.TRAIN", ("gone",)])


def test_dataset_with_another_number_of_classes_is_refused(configure, tmp_path):
    name = f"two_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(thing_classes=["Car", "Bus"])
    with pytest.raises(AIDError, match=r"NUM_CLASSES is 3, but .* has 2 classes \(Car, Bus\)"):
        configure(opts=["DATASETS.TEST", (name,)])
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
@pytest.mark.parametrize("options", [[], ["--eval-only"]])
def test_datasets_with_different_class_lists_are_refused(
    key, options, configure, toy_dataset, tmp_path
):
    """Predictions are indices into the list: another order makes them wrong."""
    name = f"turned_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: DatasetCatalog.get(toy_dataset))
    MetadataCatalog.get(name).set(thing_classes=["Car", "Cyclist", "Pedestrian"])
    both = [f"DATASETS.{key}", (toy_dataset, name)]
    message = f"class 1 is Pedestrian in DATASETS.* {toy_dataset}, Cyclist in DATASETS.{key} {name}"
    with pytest.raises(AIDError, match=f"class lists differ: {message}: .* in one order"):
        configure(*options, opts=both)
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(thing_classes=("Car", "Pedestrian", "Cyclist"))
    configure(*options, opts=both)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_shorter_class_list_is_refused(tmp_path):
    names = [f"short_{tmp_path.name}", f"long_{tmp_path.name}"]
    for name, classes in zip(names, (["Car"], ["Car", "Bus"]), strict=True):
        MetadataCatalog.get(name).thing_classes = classes
    with pytest.raises(AIDError, match="class 1 is missing in here short_.*, Bus in there long_"):
        check_class_lists(zip(("here", "there"), names, strict=True))
    for name in names:
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "gfl"])
def test_number_of_classes_is_read_from_the_key_of_each_family(kind, tiny_config, toy_dataset):
    cfg = load_config(tiny_config(kind))
    check_dataset(cfg, "TRAIN", toy_dataset)
    head = {"faster_rcnn": "ROI_HEADS", "retinanet": "RETINANET", "gfl": "GFL"}[kind]
    cfg.MODEL[head].NUM_CLASSES = 4
    cfg.MODEL.META_ARCHITECTURE = f"AID{cfg.MODEL.META_ARCHITECTURE}"
    with pytest.raises(AIDError, match=f"MODEL.{head}.NUM_CLASSES is 4, but DATASETS.TRAIN .* 3"):
        check_dataset(cfg, "TRAIN", toy_dataset)


def test_register_file_is_run_first(configure, toy_dataset, tmp_path):
    with pytest.raises(AIDError, match="--register gone.py does not exist"):
        configure("--register", "gone.py")
    name = f"from_file_{tmp_path.name}"
    script = tmp_path / "register.py"
    script.write_text(
        "from detectron2.data import DatasetCatalog\n"
        f"DatasetCatalog.register({name!r}, lambda: DatasetCatalog.get({toy_dataset!r}))\n"
    )
    cfg = configure("--register", str(script), opts=["DATASETS.TRAIN", (name,)])
    assert cfg.DATASETS.TRAIN == (name,)
    DatasetCatalog.remove(name)


@pytest.fixture
def odd_boxes(toy_dataset, no_handlers):
    """The toy data with a box that leaves its image in each image."""
    records = DatasetCatalog.get(toy_dataset)
    for record in records:
        record["annotations"][0]["bbox"] = [0, 0, 900, 20]
    DatasetCatalog.remove(toy_dataset)
    DatasetCatalog.register(toy_dataset, lambda: records)


def test_data_warnings_are_logged_once_per_dataset(configure, odd_boxes, tmp_path, capsys):
    """The warnings precede log.txt, to which they are written later."""
    configure()
    log = (tmp_path / "out" / "log.txt").read_text()
    lines = [x for x in log.splitlines() if "boxes leave their image" in x]
    assert ["DATASETS.TRAIN" in x for x in lines] == [True, False]
    assert all("aid.data.plausibility" in x and "WARNING" in x for x in lines)
    output = capsys.readouterr()
    assert output.out.count("leave their image") == 2 and "leave" not in output.err


def test_warnings_before_an_error_are_printed(configure, odd_boxes, tmp_path, capsys):
    with pytest.raises(AIDError, match="'gone' is not registered"):
        configure(opts=["DATASETS.TEST", ("gone",)])
    assert "leave their image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("register", [register_kitti, register_coco])
def test_detections_as_labels_are_no_test_set(register):
    register("detected", "gone", "gone", "-", min_score=0.0)
    try:
        with pytest.raises(AIDError, match="detected has detections in place of labels"):
            check_evaluator("detected")
    finally:
        DatasetCatalog.remove("detected")
        MetadataCatalog.remove("detected")


def test_screen_has_a_summary_and_the_log_everything(configure, no_handlers, tmp_path, capsys):
    cfg = configure("--num-gpus", "0")
    AIDTrainer(cfg).resume_or_load(resume=True)
    screen = capsys.readouterr().out
    for fact in (
        f"Config file {tmp_path}/faster_rcnn.yaml",
        f"Output folder {tmp_path}/out; ",
        "Device cpu; processes: 1; loader workers of each process: 4; CPU cores here: ",
        "DATASETS.TRAIN: toy_",
        " (7 images)",
        "40000 iterations of 16 images; SEED 3",
        "GeneralizedRCNN: 0.1 M parameters, from random weights",
        "--resume: no checkpoint yet, a fresh start",
    ):
        assert fact in screen
    assert len(screen.splitlines()) == 9  # with a warning: it is tested on its training set
    log = (tmp_path / "out" / "log.txt").read_text()
    for fact in (*screen.splitlines(), "Environment info", "MAX_ITER: 40000", "Model:\n", "Serial"):
        assert fact.split("]: ")[-1] in log


def test_summary_of_an_evaluation_has_no_training_set(configure, no_handlers, capsys):
    configure("--num-gpus", "0", "--eval-only")
    screen = capsys.readouterr().out
    assert "DATASETS.TEST: toy_" in screen
    assert "TRAIN" not in screen and "iterations" not in screen


def test_missing_weights_are_reported_before_the_folder_is_made(configure, tmp_path):
    for opts, message in (
        ([], "--eval-only needs weights: add MODEL.WEIGHTS PATH, or --resume"),
        (["gone.pth"], "MODEL.WEIGHTS gone.pth does not exist: restore it, or name another"),
        ([str(tmp_path)], f"MODEL.WEIGHTS {tmp_path} cannot be read .*Is a directory"),
    ):
        with pytest.raises(AIDError, match=message):
            configure("--eval-only", "--resume", opts=["MODEL.WEIGHTS", *(opts or [""])])
        if opts:
            with pytest.raises(AIDError, match=message):
                configure("--num-gpus", "0", "--resume", opts=["MODEL.WEIGHTS", *opts])
    assert not (tmp_path / "out").exists()


def test_weights_may_have_the_query_of_detectron2(configure, tmp_path):
    """With it, the names of a backbone's weights are matched by their ends."""
    (tmp_path / "a.pth").write_bytes(b"")
    key, query = "MODEL.WEIGHTS", "?matching_heuristics=True"
    configure("--num-gpus", "0", opts=[key, f"{tmp_path}/a.pth{query}"])
    message = r"b.pth\?matching_heuristics=True does not exist .did you mean .*/a.pth\?.: restore"
    with pytest.raises(AIDError, match=message):
        configure("--num-gpus", "0", opts=[key, f"{tmp_path}/b.pth{query}"])


def test_ignored_key_is_on_the_screen_and_in_the_log(configure, no_handlers, tmp_path, capsys):
    configure("--num-gpus", "0", opts=["AID.MOMENTUM", 0.5])
    warning = "Deprecated config key (ignoring): AID.MOMENTUM"
    assert capsys.readouterr().out.count(warning) == 1
    assert (tmp_path / "out" / "log.txt").read_text().count(warning) == 1
