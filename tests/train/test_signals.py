import os
import signal
import subprocess
import sys
import time

import pytest

from fmct.train.signals import HANDLED, StopRequest


@pytest.mark.parametrize("number", HANDLED)
def test_the_first_signal_only_sets_a_flag(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # a launcher's repetition counts as the first
        assert stop.requested
        assert stop.name == number.name
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_second_signal_ends_the_process(number: signal.Signals) -> None:
    source = (
        "import os, signal, sys, time\n"
        "from fmct.train.signals import StopRequest\n"
        "with StopRequest(settle_s=0.05):\n"
        "    print('up', flush=True)\n"
        "    end = time.time() + 60\n"
        "    while time.time() < end: time.sleep(0.01)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(20) == -number
    process.stdout.close()
