"""`skipnet verify-gpu`, as far as it can be tested without a GPU."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models import machine
from models.benchmark import dense_engines, suite
from models.benchmark.gpu import checks as gpu_checks
from models.benchmark.gpu import dense_torch, quick
from models.checkpoint import Checkpoint
from models.engines import selection
from models.engines.cuda_graph.engine import CudaGraphEngine
from models.engines.folding import fold
from models.engines.persistent import gpu as persistent_gpu
from models.engines.persistent.build import GATES, kernel_name
from models.engines.protocol import Engine, EngineError
from models.engines.torch.engine import TorchEngine
from models.engines.torch.reference import ReferenceEngine
from models.macs import Mode
from service.cli.main import main
from tests.models.engines.persistent.standin import standin
from tests.service.parts import NAME

PARTS = ["--model", NAME, "--batches", "2", "--shares", "0,1", "--seconds", "0.01"]


@pytest.fixture
def verify(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the verb and returns exit code, stdout, stderr, and both reports."""

    def run(*arguments: str) -> tuple[object, str, str, dict[str, Any], str]:
        code: object = 0
        try:
            main(["verify-gpu", "--model-repository", str(repository), "--output", str(tmp_path), *arguments])
        except SystemExit as leave:
            code = leave.code
        said = capsys.readouterr()
        kept = [tmp_path / "report.json", tmp_path / "report.md"]
        document = json.loads(kept[0].read_text()) if kept[0].exists() else {}
        return code, said.out, said.err, document, kept[1].read_text() if kept[1].exists() else ""

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_one_line(verify: Any) -> None:
    code, said, complaint, document, _ = verify()
    assert (code, said, document) == (1, "", {})
    assert complaint.startswith("skipnet: there is no cuda here")
    assert complaint.count("\n") == 1


def test_on_the_cpu_outputs_are_checked_and_reported(verify: Any) -> None:
    code, said, _, document, page = verify("--device", "cpu")
    assert code == 0
    assert [check["engine"] for check in document["checks"]] == ["cuda_graph:branch", "cuda_graph:mask"]
    assert all(check["passed"] for check in document["checks"])
    assert said.count("\nok  ") == 2
    assert document["rows"] == []
    assert document["machine"]["torch"] == torch.__version__
    assert page.count(f"| {NAME}/1 | cuda_graph:") == 2


@pytest.mark.parametrize("option", ["--parity", "--model-repository"])
def test_an_empty_folder_is_an_error(verify: Any, tmp_path: Path, option: str) -> None:
    code, said, complaint, _, _ = verify("--device", "cpu", option, str(tmp_path / "nowhere"))
    assert code == 1 and "written to" not in said
    assert complaint.endswith(f": see {option}\n")


