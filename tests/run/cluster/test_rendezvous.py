"""Who am I: options, torchrun, srun; and the secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpubench.errors import InputError
from gpubench.run.cluster.rendezvous import (
    Membership,
    addresses,
    derived_port,
    first_host,
    membership,
    secret,
)

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "node0",
    "MASTER_PORT": "29400",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "4", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "gpu[03-05,9]",
}  # fmt: skip


def test_nobody_said_anything() -> None:
    assert membership(None, None, None, {}) is None
    assert membership(1, None, None, {}) is None
    assert membership(1, 0, "localhost:1", {}) is None


def test_options() -> None:
    assert membership(2, 1, "10.0.0.1:29500", {}) == Membership(2, 1, "10.0.0.1", 29500)
    on_six = membership(2, 0, "[::1]:29500", {})
    assert on_six == Membership(2, 0, "::1", 29500)
    assert on_six is not None
    assert on_six.endpoint == "[::1]:29500"


def test_torchrun_keeps_the_store_itself() -> None:
    assert membership(None, None, None, TORCHRUN) == Membership(2, 1, "node0", 29400, hosted=True)
    own = TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "False"}
    assert membership(None, None, None, own) == Membership(2, 1, "node0", 29400)
    assert membership(None, None, None, TORCHRUN | {"GROUP_WORLD_SIZE": "1"}) is None


def test_srun_of_a_step() -> None:
    assert membership(None, None, None, SRUN) == Membership(4, 3, "gpu03", derived_port(123456, 1))
    alone = SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0"}
    assert membership(None, None, None, alone) is None


def test_a_shell_in_an_allocation_is_alone() -> None:
    """salloc and sbatch set the job's variables, and some of a task's."""
    job = {
        "SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_NNODES": "4", "SLURM_PROCID": "0",
        "SLURM_NODELIST": "gpu[1-4]", "SLURM_JOB_NUM_NODES": "4", "SLURM_NODEID": "0",
    }  # fmt: skip
    assert membership(None, None, None, job) is None


def test_torchrun_inside_a_step_is_asked_first() -> None:
    found = membership(None, None, None, SRUN | TORCHRUN)
    assert found is not None
    assert found.host == "node0"


def test_options_win_over_variables() -> None:
    assert membership(3, 2, "a:5", TORCHRUN) == Membership(3, 2, "a", 5)
    assert membership(None, None, "a:5", TORCHRUN) == Membership(2, 1, "a", 5)
    assert membership(1, None, None, TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}) is None
    assert membership(1, None, None, SRUN) is None


@pytest.mark.parametrize(
    ("nnodes", "rank", "endpoint", "environ", "words"),
    [
        (2, None, "a:1", {}, "--nnodes 2: --node-rank is missing"),
        (2, 0, None, {}, "--nnodes 2: --rdzv-endpoint is missing"),
        (None, 1, None, {}, "--nnodes"),
        (None, None, "a:1", {}, "--nnodes"),
        (0, 0, "a:1", {}, "--nnodes 0"),
        (10**12, 0, "a:1", {}, "--nnodes 1000000000000: expected the number of machines, 1 to"),
        (2, 0, "a" * 300 + ":1", {}, "expected HOST:PORT"),
        (2, 0, "a:" + "1" * 5000, {}, "expected HOST:PORT"),
        (2, 2, "a:1", {}, "--node-rank 2: of 2 nodes, expected 0 to 1"),
        (1, 1, None, {}, "--node-rank 1: of 1 nodes"),
        (2, None, None, SRUN, "--node-rank 3: of 2 nodes"),
        (2, 0, "a", {}, "'a': expected HOST:PORT"),
        (2, 0, "a:b", {}, "'a:b': expected HOST:PORT"),
        (2, 0, "a:99999", {}, "'a:99999': expected HOST:PORT"),
        (2, 0, "::1:80", {}, "'::1:80': expected HOST:PORT"),
        (2, 0, "0.0.0.0:80", {}, "not all addresses"),
        (2, 0, "[::]:80", {}, "not all addresses"),
        (2, 0, "0:80", {}, "not all addresses"),
        (2, 0, "0x0:80", {}, "not all addresses"),
        (2, 0, "[::0]:80", {}, "not all addresses"),
        (2, 0, "[::ffff:0.0.0.0]:80", {}, "not all addresses"),
        (None, None, None, TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "--nproc-per-node 1"),
        (None, None, None, TORCHRUN | {"GROUP_RANK": "x"}, "GROUP_RANK is 'x'"),
        (None, None, None, TORCHRUN | {"MASTER_PORT": ""}, "expected HOST:PORT"),
        (None, None, None, SRUN | {"SLURM_STEP_NUM_TASKS": "8"}, "--ntasks-per-node=1"),
        (None, None, None, SRUN | {"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is ''"),
        (None, None, None, SRUN | {"SLURM_STEP_NODELIST": ""}, "expected HOST:PORT"),
    ],
)
def test_what_is_incomplete_or_contradicts_itself_is_bad_input(
    nnodes: int | None, rank: int | None, endpoint: str | None, environ: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError) as error:
        membership(nnodes, rank, endpoint, environ)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu03", "gpu03"),
        ("gpu03,gpu04", "gpu03"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[7,9]", "gpu7"),
        ("rack[1-2]node[01-04].x", "rack1node01.x"),
        ("", ""),
    ],
)
def test_the_first_host_of_slurms_notation(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


def test_ports_of_jobs_and_steps_lie_below_those_of_clients() -> None:
    ports = [derived_port(job, step) for job in range(100_000, 100_050) for step in range(3)]
    assert len(set(ports)) == len(ports)
    assert all(15_000 <= port < 30_000 for port in ports)


# ------------------------------------------------------------------------------ the secret

AWAY = Membership(2, 0, "10.0.0.1", 1)
HERE = Membership(2, 0, "127.0.0.1", 1)
LONG = "sixteen letters at least"


def test_a_secret_is_needed_where_the_network_can_reach(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="GPUBENCH_SECRET"):
        secret(AWAY, None, {})
    assert secret(HERE, None, {}) == b""
    assert secret(Membership(2, 0, "::1", 1), None, {}) == b""
    with pytest.raises(InputError, match="GPUBENCH_SECRET"):
        # torchrun's store listens on all addresses, whatever it was told
        secret(Membership(2, 0, "127.0.0.1", 1, hosted=True), None, {})


def test_it_comes_from_a_file_or_the_environment_and_leaves_the_environment(
    tmp_path: Path,
) -> None:
    environ = {"GPUBENCH_SECRET": LONG}
    assert secret(AWAY, None, environ) == LONG.encode()
    assert environ == {}
    file = tmp_path / "secret"
    file.write_text(f"{LONG} of the file\n")
    environ = {"GPUBENCH_SECRET": LONG}
    assert secret(HERE, file, environ) == f"{LONG} of the file".encode()
    assert environ == {}


@pytest.mark.parametrize("member", [AWAY, HERE])
def test_a_short_or_unreadable_secret_is_bad_input_and_is_not_shown(
    tmp_path: Path, member: Membership
) -> None:
    with pytest.raises(InputError, match="9 characters") as error:
        secret(member, None, {"GPUBENCH_SECRET": "too short"})
    assert "too short" not in str(error.value)
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="0 characters"):
        secret(member, tmp_path / "empty", {})
    (tmp_path / "huge").write_bytes(b"x" * 100_000)
    with pytest.raises(InputError, match="16 to 4096"):
        secret(member, tmp_path / "huge", {})
    with pytest.raises(InputError, match="cannot be read"):
        secret(member, tmp_path / "none", {})


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
def test_a_name_that_is_none_is_bad_input(host: str) -> None:
    with pytest.raises(InputError, match="is not known here"):
        addresses(Membership(2, 0, host, 1))


def test_a_name_that_means_this_machine_only_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's /etc/hosts: '127.0.1.1 gpu03', on gpu03."""
    found = ["127.0.1.1"]
    monkeypatch.setattr(
        "socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 1)) for address in found]
    )
    member = Membership(2, 0, "gpu03", 1)
    with pytest.raises(InputError, match="which no other machine reaches"):
        addresses(member)
    found.append("10.0.0.3")
    assert addresses(member) == ["10.0.0.3", "127.0.1.1"]
    with pytest.raises(InputError, match="can be reached from the network"):
        secret(member, None, {})


def test_an_unknown_host_is_bad_input() -> None:
    with pytest.raises(InputError, match="not known here"):
        secret(Membership(2, 0, "no-such-host.invalid", 1), None, {})
