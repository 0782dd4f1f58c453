"""Starting and joining of processes, and errors when one fails."""

import io
import logging
import os
import re
import select
import signal
import time
from datetime import timedelta

import detectron2.engine
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, Dataset, get_worker_info

from aid.engine import launch
from aid.engine.errors import clear_connection_errors, is_lost_connection
from aid.utils.errors import AIDError, main_with_clear_errors
from aid_tools.train_arguments import argument_parser


def parse(*options):
    return argument_parser().parse_args(["--config-file", "", *options])


def fail(args):
    raise AssertionError("started in spite of its options")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Environment without variables of torchrun or of an earlier launch."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS")


@pytest.fixture
def started(monkeypatch):
    """Arguments of the calls to Detectron2's launch, which is replaced."""
    calls = []
    monkeypatch.setattr(
        detectron2.engine, "launch", lambda *args, **options: calls.append((args, options))
    )
    return calls


@pytest.fixture
def forks(monkeypatch):
    """Detectron2's launch replaced by forks without a process group."""

    def launch_forks(run, number, args, **options):
        mp.start_processes(lambda rank: run(*args), nprocs=number, start_method="fork")

    monkeypatch.setattr(detectron2.engine, "launch", launch_forks)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--num-gpus", "2", "--num-processes", "2"], "choose one of the two"),
        (["--num-gpus", "64"], "--num-gpus 64: torch finds"),
        (["--num-gpus", "-1"], "--num-gpus 0 or more"),
        (["--num-processes", "0"], "--num-processes must be 1 or more"),
        (["--num-gpus", "0", "--num-machines", "2"], "with --num-gpus 0: add --num-processes"),
        (["--num-machines", "2", "--machine-rank", "2"], "numbered from 0 to 1"),
        (["--machine-rank", "1"], "numbered from 0 to 0"),
        (["--num-machines", "2"], "needs --dist-url tcp://HOST:PORT"),
        (["--timeout", "0"], "--timeout is 0: give a number of minutes above 0"),
        (["--timeout", "nan"], "--timeout is nan: give a number of minutes above 0"),
        (["--timeout", "1e300"], "--timeout is 1e.300: give .* and 525600 at most"),
        (["--dist-url", "x"], "--dist-url x: write tcp://HOST:PORT"),
        (["--dist-url", "tcp://host"], "--dist-url tcp://host: write tcp://HOST:PORT"),
        (["--dist-url", "tcp://host:70000"], "--dist-url tcp://host:70000: write tcp"),
    ],
)
def test_invalid_options_are_refused(options, message, started):
    with pytest.raises(AIDError, match=message):
        launch(fail, parse(*options))
    assert not started


def test_cpu_processes_share_the_cores_and_hide_gpus(started, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(7))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    machines = ["--num-machines", "2", "--machine-rank", "1", "--dist-url", "tcp://first:1234"]
    args = parse("--num-processes", "3", "--timeout", "2", *machines)
    launch(fail, args)
    (((_, processes), options),) = started
    assert processes == 3 and options["timeout"].total_seconds() == 120
    assert (options["num_machines"], options["machine_rank"]) == (2, 1)
    assert options["dist_url"] == "tcp://first:1234"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and os.environ["OMP_NUM_THREADS"] == "2"
    assert args.num_gpus == 0


