#!/usr/bin/env python3
"""Train or evaluate a teacher, a plain student or a distilled student.

    python train_net.py --config-file configs/AID/faster_rcnn_R18_from_R101.yaml --num-gpus 4
    python train_net.py --config-file ... --num-gpus 4 --dry-run      # estimate of time and memory
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/.../model_final.pth
    torchrun --nproc-per-node 4 train_net.py --config-file ...

If MODEL.META_ARCHITECTURE is one of this project, the model is trained with distillation, otherwise
as by Detectron2.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent / "projects/AID"))  # if not installed

from aid_tools.command import command
from aid_tools.train_arguments import argument_parser


def main(args: Namespace) -> object:
    """Train or evaluate, in each process of the run."""
    # Imported late, see aid_tools/command.py.
    from aid.data import datasets_loaded_once
    from aid.engine import AIDTrainer, dry_run, evaluate, setup, start_run

    if args.dry_run:
        return dry_run(args)
    with datasets_loaded_once():
        cfg = setup(args)
        if args.eval_only:
            return evaluate(cfg, args.resume)
        trainer = AIDTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    if trainer.start_iter < trainer.max_iter:  # else config.yaml stays that of the finished run
        start_run(cfg, args.resume)
    return trainer.train()


@command(argument_parser)
def start(args: Namespace) -> None:
    from aid.engine import launch

    launch(main, args)


if __name__ == "__main__":
    start()
