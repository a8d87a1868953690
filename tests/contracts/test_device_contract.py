"""What a device must do: the same checks for one whose latency is computed, and for this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_study import alive, environment, wait_for

from autocompress.config import DeviceConfig
from autocompress.errors import DeviceError
from autocompress.measure.device import Device, device_lock
from autocompress.measure.local import LocalDevice
from autocompress.measure.machine import cores
from autocompress.records import DeviceFacts, Latency


class FakeDevice:
    """Latency is a nanosecond per multiplication of the file's matrices: no clock, no noise."""

    def __init__(self) -> None:
        self.facts = DeviceFacts(name="fake", description="computes a latency from the file")

    def measure(
        self,
        candidate: Path,
        baseline: Path,
        *,
        baseline_ms: float | None = None,
        seconds: float | None = None,
        stream: Path | None = None,
    ) -> Latency:
        ratio = self._ms(candidate) / self._ms(baseline)
        known = self._ms(baseline) if baseline_ms is None else baseline_ms
        return Latency(latency_ms=ratio * known, ratio=ratio, ratio_ci=(ratio, ratio), blocks=1)

    def close(self) -> None:
        return None

    def _ms(self, path: Path) -> float:
        try:
            return 1e-6 * sum(float(np.prod(i.dims)) for i in onnx.load(path).graph.initializer)
        except Exception as error:
            raise DeviceError(f"the device 'fake' cannot time {path.name}: {error}") from error


def write_net(path: Path, layers: int, width: int = 128) -> Path:
    """A chain of square matrix products, input [n, width]."""
    generator = np.random.default_rng(0)
    nodes, weights, last = [], [], "input"
    for index in range(layers):
        values = generator.standard_normal((width, width)).astype(np.float32) / width
        weights.append(numpy_helper.from_array(values, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [last := f"h{index}"]))
    nodes.append(helper.make_node("Identity", [last], ["output"]))
    shape = ["n", width]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A network and one of an eighth of its multiplications."""
    folder = tmp_path_factory.mktemp("nets")
    return write_net(folder / "large.onnx", 16), write_net(folder / "small.onnx", 2)


@pytest.fixture(scope="module", params=["fake", "local"])
def device(request: pytest.FixtureRequest):
    made: Device = FakeDevice() if request.param == "fake" else LocalDevice(DeviceConfig())
    yield made
    made.close()


def test_a_file_against_itself_has_a_ratio_of_one(device, nets):
    large, _ = nets
    latency = device.measure(large, large)
    low, high = latency.ratio_ci
    assert low <= latency.ratio <= high
    assert latency.ratio == pytest.approx(1.0, abs=0.25)
    assert low - 0.15 <= 1 <= high + 0.15
    assert latency.latency_ms > 0
    assert latency.blocks >= 1


def test_a_smaller_network_is_faster(device, nets):
    large, small = nets
    assert device.measure(small, large).ratio < 0.7


def test_a_known_baseline_latency_gives_milliseconds(device, nets):
    large, small = nets
    latency = device.measure(small, large, baseline_ms=10.0)
    assert latency.latency_ms == pytest.approx(10.0 * latency.ratio)


def test_a_missing_or_broken_file_is_a_device_error_naming_it_and_the_device_goes_on(device, nets, tmp_path):
    large, small = nets
    (tmp_path / "broken.onnx").write_bytes(b"this is no network")
    for path in (tmp_path / "missing.onnx", tmp_path / "broken.onnx"):
        with pytest.raises(DeviceError, match=rf"{device.facts.name}.*{path.name}"):
            device.measure(path, large)
    with pytest.raises(DeviceError):
        device.measure(small, tmp_path / "missing.onnx")
    assert device.measure(small, large).ratio < 1


def test_facts_say_what_it_is(device):
    assert device.facts.name in ("fake", "local")
    assert device.facts.description
    assert (device.facts.runtime, device.facts.threads, device.facts.batch) == ("onnxruntime", 1, 1)


# -- this machine


@pytest.fixture
def local():
    made = LocalDevice(DeviceConfig())
    yield made
    made.close()


def test_a_timing_process_killed_in_between_is_replaced(local, nets):
    large, small = nets
    local.measure(small, large)
    pid = local._child.pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), seconds=5, what="the end of the timing process")
    assert local.measure(small, large).ratio < 1
    assert local._child.pid != pid


def test_a_timing_process_that_dies_over_a_file_is_a_device_error_and_the_next_call_recovers(local, nets, monkeypatch):
    large, small = nets
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit(1)"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    local._child = child
    with pytest.raises(DeviceError, match="the timing process died"):
        local.measure(small, large)
    assert local.measure(small, large).ratio < 1


def test_close_ends_the_timing_process(local, nets):
    large, _ = nets
    local.measure(large, large, baseline_ms=1.0)
    pid = local._child.pid
    assert alive(pid)
    local.close()
    assert not alive(pid)
    local.close()


def test_the_timing_process_ends_with_its_owner(nets):
    """Killed -9, the owner closes nothing; the end of its pipe is enough."""
    large, _ = nets
    code = (
        "import sys, time; from pathlib import Path; from autocompress.config import DeviceConfig\n"
        "from autocompress.measure.local import LocalDevice\n"
        "d = LocalDevice(DeviceConfig()); p = Path(sys.argv[1]); d.measure(p, p, baseline_ms=1.0)\n"
        "print(d._child.pid, flush=True); time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(large)], env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    assert alive(pid)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    wait_for(lambda: not alive(pid), seconds=10, what="the end of the timing process")


def test_more_threads_than_cores_and_a_runtime_that_is_not_there_are_refused(monkeypatch):
    with pytest.raises(DeviceError, match=f"device.threads is 999, but {cores()} cores are there"):
        LocalDevice(DeviceConfig(threads=999))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"pip install 'autocompress\[openvino\]'"):
        LocalDevice(DeviceConfig(runtime="openvino"))


# -- the lock that keeps training and timing apart

TRAINER = """
import sys, time
from autocompress.measure.device import device_lock
end = time.monotonic() + 20
print("training", flush=True)
while time.monotonic() < end:
    with device_lock(sys.argv[1], timing=False):
        time.sleep(0.2)
