"""The LazyConfig example, compared with its YAML config."""

import fcntl
import json
import os

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model

from aid.config import load_config
from aid.engine import AIDTrainer, setup
from aid.engine import lazyconfig as script
from aid.utils.errors import AIDError
from aid_tools.train_arguments import argument_parser

LAZY = "configs/lazy/faster_rcnn_R18_from_R34_quickstart.py"
YAML = "configs/Quickstart/faster_rcnn_R18_from_R34.yaml"
TEACHER = "configs/Quickstart/faster_rcnn_R34_FPN.yaml"


@pytest.fixture
def teacher(repository, tmp_path, monkeypatch):
    """Path of a teacher's random weights; the working directory is the repository."""
    monkeypatch.chdir(repository)
    cfg = load_config(TEACHER, ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(3)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "teacher.pth")
    return str(tmp_path / "teacher.pth")


@pytest.fixture
def stream(make_batch):
    """A function () -> batches of 4 iterations."""
    return lambda: [make_batch((2, 3), seed) for seed in range(4)]


@pytest.fixture
def lazy(teacher, stream, tmp_path):
    """The example with 4 iterations on ``stream``, without evaluation."""
    cfg = LazyConfig.load(LAZY)
    cfg.model.distillers[0].teacher.weights = teacher
    cfg.train.update(output_dir=str(tmp_path / "lazy"), max_iter=4)
    cfg.lr_multiplier.warmup_length = 1 / 4
    cfg.dataloader.train = L(stream)()
    del cfg.dataloader["evaluator"]
    return cfg


def run_training(cfg) -> None:
    """Set up a run, and train."""
    os.makedirs(cfg.train.output_dir, exist_ok=True)
    script.default_setup(cfg, default_argument_parser().parse_args([]))
    script.do_train(cfg, resume=False)


def losses_of(folder) -> dict[str, float]:
    """Losses in the last line of a metrics.json."""
    last = json.loads((folder / "metrics.json").read_text().splitlines()[-1])
    return {key: value for key, value in last.items() if "loss" in key}


