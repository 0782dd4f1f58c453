"""tools/study.py as a process and from another folder."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_closed_pipe_is_not_an_error():
    command = f"{sys.executable} tools/study.py studies/weighting.yaml --list | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""


def test_paths_in_the_file_start_at_the_repository(load_script, monkeypatch, tmp_path, capsys):
    main = load_script("tools/study.py").main
    outputs = []
    for folder, path in ((ROOT, "studies/weighting.yaml"), (tmp_path, "weighting.yaml")):
        (tmp_path / "weighting.yaml").write_text((ROOT / "studies/weighting.yaml").read_text())
        monkeypatch.chdir(folder)
        main([path, "--list", "--only", "features"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and "output/study/runs/" in outputs[0]