def test_given_number_of_threads_is_kept(started, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    launch(fail, parse("--num-processes", "3"))
    assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("options, num_gpus", [([], 1), (["--num-gpus", "0"], 0)])
def test_single_process_is_not_launched(options, num_gpus):
    seen = []
    launch(seen.append, parse(*options))
    assert [args.num_gpus for args in seen] == [num_gpus] and not dist.is_initialized()


@pytest.mark.parametrize(
    "options, changes, message",
    [
        (["--num-gpus", "2"], {}, "leave out --num-gpus, --num-processes and --num-machines"),
        (["--num-processes", "2"], {}, "leave out --num-gpus"),
        (["--num-machines", "2"], {}, "leave out --num-gpus"),
        ([], {"MASTER_PORT": None}, "LOCAL_RANK is set, .* but not MASTER_PORT"),
        ([], {"WORLD_SIZE": "x"}, "variable WORLD_SIZE is 'x', where torchrun sets a whole"),
        ([], {"LOCAL_WORLD_SIZE": "0"}, "variable LOCAL_WORLD_SIZE is '0'"),
        ([], {"MASTER_PORT": "x"}, "variable MASTER_PORT is 'x'"),
        ([], {"RANK": "-1"}, "variable RANK is '-1'"),
        ([], {"WORLD_SIZE": "3"}, "2 of 3 processes here: start as many on every"),
        ([], {}, "--nproc-per-node 2: torch finds 0 GPUs here; --num-gpus 0 runs on the CPU"),
    ],
)
def test_invalid_settings_under_torchrun_are_refused(
    options, changes, message, tiny_config, monkeypatch
):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", **changes}
    for name, value in variables.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(
            name, value
        )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    config = tiny_config("faster_rcnn", ["MODEL.DEVICE", "cuda"])
    with pytest.raises(AIDError, match=message):
        launch(fail, parse("--config-file", config, *options))


def press_ctrl_c(args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "options, line",
    [
        ([], "error: interrupted: the same command with --resume goes on from the last checkpoint"),
        (["--dry-run"], "error: interrupted\n"),
    ],
)
def test_ctrl_c_is_a_one_line_error(options, line, capsys):
    with pytest.raises(SystemExit) as stopped:
        main_with_clear_errors(launch)(press_ctrl_c, parse("--num-gpus", "0", *options))
    message = capsys.readouterr().err
    assert stopped.value.code == 130 and message.startswith(line) and message.count("\n") == 1


def refuse(args):
    raise AIDError("DATASETS.TRAIN: there is none: get some")


def break_down(args):
    {}["a bug"]


def be_killed(args):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("forks")
def test_error_of_all_processes_is_reported_once(capfd):
    with pytest.raises(AIDError, match="^DATASETS.TRAIN: there is none: get some$"):
        launch(refuse, parse("--num-processes", "2"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", ["there is none", "Caught in worker\nAIDError: there is none"])
def test_error_is_logged_in_the_file_of_the_run(error, no_handlers, capsys):
    def fail_late(args):
        logging.getLogger("aid").addHandler(logging.StreamHandler(log))
        raise AIDError(error)

    log = io.StringIO()
    with pytest.raises(AIDError):
        launch(fail_late, parse("--num-gpus", "0"))
    assert log.getvalue() == "there is none\n" and capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("forks")
def test_unexpected_error_keeps_its_traceback(capfd):
    with pytest.raises(SystemExit) as stopped:
        launch(break_down, parse("--num-processes", "2"))
    assert stopped.value.code == 1
    assert capfd.readouterr().err.endswith("KeyError: 'a bug'\n")


@pytest.mark.usefixtures("forks")
def test_killed_process_is_reported():
    with pytest.raises(AIDError, match="process [01] .* ended by SIGKILL.* --resume goes on"):
        launch(be_killed, parse("--num-processes", "2"))


@pytest.mark.usefixtures("forks")
def test_processes_end_with_their_launcher():
    """Otherwise they keep training, and hold the output folder."""
    alive, end = os.pipe()

    def wait(args):
        os.write(end, b".")
        time.sleep(60)

    launcher = os.fork()
    if launcher == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `train_net.py ... &`
        launch(wait, parse("--num-processes", "2"))
    os.close(end)
    assert os.read(alive, 1) + os.read(alive, 1) == b".."
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    assert select.select([alive], [], [], 30)[0] and os.read(alive, 1) == b""  # no writer is left
    os.close(alive)


def lose_connection(rank, folder, timeout):
    """Process 1 is killed, or hangs if there is a time-out; process 0 saves its error."""
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timeout)
    dist.barrier()
    if rank == 1:
        be_killed(None) if timeout is None else time.sleep(60)
    try:
        with clear_connection_errors():
            dist.all_gather_object([None, None], rank)
    except AIDError as error:
        with open(f"{folder}/error", "w") as f:
            f.write(str(error))


@pytest.mark.parametrize("timeout, reason", [(None, "peer"), (timedelta(seconds=1), "imed out")])
def test_lost_connection_to_a_process_is_reported(timeout, reason, tmp_path):
    processes = mp.start_processes(
        lose_connection, (str(tmp_path), timeout), nprocs=2, join=False, start_method="fork"
    ).processes
    processes[0].join(30)
    processes[1].kill()
    message = (tmp_path / "error").read_text()
    expected = rf"process 0 of 2 lost the others \([^)]*{reason}.*log.txt.rank1.*--resume goes on.*"
    assert re.fullmatch(expected, message)
    assert "/gloo/" not in message and "GLHF" not in message


class KillsItsWorker(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        if get_worker_info() is not None:
            be_killed(None)


def test_killed_data_loader_worker_is_reported():
    message = "a worker of the data loader .process .* ended .*--resume"
    with pytest.raises(AIDError, match=message), clear_connection_errors():
        list(DataLoader(KillsItsWorker(), num_workers=1))


@pytest.mark.parametrize(
    "message, how",
    [
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "by signal Killed"),
        ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "unexpectedly"),
    ],
)
def test_worker_errors_of_torch_are_recognized(message, how):
    with pytest.raises(AIDError, match=f"12.* ended {how} [(]a killed"), clear_connection_errors():
        raise RuntimeError(message)


def test_other_errors_are_not_lost_connections():
    for error in (RuntimeError("CUDA out of memory"), ValueError("peer"), AIDError("connect")):
        assert not is_lost_connection(error)
    with pytest.raises(RuntimeError, match="CUDA"), clear_connection_errors():
        raise RuntimeError("CUDA out of memory")


def test_failed_rendezvous_is_reported():
    message = "did not find each other .the first said: no.: start all of them"
    with pytest.raises(AIDError, match=message), clear_connection_errors():
        raise dist.DistNetworkError("[a.cpp:3] the first said: no. Exception raised from")