"""


@pytest.fixture(autouse=True)
def _own_locks(tmp_path, monkeypatch):
    """Nobody outside of a test is kept waiting, and no lock file stays."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def test_trainers_that_take_turns_do_not_keep_a_timing_waiting():
    """Their shared locks overlap at any moment: without a gate nobody would ever hold the lock alone."""
    name = f"test-{os.getpid()}"
    trainers = [
        subprocess.Popen([sys.executable, "-c", TRAINER, name], env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for trainer in trainers:
            assert trainer.stdout is not None
            trainer.stdout.readline()
        for _ in range(3):
            start = time.monotonic()
            with device_lock(name, timing=True):
                waited = time.monotonic() - start
            assert waited < 5
    finally:
        for trainer in trainers:
            trainer.kill()
            trainer.wait()
            assert trainer.stdout is not None
            trainer.stdout.close()


def test_nobody_trains_while_somebody_times():
    name = f"test-alone-{os.getpid()}"
    code = (
        "import sys, time; from autocompress.measure.device import device_lock\n"
        "print('ready', flush=True)\n"
        "with device_lock(sys.argv[1], timing=False): print('in', flush=True)\n"
    )
    with device_lock(name, timing=True):
        other = subprocess.Popen(
            [sys.executable, "-c", code, name], env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        os.set_blocking(other.stdout.fileno(), False)
        time.sleep(0.5)
        assert not os.read(other.stdout.fileno(), 10) if _readable(other.stdout.fileno()) else True
        os.set_blocking(other.stdout.fileno(), True)
    assert other.stdout.readline() == "in\n"
    assert other.wait(timeout=10) == 0
    other.stdout.close()


def _readable(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 0)[0])
