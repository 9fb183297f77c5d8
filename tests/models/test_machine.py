from pathlib import Path

import pytest

from models.machine import available_cpus


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves run with an override (tests/conftest.py)."""
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)


@pytest.fixture
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("cpu_", "cpu.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(
    ("quota", "cpus"), [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("max 100000", 16)]
)
def test_quota_of_cgroup_version_2(tmp_path: Path, quota: str, cpus: int) -> None:
    write(tmp_path, proc__self__cgroup="0::/pod/serve\n", sys__fs__cgroup__pod__serve__cpu_max=quota)
    assert available_cpus(tmp_path) == cpus


@pytest.mark.usefixtures("many_cpus")
def test_quota_of_a_group_above_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        proc__self__cgroup="0::/pod/serve\n",
        sys__fs__cgroup__pod__serve__cpu_max="max 100000",
        sys__fs__cgroup__pod__cpu_max="300000 100000",
    )
    assert available_cpus(tmp_path) == 3


@pytest.mark.usefixtures("many_cpus")
def test_mount_begins_at_the_containers_own_group(tmp_path: Path) -> None:
    write(tmp_path, proc__self__cgroup="0::/docker/4f2a\n", sys__fs__cgroup__cpu_max="400000 100000")
    assert available_cpus(tmp_path) == 4


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(("quota", "cpus"), [("250000", 3), ("-1", 16)])
def test_quota_of_cgroup_version_1(tmp_path: Path, quota: str, cpus: int) -> None:
    folder = tmp_path / "sys/fs/cgroup/cpu,cpuacct/docker/4f2a"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(quota)
    (folder / "cpu.cfs_period_us").write_text("100000")
    write(tmp_path, proc__self__cgroup="5:memory:/docker/4f2a\n4:cpu,cpuacct:/docker/4f2a\n")
    assert available_cpus(tmp_path) == cpus


def test_affinity_counts_without_a_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 7})
    assert available_cpus(tmp_path) == 3


@pytest.mark.usefixtures("many_cpus")
@pytest.mark.parametrize(("override", "cpus"), [("3", 3), ("0", 1), ("default", 16)])
def test_the_environment_overrides_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, cpus: int
) -> None:
    monkeypatch.setenv("PYTHON_CPU_COUNT", override)
    assert available_cpus(tmp_path) == cpus


def test_this_machine_has_a_cpu() -> None:
    assert available_cpus() >= 1
