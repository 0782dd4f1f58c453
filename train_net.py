#!/usr/bin/env python3
"""Train or evaluate a teacher, a plain student or a distilled student.

    python train_net.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml --num-gpus 4
    python train_net.py --config-file ... --num-gpus 4 --dry-run      # estimate of time and memory
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth
    torchrun --nproc-per-node 4 train_net.py --config-file ...

If MODEL.META_ARCHITECTURE is one of this project, the model is trained with distillation, otherwise
as by Detectron2.
"""

import aid  # noqa: F401  (registers models, losses and datasets)

# isort: split
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from aid.checkpoint import SafeCheckpointer, StrictCheckpointer
from aid.engine import AIDTrainer, argument_parser, dry_run, launch, setup, start_run
from aid.modeling.build import build_detector
from aid.utils.errors import AIDError, main_with_clear_errors


def main(args):
    if args.dry_run:
        return dry_run(args)
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    trainer = AIDTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    start_run(cfg, args.resume)
    return trainer.train()


def evaluate(cfg, resume):
    model = build_detector(cfg)  # without building teachers
    last = SafeCheckpointer(model, cfg.OUTPUT_DIR)
    weights = last.get_checkpoint_file() if resume and last.has_checkpoint() else cfg.MODEL.WEIGHTS
    if not weights:
        raise AIDError("--eval-only needs weights: add MODEL.WEIGHTS PATH, or --resume")
    StrictCheckpointer(model, "MODEL.WEIGHTS").load(weights)
    results = AIDTrainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


if __name__ == "__main__":
    main_with_clear_errors(launch)(main, argument_parser().parse_args())
