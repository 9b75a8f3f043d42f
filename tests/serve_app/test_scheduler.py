"""Who gets a place on the cluster, who waits, and what a waiting owner reads."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.job import Job, JobStatus
from configs.resources import ResourcesSpec
from serve_app.capacity import Capacity, NodeCapacity, demand
from serve_app.scheduler import Admit, Wait, decide, never_fits
from tests.serve_app.conftest import make_job


def node(name: str = "n", *, cpus: float = 0, gpus: float = 0, memory_gb: float = 64,
         accelerator: str | None = None) -> NodeCapacity:  # fmt: skip
    return NodeCapacity(
        node_id=name, cpus=cpus, gpus=gpus, memory_gb=memory_gb, accelerator=accelerator
    )


def cluster(*nodes: NodeCapacity, **limits: int) -> Capacity:
    return Capacity(nodes=list(nodes), **limits)


def wants(job_id: str, *, age: int = 0, status: str = "queued", **resources: Any) -> Job:
    request = {"resources": resources}
    return make_job(job_id, age=age, status=JobStatus(status), request=request)


TWO_CPUS = cluster(node(cpus=2))
A100S = cluster(node("a", cpus=64, gpus=4, memory_gb=512, accelerator="A100"))


def test_a_gang_is_shared_out_evenly() -> None:
    need = demand(ResourcesSpec(gpus=4, gpu_type="A100", cpus=32, memory_gb=256, nodes=2))
    assert need == (4, 2, 8, 1, 64, "A100")
    assert demand(ResourcesSpec()) == (1, 1, 1, 0, 0, None)


def test_what_fits_is_admitted() -> None:
    assert decide([wants("j", cpus=2)], [], TWO_CPUS) == [Admit("j")]


def test_what_one_job_takes_the_next_cannot() -> None:
    queue = [wants("first", age=2, cpus=1), wants("second", age=1, cpus=2)]
    assert decide(queue, [], TWO_CPUS) == [Admit("first"), Wait("second", "2 CPUs; 1 of 2 free")]


@pytest.mark.parametrize("status", ["provisioning", "running", "finalizing", "cancelling"])
def test_jobs_under_way_hold_their_place(status: str) -> None:
    holding = [wants("busy", status=status, cpus=1)]
    assert decide([wants("j", cpus=2)], holding, TWO_CPUS) == [Wait("j", "2 CPUs; 1 of 2 free")]


@pytest.mark.parametrize("status", ["queued", "recovering", "succeeded"])
def test_other_jobs_hold_none(status: str) -> None:
    assert decide([wants("j", cpus=2)], [wants("x", status=status, cpus=2)], TWO_CPUS) == [
        Admit("j")
    ]


def test_the_oldest_comes_first_whatever_the_order_of_the_list() -> None:
    queue = [wants("young", age=1, cpus=2), wants("old", age=9, cpus=2)]
    assert decide(queue, [], TWO_CPUS) == [Admit("old"), Wait("young", "2 CPUs; 0 of 2 free")]


def test_a_job_that_must_wait_is_not_overtaken() -> None:
    holding = [wants("busy", status="running", cpus=1)]
    queue = [wants("big", age=2, cpus=2), wants("small", age=1, cpus=1), wants("more", cpus=1)]
    assert decide(queue, holding, TWO_CPUS) == [
        Wait("big", "2 CPUs; 1 of 2 free"),
        Wait("small", "behind job big"),
        Wait("more", "behind job big"),
    ]


def test_a_job_that_can_never_run_holds_nobody_up() -> None:
    queue = [wants("dream", age=2, gpus=4, gpu_type="A100"), wants("small", age=1, cpus=2)]
    assert decide(queue, [], TWO_CPUS) == [
        Wait("dream", "4 × A100; the cluster has 0 and may never have more"),
        Admit("small"),
    ]


def test_a_dream_behind_a_waiting_job_still_says_what_it_lacks() -> None:
    holding = [wants("busy", status="running", cpus=1)]
    queue = [wants("big", age=2, cpus=2), wants("dream", cpus=3)]
    details = [d.detail for d in decide(queue, holding, TWO_CPUS) if isinstance(d, Wait)]
    assert details == ["2 CPUs; 1 of 2 free", "3 CPUs; the cluster has 2 and may never have more"]


@pytest.mark.parametrize(
    ("resources", "detail"),
    [
        ({"gpus": 8}, "8 × GPU; the cluster has 4"),
        ({"gpus": 2, "gpu_type": "H100"}, "2 × H100; the cluster has 0"),
        ({"gpus": 2, "cpus": 128}, "128 CPUs; the cluster has 64"),
        ({"gpus": 2, "memory_gb": 1024}, "1024 GiB of memory; the cluster has 512"),
        ({"gpus": 4, "nodes": 2}, "4 workers of 1 GPU, 1 CPU each on 2 nodes; the cluster has no"),
    ],
)
def test_never_fits_names_the_first_thing_missing(resources: dict[str, Any], detail: str) -> None:
    reason = never_fits(ResourcesSpec(**resources), A100S)
    assert reason is not None
    assert reason.startswith(detail)
    assert reason.endswith("and may never have more")


def test_never_fits_has_nothing_to_say_of_what_does() -> None:
    fits = ResourcesSpec(gpus=4, gpu_type="A100", cpus=32, memory_gb=256)
    assert never_fits(fits, A100S) is None


def test_gpus_in_use_are_told_with_their_total() -> None:
    holding = [wants("busy", status="running", gpus=3)]
    assert decide([wants("j", gpus=4, gpu_type="A100")], holding, A100S) == [
        Wait("j", "4 × A100; 1 of 4 free")
    ]


def test_a_worker_is_never_split_over_nodes() -> None:
    capacity = cluster(node("a", cpus=3), node("b", cpus=3))
    assert decide([wants("j", cpus=4, workers=2)], [], capacity) == [Admit("j")]
    assert decide([wants("j", cpus=4)], [], capacity) == [
        Wait(
            "j",
            "1 worker of 4 CPUs; the cluster has no room for that shape and may never have more",
        )
    ]


def test_pieces_that_are_free_but_too_small_are_told_apart() -> None:
    capacity = cluster(node("a", cpus=2), node("b", cpus=2))
    holding = [wants("x", status="running", cpus=3, workers=3)]
    decisions = decide([wants("small", age=1, cpus=1), wants("j", cpus=2)], holding, capacity)
    assert decisions == [Admit("small"), Wait("j", "2 CPUs; 0 of 4 free")]
    three = cluster(node("a", cpus=2), node("b", cpus=2), node("c", cpus=1))
    assert decide([wants("j", cpus=2)], holding, three) == [
        Wait("j", "1 worker of 2 CPUs; the cluster has no free room for that shape")
    ]


def test_workers_are_spread_evenly_over_distinct_nodes() -> None:
    pair = (node("a", cpus=4, gpus=2), node("b", cpus=4, gpus=2))
    assert decide([wants("j", gpus=4, nodes=2)], [], cluster(*pair)) == [Admit("j")]
    uneven = cluster(node("a", cpus=4, gpus=3), node("b", cpus=4, gpus=1))
    assert never_fits(ResourcesSpec(gpus=4, nodes=2), uneven) is not None


def test_a_share_that_is_no_round_number_still_fits() -> None:
    capacity = cluster(node(cpus=3, memory_gb=0.1))
    assert decide([wants("j", workers=3, memory_gb=0.1)], [], capacity) == [Admit("j")]


def test_an_autoscaler_is_let_see_the_job() -> None:
    grows = cluster(node(cpus=2), max_gpus=4)
    assert decide([wants("j", gpus=4)], [], grows) == [Admit("j")]
    assert never_fits(ResourcesSpec(gpus=4), grows) is None
    assert never_fits(ResourcesSpec(gpus=5), grows) is not None


def test_an_autoscaler_is_not_asked_for_more_than_its_limit() -> None:
    grows = cluster(node(cpus=2), max_gpus=4)
    holding = [wants("busy", status="provisioning", gpus=2)]
    decisions = decide([wants("j", age=1, gpus=4), wants("small", cpus=2)], holding, grows)
    assert decisions == [Wait("j", "4 × GPU; the cluster has 0"), Admit("small")]


def test_cpus_alone_grow_only_within_max_cpus() -> None:
    assert never_fits(ResourcesSpec(cpus=4), cluster(node(cpus=2), max_gpus=4)) is not None
    assert never_fits(ResourcesSpec(cpus=4), cluster(node(cpus=2), max_cpus=4)) is None
    both = cluster(node(cpus=2), max_gpus=4, max_cpus=8)
    assert never_fits(ResourcesSpec(gpus=4, cpus=16), both) is not None


def test_a_node_that_has_gone_does_not_break_the_count() -> None:
    holding = [wants("busy", status="running", cpus=8, workers=8)]
    assert decide([wants("j", cpus=1)], holding, TWO_CPUS) == [Wait("j", "1 CPU; 0 of 2 free")]


def test_an_empty_cluster_admits_nothing() -> None:
    assert decide([wants("j")], [], cluster()) == [
        Wait("j", "1 CPU; the cluster has 0 and may never have more")
    ]


def test_a_capacity_survives_the_store() -> None:
    assert Capacity.model_validate_json(A100S.model_dump_json()) == A100S


SIZES = st.lists(st.integers(1, 6), max_size=12)


@given(nodes=st.lists(st.integers(1, 5), min_size=1, max_size=3), held=SIZES, queued=SIZES)
def test_no_node_is_overbooked_and_no_waiting_job_overtaken(
    nodes: list[int], held: list[int], queued: list[int]
) -> None:
    capacity = cluster(*(node(str(i), cpus=cpus) for i, cpus in enumerate(nodes)))
    holding = [wants(f"h{i}", status="running", cpus=n, workers=n) for i, n in enumerate(held)]
    queue = [wants(f"q{i}", age=99 - i, cpus=n, workers=n) for i, n in enumerate(queued)]
    decisions = decide(queue, holding, capacity)
    assert [d.job_id for d in decisions] == [job.job_id for job in queue]
    admitted = [n for n, d in zip(queued, decisions, strict=True) if isinstance(d, Admit)]
    assert sum(admitted) <= max(0, sum(nodes) - sum(held))
    possible = [d for n, d in zip(queued, decisions, strict=True) if n <= sum(nodes)]
    waits = [isinstance(d, Wait) for d in possible]
    assert waits == sorted(waits)


def test_every_job_runs_in_the_end() -> None:
    """Jobs of all sizes that end in the order they started: none is left behind."""
    queue = [wants(f"j{i}", age=100 - i, cpus=1 + i % 2) for i in range(60)]
    running: list[Job] = []
    for _ in range(200):
        admitted = {d.job_id for d in decide(queue, running, TWO_CPUS) if isinstance(d, Admit)}
        running += [
            job.model_copy(update={"status": JobStatus.RUNNING})
            for job in queue
            if job.job_id in admitted
        ]
        queue = [job for job in queue if job.job_id not in admitted]
        running = running[1:]
    assert not queue
