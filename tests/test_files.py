import os
import re
import subprocess
import sys

import torch

from seepage.files import write_tensors

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from seepage.files import OutputError, write_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_tensors(sys.argv[1], {"weight": torch.zeros(10, 1000)})
except OutputError as error:
    print(error)
"""


def test_tensors_meet_a_full_disk_as_any_file_does(tmp_path):
    path = tmp_path / "weights"
    write_tensors(path, {"weight": torch.ones(2)}, {"of": "a trial"})
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"cannot write {re.escape(str(path))}: .+\n", done.stdout), done.stdout
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["weights"]
