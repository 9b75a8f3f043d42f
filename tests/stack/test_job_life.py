"""A job's life on the real stack: submit, train, watch, collect, cancel, refuse."""

import json
from pathlib import Path

import httpx
import pytest

from configs.job import JobStatus
from configs.names import BACKENDS
from serve_app.local.compare import download_adapter
from serve_app.local.receiver import WebhookReceiver
from tests.stack.conftest import TOKEN, Service, request, simulated

pytestmark = pytest.mark.stack


def test_all_three_apis_answer_with_health_and_docs(service: Service) -> None:
    for backend in BACKENDS:
        base = f"{service.state.base_url}/{backend}"
        assert httpx.get(f"{base}/healthz").status_code == 200
        assert httpx.get(f"{base}/readyz").json()["status"] == "ready"
        assert httpx.get(f"{base}/train").status_code == 401
        page = httpx.get(f"{base}/docs")
        assert page.status_code == 200 and f"/{backend}/openapi.json" in page.text
        document = httpx.get(f"{base}/openapi.json").json()
        assert "/train/{job_id}/cancel" in document["paths"]


def test_a_lora_job_trains_and_leaves_an_adapter_that_peft_loads(
    service: Service, tmp_path: Path
) -> None:
    with WebhookReceiver() as receiver:
        posted = request(callbacks={"webhook_url": receiver.url})
        job = service.ended(service.submit(posted))
        assert job.status is JobStatus.SUCCEEDED, job.error
        service.until(job, lambda _: receiver.bodies[-1]["status"] == "succeeded")
    assert (job.engine, job.attempt, job.backend_job_id) == ("trl", 1, f"{job.job_id}-1")
    assert (job.progress.step, job.progress.percent) == (12, 100.0)

    # Results: the manifest names every file, with its size and hash.
    manifest = json.loads(service.text(job.output_uri + "manifest.json"))
    names = {file["path"] for file in manifest["files"]}
    assert names == {artifact.name for artifact in job.artifacts}
    assert {f"attempt-1/{n}" for n in ("plan.json", "versions.json", "data.json")} <= names
    assert "attempt-1/adapter/adapter_model.safetensors" in names

    # The adapter opens with PEFT on the base it was trained from, and names it as the user did.
    folder = download_adapter(service.state, job, tmp_path / "adapter")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(service.home / "models" / "demo-llama")
    tuned = PeftModel.from_pretrained(base, str(folder))
    assert tuned.peft_config["default"].base_model_name_or_path.startswith("s3://")

    # Logs: metrics a line a step, the history with its end, the training log.
    metrics = [json.loads(x) for x in service.text(job.log_uri + "metrics.jsonl").splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, 13))
    history = [json.loads(x) for x in service.text(job.log_uri + "events.jsonl").splitlines()]
    assert [line["seq"] for line in history] == list(range(1, len(history) + 1))
    assert history[-1]["event"]["type"] == "succeeded"
    assert "training from step 0 to 12" in service.text(job.log_uri + "train.log")

    # Callbacks: every change once and in order, progress between.
    changes = [body for body in receiver.bodies if body["event"] != "progress"]
    assert [body["seq"] for body in changes] == list(range(1, len(changes) + 1))
    assert changes[-1]["status"] == "succeeded"
    assert len(changes) < len(receiver.bodies)


def test_nemo_and_meta_run_simulated_jobs_and_say_so_in_the_result(service: Service) -> None:
    jobs = [service.submit(simulated(), backend) for backend in ("nemo", "meta")]
    for job in map(service.ended, jobs):
        assert job.status is JobStatus.SUCCEEDED, job.error
        note = service.text(job.output_uri + "attempt-1/adapter/SIMULATED.json")
        assert json.loads(note)["simulated"] is True
    base = service.state.base_url
    headers = {"X-TRAINER-TOKEN": TOKEN}
    assert httpx.get(f"{base}/meta/train/{jobs[0].job_id}", headers=headers).status_code == 404


def test_a_running_job_is_cancelled_at_a_step_with_a_checkpoint(service: Service) -> None:
    job = service.training(service.submit(simulated(epochs=60)), step=5)
    with service.client() as client:
        assert client.cancel(job.job_id).status is JobStatus.CANCELLING
    job = service.ended(job)
    assert job.status is JobStatus.CANCELLED
    assert job.progress.step < 600
    kept = service.keys(job.output_uri + "checkpoints/")
    assert any(name.endswith("simulated.json") for name in kept)
    assert not any("manifest" in name for name in service.keys(job.output_uri))


def test_a_broken_row_fails_the_job_before_training_and_names_the_line(service: Service) -> None:
    key = "users/demo/projects/faq/ingestion/broken.jsonl"
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    body = json.dumps(good) + "\n" + '{"messages": "no list"}\n'
    service.s3.put_object(Bucket="trainer-demo", Key=key, Body=body.encode())
    job = service.ended(service.submit(request(datasets=[{"source": f"s3://trainer-demo/{key}"}])))
    assert job.status is JobStatus.FAILED and job.error is not None
    assert job.error.code == "dataset_invalid"
    assert "line 2" in job.error.message and "broken.jsonl" in job.error.message
    assert (job.started_at, job.attempt) == (None, 1)


def test_a_job_larger_than_the_cluster_waits_and_says_for_what(service: Service) -> None:
    wanted = {"gpus": 4, "gpu_type": "A100", "cpus": 32}
    batch = {"batch_size": 16, "max_steps": 5}
    job = service.submit(request(resources=wanted, tuning_parameters=batch))
    job = service.until(job, lambda now: bool(now.detail))
    assert job.status is JobStatus.QUEUED
    assert job.detail.startswith("4 × A100; the cluster has 0")
    with service.client() as client:
        assert client.cancel(job.job_id).status is JobStatus.CANCELLED


def test_a_token_reaches_neither_ray_nor_logs_nor_the_database(service: Service) -> None:
    canary = "hf_canary_Zx81kQ"
    model = {"provider": "s3", "model_name": "s3://trainer-demo/models/demo-llama"}
    model |= {"huggingface_token": canary, "auth_token": canary}
    job = service.ended(service.submit(simulated(base_model=model)))
    assert job.status is JobStatus.SUCCEEDED
    token = Path(service.state.ray_token_file).read_text()
    jobs = httpx.get(
        f"{service.state.dashboard_url}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    assert job.job_id in jobs.text and canary not in jobs.text
    for uri in (job.log_uri, job.output_uri):
        for name in service.keys(uri):
            assert canary not in service.text(uri + name), name
    for folder in (service.home, Path(service.state.ray_folder)):
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size < 50_000_000:
                assert canary.encode() not in path.read_bytes(), path
