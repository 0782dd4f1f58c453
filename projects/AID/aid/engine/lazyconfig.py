"""Training and evaluation with a LazyConfig, for tools/lazyconfig_train_net.py."""

import logging
import os

from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetMapper
from detectron2.engine import create_ddp_model, default_setup, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..checkpoint import StrictCheckpointer, StudentCheckpointer
from ..config import check_exists
from ..data.build import CheckedMapper
from ..data.seeding import check_seed
from ..modeling.inheritance import inherit
from ..utils.errors import AIDError, ignore_known_deprecations
from ..utils.files import check_folder_name, clear_write_errors, lock_folder
from ..utils.suggestions import did_you_mean
from .accumulation import AccumulatingAMPTrainer, AccumulatingTrainer
from .errors import without_known_tracebacks
from .hooks import SeedStep, TimeFirstSteps, strength_hooks
from .optimizer import own_settings, pause_adapters
from .writers import PunctualWriter, own_writers

__all__ = ["build_loader", "do_test", "do_train", "main"]


def build_loader(cfg):
    """Instantiate a loader; with Detectron2's mapper errors name the image that cannot be used."""
    if "mapper" in cfg:
        mapper = instantiate(cfg.mapper)
        cfg.mapper = CheckedMapper(mapper) if isinstance(mapper, DatasetMapper) else mapper
    return instantiate(cfg)


def do_test(cfg, model):
    if "evaluator" not in cfg.dataloader:
        return {}
    evaluator = instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, build_loader(cfg.dataloader.test), evaluator)
    print_csv_format(results)
    return results


def do_train(cfg, resume):
    model = instantiate(cfg.model).to(cfg.train.device)
    logging.getLogger("detectron2").info("Model:\n%s", model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    pause_adapters(optimizer, model)
    loader = build_loader(cfg.dataloader.train)
    model = create_ddp_model(model, **cfg.train.ddp)
    step = AccumulatingAMPTrainer if cfg.train.amp.enabled else AccumulatingTrainer
    trainer = step(model, loader, optimizer)
    folder = cfg.train.output_dir
    checkpointer = StudentCheckpointer(model, folder, trainer=trainer)
    student = getattr(model, "module", model)
    trainer_hooks = [
        SeedStep(cfg.train.seed),
        *strength_hooks(student),
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
        hooks.EvalHook(cfg.train.eval_period, lambda: do_test(cfg, model)),
    ]
    if comm.is_main_process():
        trainer_hooks.insert(0, TimeFirstSteps())
        trainer_hooks.insert(-1, hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer))
        max_iter = cfg.train.max_iter
        writers = own_writers(default_writers(folder, max_iter), max_iter)
        hook = hooks.PeriodicWriter(writers, period=cfg.train.log_period)
        trainer_hooks.append(PunctualWriter(hook))
    trainer.register_hooks(trainer_hooks)
    with own_settings(optimizer):
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    resumed = resume and checkpointer.has_checkpoint()
    if cfg.train.get("inherit", False) and not resumed:
        inherit(student, student.teacher.detector)
    try:
        with clear_write_errors(folder), without_known_tracebacks(folder):
            trainer.train(trainer.iter + 1 if resumed else 0, cfg.train.max_iter)
    except FloatingPointError as error:
        reason = " ".join(str(error).split())
        raise AIDError(
            f"training diverged at iteration {trainer.iter}: {reason}; lower optimizer.lr, and "
            f"check the last losses in {os.path.join(folder, 'metrics.json')}"
        ) from error


def _seed(cfg):
    """Value of train.seed; if that is missing, None or negative, a seed drawn for all processes."""
    drawn, given = comm.shared_random_seed(), cfg.train.get("seed")
    if given is None or given < 0:
        return drawn
    check_seed("train.seed", given)
    return given


def _load(args):
    """Load a LazyConfig and apply the overrides of the command line.

    Raises:
        AIDError: it is none, or an override is no KEY=VALUE or has an unknown key of ``train``,
            which nothing would read.
    """
    if not args.config_file.endswith(".py"):
        raise AIDError(f"{args.config_file} is no LazyConfig (.py): train_net.py takes YAML files")
    check_exists(args.config_file)
    cfg = LazyConfig.load(args.config_file)
    known = {"seed", "inherit", *cfg.train}
    for word in args.opts:
        key, is_pair, _ = word.partition("=")
        if not is_pair and not word.startswith("~"):
            raise AIDError(f"{word}: overrides are KEY=VALUE here, such as train.max_iter=100")
        section, _, rest = key.lstrip("+~").partition(".")
        name = rest.split(".")[0]
        if section == "train" and name not in known:
            raise AIDError(f"{key} is no key of the config{did_you_mean(name, known)}: correct it")
    return LazyConfig.apply_overrides(cfg, args.opts)


def main(args):
    ignore_known_deprecations()  # in each process
    cfg = _load(args)
    if args.eval_only and not cfg.train.init_checkpoint:
        raise AIDError("--eval-only needs weights: add train.init_checkpoint=FILE")
    folder = cfg.train.output_dir
    check_folder_name("train.output_dir", folder)
    cfg.train.seed = _seed(cfg)
    with clear_write_errors(folder):
        if not args.eval_only and comm.is_main_process():
            os.makedirs(folder, exist_ok=True)
            lock_folder(folder)
        default_setup(cfg, args)
        setup_logger(folder, distributed_rank=comm.get_rank(), name="aid")
    logging.getLogger(__name__).info("train.seed is %d", cfg.train.seed)
    if not args.eval_only:
        return do_train(cfg, args.resume)
    # The student only, without building teachers.
    model = instantiate(cfg.model.get("student", cfg.model)).to(cfg.train.device)
    StrictCheckpointer(model, "train.init_checkpoint").load(cfg.train.init_checkpoint)
    return do_test(cfg, model.eval())
