#!/usr/bin/env python3
"""Train or evaluate a teacher, a plain student or a distilled student.

    python train_net.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml --num-gpus 4
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth

A config whose MODEL.META_ARCHITECTURE is one of this project's distils; any other trains as plain
Detectron2.
"""

import sys

import aid  # noqa: F401  (registers models, losses and datasets)

# isort: split
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import launch
from detectron2.evaluation import verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from aid.checkpoint import StrictCheckpointer
from aid.engine import AIDTrainer, argument_parser, setup
from aid.errors import AIDError, main_with_clear_errors


@main_with_clear_errors
def main(args):
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def evaluate(cfg, resume):
    model = build_model(cfg)  # the plain detector: no teacher
    last = DetectionCheckpointer(model, cfg.OUTPUT_DIR)
    weights = last.get_checkpoint_file() if resume and last.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not weights:
        raise AIDError("--eval-only needs weights: add MODEL.WEIGHTS PATH, or --resume")
    StrictCheckpointer(model, "MODEL.WEIGHTS").load(weights)
    results = AIDTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


@main_with_clear_errors
def run(args):
    if args.num_gpus > max(1, torch.cuda.device_count()):
        raise AIDError(
            f"--num-gpus {args.num_gpus}: torch finds {torch.cuda.device_count()} GPUs here; "
            "--num-gpus 0 runs on the CPU"
        )
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessExitedException as error:  # a process has said what is wrong
        sys.exit(error.exit_code)


if __name__ == "__main__":
    run(argument_parser().parse_args())