def test_lazyconfig_run_equals_the_yaml_run_bit_for_bit(
    lazy, teacher, stream, tmp_path, monkeypatch
):
    run_training(lazy)
    monkeypatch.setattr(AIDTrainer, "build_train_loader", lambda *args: stream())
    opts = ["TEACHER.WEIGHTS", teacher, "OUTPUT_DIR", str(tmp_path / "yaml"), "DATASETS.TEST", "()"]
    opts += ["SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "1", "DATASETS.TRAIN", "()"]
    args = argument_parser().parse_args(["--config-file", YAML, "--num-gpus", "0", *opts])
    trainer = AIDTrainer(setup(args))
    trainer.resume_or_load(resume=False)
    trainer.train()
    expected, actual = losses_of(tmp_path / "yaml"), losses_of(tmp_path / "lazy")
    assert expected == actual and actual["loss_distill_pkd"] > 0 and actual["loss_cls"] > 0
    expected, actual = (
        torch.load(tmp_path / name / "model_final.pth") for name in ("yaml", "lazy")
    )
    for section in ("model", "distillation"):
        assert expected[section].keys() == actual[section].keys()
        assert all(torch.equal(expected[section][k], v) for k, v in actual[section].items())


def test_changed_learning_rate_applies_at_resume(lazy, tmp_path):
    run_training(lazy)
    lazy.train.max_iter, lazy.optimizer.lr = 5, 3e-5
    script.do_train(lazy, resume=True)
    saved = torch.load(tmp_path / "lazy/model_final.pth")
    groups = saved["trainer"]["optimizer"]["param_groups"]
    assert saved["iteration"] == 4 and {x["initial_lr"] for x in groups} == {3e-5}


def test_diverged_training_is_a_one_line_error(lazy):
    lazy.optimizer.lr = 1e9
    message = r"diverged at iteration \d+: .*; lower optimizer.lr"
    with pytest.raises(AIDError, match=message) as error:
        run_training(lazy)
    assert "\n" not in str(error.value)


def test_evaluation_needs_no_teacher(lazy, tmp_path, monkeypatch):
    run_training(lazy)
    weights = tmp_path / "lazy/model_final.pth"
    tested = []
    monkeypatch.setattr(script, "do_test", lambda cfg, model: tested.append(model))
    opts = [f"train.init_checkpoint={weights}", f"train.output_dir={tmp_path / 'eval'}"]
    opts.append("model.distillers.0.teacher.weights=gone.pth")
    script.main(default_argument_parser().parse_args(["--config-file", LAZY, "--eval-only", *opts]))
    (student,) = tested
    assert student.distillation is None and not student.training
    saved = torch.load(weights)["model"]
    assert all(torch.equal(saved[key], value) for key, value in student.state_dict().items())


def test_config_of_the_other_kind_is_refused(teacher):
    args = default_argument_parser().parse_args(["--config-file", YAML])
    with pytest.raises(AIDError, match="is no LazyConfig .*: train_net.py takes YAML files"):
        script.main(args)
    args.config_file = LAZY.replace(".py", "s.py")
    with pytest.raises(AIDError, match=f"does not exist .did you mean {LAZY}..: check"):
        script.main(args)
    args = argument_parser().parse_args(["--config-file", LAZY])
    with pytest.raises(AIDError, match=r"is a LazyConfig: .*tools/lazyconfig_train_net.py"):
        setup(args)


@pytest.mark.parametrize(
    "options, message",
    [
        (["train.max_itr=3"], "train.max_itr is no key .*did you mean max_iter"),
        (["train.max_iter", "3"], "train.max_iter: overrides are KEY=VALUE here, such"),
        (["train.seed=20240115123456"], f"train.seed is 20240115123456: .* {2**32 - 1} at most"),
        (["--eval-only"], r"--eval-only needs weights: add train.init_checkpoint=FILE"),
    ],
)
def test_invalid_command_line_is_refused(options, message, repository, monkeypatch):
    monkeypatch.chdir(repository)
    args = default_argument_parser().parse_args(["--config-file", LAZY, *options])
    with pytest.raises(AIDError, match=message):
        script.main(args)


def test_invalid_distillers_are_refused(lazy):
    losses = list(lazy.model.distillers[0].losses)
    lazy.model.distillers[0].losses = [*losses, losses[0]]
    message = "losses of one teacher, PKDLoss, PKDLoss: name"
    with pytest.raises(AIDError, match=message):
        script.do_train(lazy, resume=False)
    lazy.model.distillers[0].losses = losses
    lazy.model.distillers[0].levels = ["p2", "p7"]
    with pytest.raises(AIDError, match="no common level p7"):
        script.do_train(lazy, resume=False)
    lazy.model.distillers[0].levels = ["p2", "p3"]
    message = (
        r"PKDLoss has channels .*'p6': .*the levels to imitate, .*, are \{'p2': \(64, 64\), 'p3'"
    )
    with pytest.raises(AIDError, match=message):
        script.do_train(lazy, resume=False)
    lazy.model.distillers[0].levels = ["p2", "p3", "p4", "p5", "p6"]
    lazy.model.student.roi_heads.num_classes = 4
    with pytest.raises(AIDError, match="has 3 classes, the student 4"):
        script.do_train(lazy, resume=False)


@pytest.fixture
def on_files(lazy, toy_dataset):
    """The example on image files."""
    example = LazyConfig.load(LAZY).dataloader
    lazy.dataloader = example
    lazy.dataloader.train.dataset.names = lazy.dataloader.test.dataset.names = toy_dataset
    return lazy


@pytest.mark.parametrize("tested", [False, True])
def test_error_names_a_truncated_image_without_traceback(tested, on_files, tmp_path, caplog):
    path = tmp_path / "4.png"
    path.write_bytes(path.read_bytes()[:100])
    os.makedirs(on_files.train.output_dir, exist_ok=True)
    with pytest.raises(AIDError, match=f"^image {path} cannot be used: .*: replace the file") as e:
        if tested:
            script.do_test(on_files, torch.nn.Identity())
        else:
            script.do_train(on_files, resume=False)
    assert "\n" not in str(e.value)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "folder, reason", [("s3://bucket/run", "is a URL"), ("a\udcffb", r"a\\xffb is not UTF-8")]
)
def test_unusable_output_folder_is_refused(folder, reason, teacher, monkeypatch):
    monkeypatch.setattr(script, "default_setup", None)
    args = default_argument_parser().parse_args(["--config-file", LAZY])
    cfg = LazyConfig.load(LAZY)
    cfg.train.output_dir = folder
    monkeypatch.setattr(LazyConfig, "load", lambda path: cfg)
    with pytest.raises(AIDError, match="^train.output_dir .*" + reason) as error:
        script.main(args)
    assert str(error.value).isprintable()


def test_folder_of_another_run_is_refused(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    monkeypatch.setattr(script, "default_setup", None)
    options = [f"train.output_dir={tmp_path}/out"]
    args = default_argument_parser().parse_args(["--config-file", LAZY, *options])
    (tmp_path / "out").mkdir()
    other = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(AIDError, match="^OUTPUT_DIR .*out is in use by another run"):
        script.main(args)
    os.close(other)


@pytest.mark.parametrize("seed", [None, -1, "missing"])
def test_seed_is_drawn_if_there_is_none(
    seed, repository, tmp_path, no_handlers, monkeypatch, capsys
):
    monkeypatch.chdir(repository)
    cfg = LazyConfig.load(LAZY)
    cfg.train.update(output_dir=str(tmp_path), seed=seed)
    if seed == "missing":
        del cfg.train["seed"]
    monkeypatch.setattr(LazyConfig, "load", lambda path: cfg)
    monkeypatch.setattr(script, "do_train", lambda cfg, resume: cfg.train.seed)
    args = default_argument_parser().parse_args(["--config-file", LAZY])
    drawn = script.main(args)
    assert drawn >= 0 and f"train.seed is {drawn}\n" in capsys.readouterr().out
    assert f"seed: {drawn}\n" in (tmp_path / "config.yaml").read_text()
