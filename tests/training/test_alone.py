"""Two runs never write into the same folder at once; and a device that is mistyped is not the CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from fpsattention.training.alone import alone
from fpsattention.training.config import ConfigError
from fpsattention.training.distributed import DeviceError, World, pick_device

pytest.importorskip("fcntl")
HOLD = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"


def test_a_second_run_is_refused_until_the_first_has_ended(make_config):
    config = make_config()
    with alone(config, World()):
        said = rf"is in use by another run \(process {os.getpid()} on .* since 20"
        with pytest.raises(ConfigError, match=said), alone(config, World()):
            pytest.fail("two at once")
        with alone(make_config(output__dir=config.output.dir + "2", checkpoint__dir=config.output.dir + "3"), World()):
            pass
    with alone(config, World()):  # the file is still there, nobody holds it
        pass


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "", "mps"])
def test_a_device_that_is_none_is_not_the_cpu(device):
    with pytest.raises(DeviceError, match="it should be auto, cpu, cuda"):
        pick_device(device, World())


def test_one_folder_for_states_and_output_is_no_conflict(make_config, tmp_path):
    with alone(make_config(output__dir=str(tmp_path), checkpoint__dir=str(tmp_path / ".." / tmp_path.name)), World()):
        pass


def test_a_killed_run_holds_nothing(make_config, tmp_path):
    config = make_config(output__dir=str(tmp_path), checkpoint__dir=str(tmp_path))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".in-use")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    other.stdout.readline()
    with pytest.raises(ConfigError, match="in use by another run"), alone(config, World()):
        pass
    other.kill()
    other.communicate()
    with alone(config, World()):
        pass
