"""Light student of the Quickstart: two iterations, then the plain detector with its weights."""

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import GeneralizedRCNN, build_model

from aid.config import load_config
from aid.engine import AIDTrainer
from aid_tools.export import compare_detections, export, load_exported


def test_light_student_is_trained_and_exported(tiny_config, toy_dataset, repository, tmp_path):
    heads = ["MODEL.FPN.OUT_CHANNELS", 64, "MODEL.ROI_BOX_HEAD.FC_DIM", 128]
    teacher, weights = tiny_config("faster_rcnn", heads), str(tmp_path / "teacher.pth")
    torch.save({"model": build_model(load_config(teacher)).state_dict()}, weights)
    opts = ["DATASETS.TRAIN", (toy_dataset,), "DATASETS.TEST", (), "MODEL.DEVICE", "cpu"]
    opts += ["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", str(tmp_path)]
    opts += ["TEACHER.CONFIG_FILE", teacher, "TEACHER.WEIGHTS", weights]
    folder = f"{repository}/configs/Quickstart"
    cfg = load_config(f"{folder}/faster_rcnn_MobileNetV3L_from_R34.yaml", opts)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.storage.history("loss_distill_pkd").latest() > 0

    opts = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    cfg = load_config(f"{folder}/faster_rcnn_MobileNetV3L_FPN.yaml", opts)
    plain = build_model(cfg).eval()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert type(plain) is GeneralizedRCNN and saved.keys() == plain.state_dict().keys()
    DetectionCheckpointer(plain).load(str(tmp_path / "model_final.pth"))
    assert all(torch.equal(x, saved[name]) for name, x in plain.state_dict().items())
    image = torch.randint(256, (3, 64, 96)).float()
    path = str(tmp_path / "model.pt")
    export(plain, "trace", image, path)
    difference = compare_detections(load_exported(path, "trace", 1), plain, [image], path)
    assert difference.detections > 10