def test_a_failed_check_fails_the_command_and_is_reported(verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(checkpoint: Checkpoint, mode: Mode) -> Engine:
        if mode == "branch":
            raise EngineError("image 0 of 5, gate 3: executes")
        return TorchEngine(fold(checkpoint.network))

    monkeypatch.setattr(gpu_checks, "eager_engine", wrong)
    code, said, _, document, page = verify("--device", "cpu")
    assert code == "skipnet: 1 of 2 checks failed"
    assert f"FAIL {NAME}/1, cuda_graph:branch: image 0 of 5, gate 3: executes" in said
    assert [check["passed"] for check in document["checks"]] == [False, True]
    assert "| **no** | image 0 of 5, gate 3: executes |" in page


@pytest.fixture
def cuda_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the engines for cuda:0 on the CPU. Each reading of the meter adds a joule."""

    def build(checkpoint: Checkpoint, name: str, device: str, threads: int, mode: Mode) -> Engine:
        assert (device, threads) == ("cuda:0", 1)
        if name == "persistent":
            raise EngineError("cuda-core is not installed")
        if name == "cuda_graph":
            return CudaGraphEngine(fold(checkpoint.network), "cpu", mode, torch.float32)
        return ReferenceEngine(checkpoint.network)

    real = dense_torch.DenseTorch

    def eager(network: Any, device: str, form: dense_torch.Form) -> Engine:
        assert device == "cuda:0"
        if form is not dense_torch.operators:
            raise RuntimeError("no working C++ compiler\nwith details")
        return real(network, "cpu", form, torch.float32)

    monkeypatch.setattr(selection, "find_device", lambda *_: "cuda:0")
    monkeypatch.setattr(machine, "describe_gpu", lambda _: {"gpu": "a graphics card"})
    monkeypatch.setattr(
        gpu_checks,
        "gpu_engines",
        lambda checkpoint, _: {
            "cuda_graph:mask": partial(gpu_checks.eager_engine, checkpoint, "mask"),
            "torch:branch": lambda: TorchEngine(fold(checkpoint.network)),
        },
    )
    monkeypatch.setattr(gpu_checks, "compare_captured", lambda *_: (0.0, 0.2))
    monkeypatch.setattr(suite, "build", build)
    monkeypatch.setattr(dense_engines, "build", build)
    monkeypatch.setattr(dense_torch, "DenseTorch", eager)
    counter = itertools.count()
    monkeypatch.setattr(suite, "open_meter", lambda _: lambda: float(next(counter)))
    monkeypatch.setattr(suite, "joules_per_run", lambda run, read: -(read() - read()) + 0 * bool(run()))


@pytest.mark.usefixtures("cuda_here")
def test_speed_and_energy_are_compared_with_the_best_dense_engine(
    verify: Any, caplog: pytest.LogCaptureFixture
) -> None:
    code, _, _, document, page = verify(*PARTS)
    assert code == 0
    assert document["machine"]["gpu"] == "a graphics card"
    recorded = [check for check in document["checks"] if check["engine"].endswith(", captured")]
    assert [check["found"] for check in recorded] == ["gradients within 0.0e+00, in 0.20 of the time"] * 3
    rows = document["rows"]
    dense_names = {"cuda_graph", "torch, operator by operator"}
    expected = {("dense", name) for name in dense_names}
    for share in ("0%", "100%"):
        expected |= {(f"{share} of the blocks", engine) for engine in ("cuda_graph", "cuda_graph:mask")}
    assert {(row["routing"], row["engine"]) for row in rows} == expected | {(suite.OWN_ROUTING, suite.PUBLIC_CODE)}
    assert {row["dense_engine"] for row in rows} <= dense_names
    shares = {(row["routing"], row["engine"]): row["mac_share"] for row in rows}
    assert shares["0% of the blocks", "cuda_graph"] == pytest.approx(0.065, abs=1e-3)
    assert shares["0% of the blocks", "cuda_graph:mask"] == pytest.approx(1.0002, abs=1e-3)
    assert {row["joules_per_image"] * row["batch"] for row in rows} == {1.0}
    lines = page.splitlines()
    [heading] = [line for line in lines if "MACs / dense" in line]
    assert heading.endswith("| J per image |")
    assert {line.count("|") for line in lines[lines.index(heading) :] if line.startswith("|")} == {10}
    assert "persistent at batch 2 is left out: cuda-core is not installed" in caplog.text
    assert "torch.compile max-autotune at batch 2 is left out: RuntimeError: no working C++ compiler" in caplog.text


def quick_rows(document: dict[str, Any]) -> set[tuple[str, str, int]]:
    for row in document["splits"]:
        parts = [row[part] for part in ("python", "copy", "launch", "kernel")]
        assert min(parts[1:]) > 0
        assert sum(parts) == pytest.approx(row["total"])
    return {(row["network"], row["engine"], row["batch"]) for row in document["splits"]}


def test_quick_runs_to_its_end_on_a_cpu(verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """This shows before there is a GPU that the verb works."""
    monkeypatch.setattr(quick, "PHOTO_NETWORKS", ("imagenet_rnn_gate_18",))
    monkeypatch.setattr(quick, "SHARES", (0.5,))
    code, said, _, document, page = verify("--device", "cpu", "--quick")
    assert code == 0
    assert [(check["engine"], check["passed"]) for check in document["checks"]] == [
        ("cuda_graph:branch", True),
        ("cuda_graph:mask", True),
    ]
    assert "in batches of 1, 3 images, and as pixels" in said
    engines = "cuda_graph:branch", "cuda_graph:mask"
    expected = {(NAME, engine, size) for engine in engines for size in (1, 2)}
    assert quick_rows(document) == expected | {("imagenet_rnn_gate_18", engine, 1) for engine in engines}
    assert {row["routing"] for row in document["splits"]} == {
        "dense",
        "50% of the blocks",
    }
    assert set(document["conditions"]) == {"taken", "not taken"}
    assert page.count(f"| {NAME} | dense | cuda_graph:mask |") == 2


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here: install g++")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver already")
@pytest.mark.usefixtures("cuda_here")
def test_quick_measures_the_kernel_with_one_and_two_thread_blocks(verify: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the driver computes nothing."""
    compiled = SimpleNamespace(code=b"\x7fELF", symbol_mapping={kernel_name(gates): b"route" for gates in GATES})
    monkeypatch.setattr(persistent_gpu, "compile_kernel", lambda *_: (compiled, ""))
    monkeypatch.setattr(quick, "gpu_engines", lambda *_: {})
    monkeypatch.setattr(quick, "PHOTO_NETWORKS", ())
    monkeypatch.setattr(quick, "PLANS", {"cuda": quick.Plan((1,), (1, 300), (), 32, 0.0)})
    with standin(computes=False) as (seen, _):
        code, _, _, document, _ = verify("--quick")
        assert (code, seen.contexts, seen.pinned) == (0, 0, 0)
    rows = [row for row in document["splits"] if row["engine"] == "persistent:branch"]
    assert {(row["batch"], row["thread_blocks"]) for row in rows} == {(1, 4), (300, 4), (300, 2)}
    assert len(rows) == 3 * 4
    assert quick_rows(document)
