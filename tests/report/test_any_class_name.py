"""A run with unusual class names, from training to report."""

import json

from detectron2.data import MetadataCatalog

from aid.engine import AIDTrainer, setup, start_run
from aid_tools.report import load_run, write_report
from aid_tools.train_arguments import argument_parser

CLASSES = ["AP", "tiny", "$\\frac{$|a<b>\n\x1b[31m"]


def test_run_and_report_accept_unusual_class_names(student_config, toy_dataset, tmp_path):
    MetadataCatalog.pop(toy_dataset)
    MetadataCatalog.get(toy_dataset).set(thing_classes=CLASSES, evaluator_type="coco")
    opts = ["DATASETS.TRAIN", (toy_dataset,), "DATASETS.TEST", (toy_dataset,)]
    opts += ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1, "DATALOADER.NUM_WORKERS", 0]
    opts += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "OUTPUT_DIR", str(tmp_path / "run")]
    path = tmp_path / "run.yaml"
    path.write_text(student_config("faster_rcnn", opts=opts).dump())
    cfg = setup(argument_parser().parse_args(["--config-file", str(path)]))
    trainer = AIDTrainer(cfg)
    start_run(cfg, resume=False)
    trainer.resume_or_load(resume=False)
    trainer.train()
    run, output = load_run(str(tmp_path / "run")), tmp_path / "report"
    write_report([run], str(output), num_images=1, num_train=7, threshold=0.5)
    (row,) = json.loads((output / "report.json").read_text())["runs"]
    last = {key: value for line in run.metrics for key, value in line.items()}
    assert row["AP"] == last["bbox/AP"]
    assert row["classes"] == {name: last[f"bbox/AP-{name}"] for name in CLASSES}
    for page in ("report.md", "report.html"):
        assert "\x1b" not in (output / page).read_text()
    lines = (output / "report.md").read_text().splitlines()
    (header,) = (x for x in lines if x.startswith("| run") and "tiny" in x)
    assert [x.strip() for x in header.split("|")[1:-1]] == [
        *("run", "AP", "tiny"), "$&#92;frac{$&#124;a&lt;b>&#92;n&#92;x1b[31m"
    ]  # fmt: skip
