import pytest

from gpubench.analysis.scaling.efficiency import efficiency, jobs, place, scaling_pairs
from gpubench.analysis.summary import baseline_of, summarise
from tests.analysis.scaled import cell, file, records, samples

LONE, ALL = cell(), [100, 100]


def pairs(*cells):
    made = [records(c, [100] * c.replicas, repeats=2) for c in cells]
    return [(s.cell, one.cell, kind) for s, one, kind in scaling_pairs(summarise([file(*made)]))]


@pytest.mark.parametrize("dispatch", ["independent", "static", "dynamic"])
def test_a_lone_replica_serves_every_dispatch_and_every_sharing(dispatch):
    several = cell(2, dispatch=dispatch, replicas_per_device=2)
    assert pairs(LONE, several) == [(several, LONE, "weak")]
    own = cell(dispatch="dynamic")
    assert pairs(own, several) == [(several, own, "weak")]


def test_of_several_lone_cells_the_like_one_is_chosen():
    lone = [cell(dispatch=d) for d in ("static", "independent", "dynamic")]
    many = [cell(2, dispatch=d) for d in ("dynamic", "independent", "static")]
    assert pairs(*lone, *many) == [
        (many[0], lone[2], "weak"),
        (many[1], lone[1], "weak"),
        (many[2], lone[0], "weak"),
    ]
    assert pairs(*lone[:2], many[0]) == [(many[0], lone[1], "weak")]


def test_cells_that_do_other_work_are_no_pair():
    assert pairs(LONE, cell(2, boundary="transfer")) == []
    assert pairs(LONE, cell(2, precision="bf16")) == []
    assert pairs(LONE, cell(2, cores=2)) == []
    assert pairs(LONE, cell(2, options={"threads": 1})) == []


def test_efficiency_is_per_device():
    rates = {1: [100], 2: [60, 60], 4: [60] * 4}
    cells = [cell(), cell(2, replicas_per_device=2), cell(4, replicas_per_device=2)]
    summaries = summarise([file(*(records(c, rates[c.replicas]) for c in cells))])
    found = {s.cell.replicas: efficiency(s, one).value for s, one, _ in scaling_pairs(summaries)}
    assert found == pytest.approx({2: 1.2, 4: 1.2}, rel=1e-3)


def test_a_baseline_shares_devices_and_jobs_alike():
    axes = [{"dispatch": "dynamic"}, {"replicas_per_device": 2}, {}]
    cells = [cell(2, backend=b, **a) for a in axes for b in ("torch-eager", "openvino")]
    summaries = summarise([file(*(records(c, ALL) for c in cells))])
    bases = baseline_of(summaries)
    for s in summaries:
        base = bases[id(s)].cell
        assert (base.dispatch, base.replicas_per_device) == (
            s.cell.dispatch,
            s.cell.replicas_per_device,
        )


def test_jobs_are_the_cells_whose_replicas_share_one():
    cells = [cell(2), cell(2, dispatch="static"), cell(dispatch="static")]
    summaries = summarise([file(*(records(c, [100] * c.replicas) for c in cells))])
    (job,) = jobs(summaries)
    assert job.summary.cell == cells[1]
    assert job.claim_ns is None


def test_a_place_names_the_machine_where_there_are_several():
    x = samples(cell(2), 1, 100, node=3)
    assert (place(x, False), place(x, True)) == ("cpu:1", "node 3 cpu:1")
