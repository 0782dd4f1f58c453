"""Checks of the output folder before a run, and protection of its files."""

import errno
import fcntl
import multiprocessing
import os
from argparse import Namespace

import pytest
import torch
from detectron2.utils.logger import setup_logger

from aid.engine import AIDTrainer, evaluate, start_run
from aid.engine.output_folder import check_output_folder
from aid.utils import files
from aid.utils.errors import AIDError


@pytest.fixture
def out(tmp_path):
    """Output folder of ``configure``."""
    return tmp_path / "out"


@pytest.fixture
def earlier(configure, out):
    """Files of a run that was interrupted after a checkpoint."""
    cfg = configure("--num-gpus", "0", opts=["SEED", -1])
    trainer = AIDTrainer(cfg)
    trainer.iter = 7
    trainer.checkpointer.save("model_0000007", iteration=7)
    return contents(out)


def contents(folder) -> dict[str, bytes]:
    """Content of files by name, without the log, which every start extends."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file() and f.name != "log.txt"}


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.FPN.OUT_CHANNELS", 4, "OUT_CHANNELS is 8 there, 4 here: choose another OUTPUT_DIR"),
        (
            "MODEL.ANCHOR_GENERATOR.SIZES",
            [[4], [8], [16], [32], [64]],
            r"SIZES is \[\[8\], \[16\], ",
        ),
        ("MODEL.META_ARCHITECTURE", "ProposalNetwork", "is GeneralizedRCNN there, ProposalN"),
        ("SOLVER.OPTIMIZER", "AdamW", "SOLVER.OPTIMIZER is SGD there, AdamW here"),
        ("DISTILLATION.LOSSES", ["NonLocalLoss"], "DISTILLATION.LOSSES is"),
    ],
)
def test_run_with_another_model_is_neither_resumed_nor_changed(
    key, value, message, configure, earlier, out
):
    with pytest.raises(AIDError, match=f"--resume: the run in OUTPUT_DIR .*out has .*{message}"):
        configure("--num-gpus", "0", "--resume", opts=[key, value])
    assert contents(out) == earlier


def test_error_names_at_most_three_changes(configure, earlier):
    keys = ["FPN.OUT_CHANNELS", "ROI_BOX_HEAD.FC_DIM", "RESNETS.STEM_OUT_CHANNELS"]
    opts = [x for key in [*keys, "RPN.BATCH_SIZE_PER_IMAGE"] for x in (f"MODEL.{key}", 4)]
    with pytest.raises(AIDError, match="here; [^;]* here; [^;]* here; ...: choose") as error:
        configure("--num-gpus", "0", "--resume", opts=opts)
    assert "\n" not in str(error.value)


def test_settings_outside_the_model_may_change(configure, earlier):
    opts = ["SOLVER.BASE_LR", 0.5, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3]
    opts += ["MODEL.WEIGHTS", "moved.pth", "SOLVER.MAX_ITER", 9]
    cfg = configure("--num-gpus", "0", "--resume", opts=opts)
    assert cfg.SOLVER.MAX_ITER == 9


def test_ignored_key_of_a_resumed_run_is_logged_once(configure, earlier, no_handlers, out):
    setup_logger.cache_clear()  # as in a new process
    text = (out / "config.yaml").read_text().replace("AID:\n", "AID:\n  MOMENTUM: 0.5\n")
    (out / "config.yaml").write_text(text)
    configure("--num-gpus", "0", "--resume", opts=["AID.MOMENTUM", 0.5])
    assert (out / "log.txt").read_text().count("(ignoring): AID.MOMENTUM") == 1


def test_changed_keys_are_reported_at_resume(configure, earlier, out):
    def lines() -> list[str]:
        return [x for x in (out / "log.txt").read_text().splitlines() if "keys of the run dif" in x]

    same = ["SOLVER.MAX_ITER", 9, "DATALOADER.NUM_WORKERS", 1, "MODEL.WEIGHTS", "moved.pth"]
    same += ["TEACHER.INHERIT", True, "VIS_PERIOD", 5, "TEST.EVAL_PERIOD", 3]
    configure("--num-gpus", "0", "--resume", opts=same)
    assert lines() == []
    other = ["TEACHER.DETECTIONS", "b.json", "UNLABELED.SHARE", 0.5, "SOLVER.ACCUMULATION_STEPS", 2]
    other += ["TEACHER.CLASS_MAP", ["a: b"], "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.3]
    configure("--num-gpus", "0", "--resume", opts=other)
    (line,) = lines()
    assert "WARNING" in line and line.endswith(
        "--resume: from here on keys of the run differ from those before it stopped: "
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.05 -> 0.3; SOLVER.ACCUMULATION_STEPS 1 -> 2; "
        "TEACHER.CLASS_MAP [] -> ['a: b']; TEACHER.DETECTIONS '' -> 'b.json'; "
        "UNLABELED.SHARE 0.0 -> 0.5; to go on as before, leave them as they were"
    )
    configure("--num-gpus", "0", "--resume", opts=other)  # which are in config.yaml by now
    configure("--num-gpus", "0", opts=["TEACHER.DETECTIONS", "c.json"])  # a new run
    assert len(lines()) == 1


def test_folder_without_a_checkpoint_is_not_compared(configure, out):
    configure("--num-gpus", "0")
    configure("--num-gpus", "0", "--resume", opts=["MODEL.FPN.OUT_CHANNELS", 4])
    assert "OUT_CHANNELS: 4" in (out / "config.yaml").read_text()


def test_run_without_config_is_compared_by_its_weights(configure, earlier, out):
    (out / "config.yaml").unlink()
    cfg = configure("--num-gpus", "0", "--resume", opts=["MODEL.ROI_BOX_HEAD.FC_DIM", 4])
    with pytest.raises(AIDError, match="model_0000007.pth is a checkpoint of another detector"):
        AIDTrainer(cfg).resume_or_load(resume=True)
    for name in ("model_0000007.pth", "last_checkpoint"):
        assert (out / name).read_bytes() == earlier[name]


def test_missing_checkpoint_is_a_one_line_error(configure, earlier, out):
    (out / "model_0000007.pth").unlink()
    cfg = configure("--num-gpus", "0", "--resume")
    with pytest.raises(AIDError, match="--resume: .*model_0000007.pth does not exist: restore"):
        AIDTrainer(cfg).resume_or_load(resume=True)


def test_evaluation_does_not_compare_the_folder(configure, earlier, out):
    configure("--num-gpus", "0", "--eval-only", "--resume", opts=["MODEL.FPN.OUT_CHANNELS", 4])
    assert contents(out) == earlier


def test_fresh_start_beside_old_checkpoints_is_warned_about(configure, earlier, out):
    log = out / "log.txt"
    assert "checkpoints of an earlier run" not in log.read_text()
    configure("--num-gpus", "0", "--resume", opts=["VIS_PERIOD", 1])
    assert "checkpoints of an earlier run" not in log.read_text()
    configure("--num-gpus", "0")
    assert "holds checkpoints of an earlier run (model_0000007.pth): this one" in log.read_text()
    assert (out / "model_0000007.pth").read_bytes() == earlier["model_0000007.pth"]


def test_next_training_removes_leftovers_of_killed_runs(configure, earlier, out):
    leftovers = ["model_0000009.pth.tmp", "last_checkpoint.tmp", "config.yaml.tmp"]
    for name in leftovers:
        (out / name).write_bytes(b"half a file")
    (out / "metrics.json").write_text('{"iteration": 7}\n{"iterat')
    configure("--num-gpus", "0", "--eval-only")
    assert set(leftovers) < set(contents(out))
    configure("--num-gpus", "0", "--resume", opts=["SEED", -1])
    assert contents(out) == {**earlier, "metrics.json": b'{"iteration": 7}\n'}


def test_config_file_is_replaced_atomically(configure, earlier, out, tmp_path):
    """The seed survives a process that is killed while it resumes."""
    os.link(out / "config.yaml", tmp_path / "old.yaml")
    configure("--num-gpus", "0", "--resume", opts=["SEED", -1, "SOLVER.MAX_ITER", 9])
    assert (tmp_path / "old.yaml").read_bytes() == earlier["config.yaml"]
    assert "MAX_ITER: 9" in (out / "config.yaml").read_text()


def test_unwritable_folder_is_refused(configure, tmp_path):
    for folder in ("/proc", str(tmp_path / "file")):  # /proc exists, but is read-only
        (tmp_path / "file").touch()
        with pytest.raises(AIDError, match=f"OUTPUT_DIR {folder} cannot be written: "):
            configure("--num-gpus", "0", opts=["OUTPUT_DIR", folder])


def test_full_disk_is_a_one_line_error(run_config, monkeypatch, caplog):
    cfg = run_config("run")
    save, sizes = torch.save, []

    def fill_up(data, target):
        save(data, target)
        sizes.append(target.tell())
        if len(sizes) == 3:
            target.truncate(sizes[-1] // 2)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_up)
    trainer = AIDTrainer(cfg)
    with pytest.raises(AIDError, match="run cannot be written: No space left on device; make room"):
        trainer.train()
    assert not any(record.exc_info for record in caplog.records)
    left = sorted(x for x in os.listdir(cfg.OUTPUT_DIR) if "model" in x or "checkpoint" in x)
    assert left == ["last_checkpoint", "model_0000000.pth", "model_0000001.pth"]
    monkeypatch.undo()
    resumed = AIDTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2


def test_unwritable_evaluation_is_a_one_line_error(run_config, caplog):
    cfg = run_config("run", opts=["SOLVER.CHECKPOINT_PERIOD", 100])
    trainer = AIDTrainer(cfg)
    os.symlink("/dev/full", os.path.join(cfg.OUTPUT_DIR, "inference"))
    with pytest.raises(AIDError, match="run cannot be written: "):
        trainer.train()
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    "name, message",
    [
        ("o\udce9", "is not UTF-8"),
        ("o\0", "contains a null character"),
        ("s3://o", "is a URL: name a folder of this machine"),
    ],
)
def test_unsupported_folder_name_is_refused(name, message, configure, tmp_path):
    cfg = configure("--num-gpus", "0")
    cfg.defrost()
    cfg.OUTPUT_DIR = f"{tmp_path}/new/{name}"
    with pytest.raises(AIDError, match=f"OUTPUT_DIR .* {message}"):
        check_output_folder(cfg, resume=False)
    assert not (tmp_path / "new").exists()


def test_earlier_run_is_unchanged_until_a_run_starts(configure, tmp_path):
    cfg = configure()
    before = (tmp_path / "out" / "config.yaml").read_bytes()
    changed = configure(opts=["SOLVER.MAX_ITER", 77], start=False)
    assert (tmp_path / "out" / "config.yaml").read_bytes() == before
    start_run(changed, resume=False)
    assert cfg.SOLVER.MAX_ITER != 77
    assert "MAX_ITER: 77" in (tmp_path / "out" / "config.yaml").read_text()


@pytest.fixture
def locks(monkeypatch):
    """The folders that this process has locked."""
    found = {}
    monkeypatch.setattr(files, "_locked", found)
    yield found
    for descriptor in found.values():
        os.close(descriptor)


def test_second_run_in_the_folder_is_refused_before_it_changes_a_file(configure, locks, tmp_path):
    cfg = configure(start=False)
    part = tmp_path / "out" / "model_0000001.pth.tmp"  # the other run is writing it
    part.write_bytes(b"")
    other = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(AIDError, match="^OUTPUT_DIR .*out is in use by another run: wait for it"):
        start_run(cfg, resume=True)
    with pytest.raises(AIDError, match="in use by another run"):
        evaluate(cfg, resume=False)  # which would replace its files in inference
    assert part.exists() and not locks
    os.close(other)
    for _ in range(2):  # of one process
        start_run(cfg, resume=True)
    assert not part.exists() and len(locks) == 1


def test_workers_of_a_killed_run_do_not_keep_its_folder(configure, locks, tmp_path):
    start_run(configure(start=False), resume=False)
    context = multiprocessing.get_context("fork")
    end = context.Event()
    worker = context.Process(target=end.wait)
    worker.start()
    os.close(locks.popitem()[1])  # as if this process had ended
    try:
        start_run(configure(start=False), resume=True)
    finally:
        end.set()
        worker.join()


def test_file_system_without_locks_is_used(configure, locks, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    start_run(configure(start=False), resume=False)
    assert not locks


@pytest.mark.parametrize("start_iter, expected", [(2, 1), (3, 0)])
def test_finished_run_keeps_its_config(start_iter, expected, load_script, monkeypatch):
    class Trainer:
        def __init__(self, cfg):
            self.start_iter, self.max_iter = start_iter, 3

        def resume_or_load(self, resume):
            pass

        def train(self):
            pass

    written = []
    monkeypatch.setattr("aid.engine.AIDTrainer", Trainer)
    monkeypatch.setattr("aid.engine.setup", lambda args: None)
    monkeypatch.setattr("aid.engine.start_run", lambda *args: written.append(args))
    load_script("train_net.py").main(Namespace(dry_run=False, eval_only=False, resume=True))
    assert len(written) == expected
