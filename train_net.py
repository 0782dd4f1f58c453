#!/usr/bin/env python3
"""Train or evaluate a teacher, a plain student or a distilled student.

    python train_net.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml --num-gpus 4
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth

A config whose MODEL.META_ARCHITECTURE is one of this project's distils; any other trains as plain
Detectron2.
"""

import sys

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser, launch
from detectron2.evaluation import verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm

import aid  # noqa: F401  (registers models, losses and datasets)
from aid.engine import AIDTrainer, setup
from aid.errors import AIDError, main_with_clear_errors


@main_with_clear_errors
def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = build_model(cfg)  # the plain detector: no teacher
        if not cfg.MODEL.WEIGHTS and not args.resume:
            raise AIDError("--eval-only needs weights: add MODEL.WEIGHTS PATH, or --resume")
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
            cfg.MODEL.WEIGHTS, resume=args.resume
        )
        results = AIDTrainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    sys.exit(0)
