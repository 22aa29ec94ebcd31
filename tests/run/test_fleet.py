"""One suite on every kind of machine: real agents in the place of machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpubench.analysis.summary import summarise
from gpubench.analysis.tables import devices
from gpubench.errors import GpubenchError, InputError
from gpubench.records.record import RecordFile
from gpubench.report.charts import ranks
from gpubench.run import fleet
from gpubench.run.cluster.ray_cluster import Cluster
from gpubench.run.watcher import Silent
from tests.run.cluster.conftest import cluster as cluster  # a fixture

WriteSuite = Callable[..., Path]


def gpu(name: str, count: int = 1, size: float = 24e9) -> dict[str, Any]:
    return {"gpus": [{"name": name, "total_bytes": size}] * count}


def test_machines_are_of_a_kind_by_what_they_have() -> None:
    cpu = {"cpu": {"model": "EPYC", "usable": 8}, "gpus": []}
    found = [gpu("L4"), gpu("H100", 8, 80e9), gpu("L4", 2), cpu, gpu("H100 MIG 1g.10gb", 1, 9.8e9)]
    assert fleet.kinds(found, "gpu") == {
        "L4 (24 GB)": [0, 2], "H100 (80 GB)": [1], "EPYC (8 cores)": [3],
        "H100 MIG 1g.10gb (9.8 GB)": [4],
    }  # fmt: skip
    assert list(fleet.kinds(found, "node"))[:3] == [
        "L4 (24 GB)", "8 x H100 (80 GB)", "2 x L4 (24 GB)",
    ]  # fmt: skip


def test_prices_are_of_the_longest_name_that_fits(tmp_path: Path) -> None:
    given = fleet.prices("L4=0.71, H100 MIG=0.5,H100=2.99")
    assert fleet.price("NVIDIA H100 MIG 1g.10gb (9.8 GB)", given) == 0.5
    assert fleet.price("NVIDIA H100 (80 GB)", given) == 2.99
    assert fleet.price("EPYC (8 cores)", given) is None
    (tmp_path / "prices.toml").write_text('"NVIDIA L4" = 0.71\n')
    assert fleet.prices(str(tmp_path / "prices.toml")) == {"NVIDIA L4": 0.71}
    both = {"NVIDIA L4 (24 GB), NVIDIA H100 (80 GB)": 3.7}  # a machine of two kinds
    assert fleet.prices(both) == both
    for wrong in ("L4", "L4=free", "L4=-1", "=2"):
        with pytest.raises(InputError, match="expected a name and a price of an hour"):
            fleet.prices(wrong)
    with pytest.raises(InputError, match=r"--price \[\('L4', 1\)\]: expected NAME=PRICE"):
        fleet.prices([("L4", 1)])  # type: ignore[arg-type]


def both(cluster: Cluster, suite: Path, out: Path, cache_dir: Path, **more: Any) -> dict[str, Any]:
    for name, peer in zip("AB", cluster.peers, strict=True):
        peer.environment |= {"cpu": {"model": f"CPU {name}", "usable": 1}, "gpus": []}
    return fleet.run(
        cluster, str(suite), {}, out, lambda _: Silent(), cache_dir=cache_dir, **more
    )  # fmt: skip


def test_every_kind_is_measured_and_compared_and_one_that_fails_stops_no_other(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1, 4]", policy={"max_latency": '"10s"'})
    cluster.peers[0]._lost = "node a: gone"
    words = {"given": {"CPU A": 2.0}, "baseline": "cpu b"}
    found = both(cluster, suite, tmp_path / "out", cache_dir, **words)
    assert list(found) == ["CPU B (1 core)", "CPU A (1 core)"]
    first, broken = found.values()
    assert isinstance(first, RecordFile)
    assert {r.status for r in first.records} == {"ok"}
    assert isinstance(broken, GpubenchError)
    assert "node a: gone" in str(broken)

    cluster.peers[0]._lost = ""
    again = both(cluster, suite, tmp_path / "out", cache_dir, resume=True, **words)
    assert again["CPU B (1 core)"].records == first.records, "measured once"
    files = list(again.values())
    table = devices.build(summarise(files))
    rows = [dict(zip((c.name for c in table.columns), row, strict=True)) for row in table.rows]
    assert [row["device"] for row in rows] == ["CPU B (1 core)", "CPU A (1 core)"]
    assert rows[0]["speed-up"].value == 1
    rate, cost = rows[1]["images/s"], rows[1]["cost per million"]
    assert cost.value == pytest.approx(2.0 / 3600 * 1e6 / rate.value)
    assert rows[0]["cost per million"] is None
    assert rows[1]["p50 latency"].value < 10e9
    assert "energy per million" not in rows[0]
    drawn = ranks.by_device(summarise(files))
    assert drawn is not None
    assert [row.label.partition(":")[0] for row in drawn.rows] == [row["device"] for row in rows]
    assert drawn.rows[0].times == "baseline"
    assert "p50 latency <= 10.0 s" in drawn.caption
    assert ranks.by_device(summarise(files[:1])) is None


def test_energy_that_is_of_different_parts_is_said_to_be(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    files = [*both(cluster, write_suite(), tmp_path / "out", cache_dir).values()]
    for file, source in zip(files, ("NVML", "RAPL"), strict=True):
        energy = {"source": source, "joules": 60.0, "seconds": 6.0, "idle_watts": None}
        file.records[:] = [
            msgspec.structs.replace(r, telemetry=r.telemetry | {"energy": energy})
            for r in file.records
        ]
    table = devices.build(summarise(files))
    at = [column.name for column in table.columns].index("energy per million")
    for row in table.rows:
        joules_per_image = 10.0 / row[2].value  # 10 W while it measured
        assert row[at].value == pytest.approx(joules_per_image * 1e6 / 3.6e6, rel=0.2)
    assert table.notes[-1] == (
        "Energy is of different parts of these machines, by what counts it: CPU A (1 core): NVML; "
        "CPU B (1 core): RAPL."
    )


def test_a_device_that_keeps_no_limit_has_no_best(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path
) -> None:
    suite = write_suite(batch_size="[1]", policy={"max_latency": '"1ns"'})
    table = devices.build(summarise([*both(cluster, suite, tmp_path / "o", cache_dir).values()]))
    assert [row[2].why for row in table.rows] == ["nothing keeps the limit"] * 2


def test_where_the_first_device_has_no_best_the_report_says_what_it_is_compared_with(
    cluster: Cluster, write_suite: WriteSuite, tmp_path: Path, cache_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    suite = write_suite(batch_size="[1]", policy={"max_latency": '"10s"'})
    rows = summarise([*both(cluster, suite, tmp_path / "o", cache_dir).values()])
    first, keeping = rows[0].run, devices._keeping
    monkeypatch.setattr(
        devices, "_keeping",
        lambda rows, limit: [s for s in keeping(rows, limit) if s.run != first],
    )  # fmt: skip
    table = devices.build(rows)
    assert [row[3].value if row[3] else None for row in table.rows] == [None, 1.0]
    assert table.notes[-1] == (
        "CPU A (1 core), the first, does not keep p50 latency <= 10.0 s: speed-ups are against "
        "CPU B (1 core)."
    )


def test_what_differs_beside_the_device_is_said() -> None:
    one = gpu("L4") | {"libraries": {"torch": "2.9.0"}, "gpus": [{"name": "L4", "driver": "550"}]}
    other = {"libraries": {"torch": "2.10.0"}, "gpus": [{"name": "H100", "driver": "580"}]}
    assert devices.beside(one, one | {"gpus": [{"name": "H100", "driver": "550"}]}) == ""
    said = devices.beside(one, other)
    assert said.startswith("differs from the first in more than the device: ")
    assert "libraries.torch 2.9.0 -> 2.10.0" in said
    assert "gpus.driver 550 -> 580" in said
    capped = {"power_cap_w": 200.0, "power_default_w": 350.0, "clocks": "application"}
    free = {"power_cap_w": 72.0, "power_default_w": 72.0, "clocks": "floating"}
    said = devices.beside({"gpus": [free], "cpu": {"turbo": True}}, {"gpus": [capped], "cpu": {}})
    assert said.endswith(": gpus.clocks floating -> application; "
                         "gpus.power cap none -> 200 of 350 W")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"given": {"L4": 1.0}}, r"--price L4: the cluster has no such device: CPU A \(1 core\), "),
        ({"baseline": "H100"}, r"--baseline H100: the cluster has CPU A"),
    ],
)
def test_devices_that_are_not_there(
    words: dict[str, Any], told: str, cluster: Cluster, write_suite: WriteSuite, tmp_path: Path,
    cache_dir: Path,
) -> None:  # fmt: skip
    with pytest.raises(InputError, match=told):
        both(cluster, write_suite(), tmp_path / "out", cache_dir, **words)
    assert not (tmp_path / "out").exists()
