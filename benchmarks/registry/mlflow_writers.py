"""Run by the interpreter of MLflow's own environment: N writers that register versions of one model at the same time.

    python mlflow_writers.py STORE bare|full WRITERS EACH

``bare``: only the version. ``full``: also what a model of ours holds, a run with parameters, metrics, tags and three
files.
Prints one JSON line: seconds, versions that the writers were told of, how many of them differ, errors.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time

os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"


def write(store, mode, each, start, results):
    import mlflow

    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient(tracking_uri=store, registry_uri=store)
    client.search_experiments()  # what is imported and checked only at the first call
    client.search_registered_models()
    start.wait()
    versions, errors = [], []
    for _ in range(each):
        try:
            versions.append(register_full(client) if mode == "full" else bare(client, "/nowhere", None))
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}"[:200])
    results.put((versions, errors))


def bare(client, source, run):
    return client.create_model_version("sac", source, run_id=run).version


def register_full(client):
    from mlflow.entities import Metric, Param

    run = client.create_run("0").info
    metrics = [Metric(f"metric_{number}", number / 7, int(time.time() * 1000), 0) for number in range(20)]
    params = [Param(name, "0123456789") for name in ("seed", "recipe_hash", "contract_hash", "command")]
    client.log_batch(run.run_id, metrics=metrics, params=params)
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("model.pth", 50_000), ("preprocessor.pkl", 1_000), ("config.json", 500)):
            path = os.path.join(folder, name)
            with open(path, "wb") as file:
                file.write(os.urandom(size))
            client.log_artifact(run.run_id, path)
    version = bare(client, run.artifact_uri, run.run_id)
    for name in ("grade", "objective", "data"):
        client.set_model_version_tag("sac", version, name, "0123456789")
    client.set_terminated(run.run_id)
    return version


def main():
    store, mode, writers, each = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    import mlflow

    mlflow.set_tracking_uri(store)
    mlflow.MlflowClient(tracking_uri=store, registry_uri=store).create_registered_model("sac")
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(writers + 1), context.Queue()
    processes = [context.Process(target=write, args=(store, mode, each, start, results)) for _ in range(writers)]
    for process in processes:
        process.start()
    start.wait()
    begun = time.perf_counter()
    answers = [results.get() for _ in processes]
    seconds = time.perf_counter() - begun
    versions = [version for own, _ in answers for version in own]
    errors = [error for _, own in answers for error in own]
    summary = {"seconds": seconds, "versions": len(versions), "distinct": len(set(versions)), "errors": len(errors)}
    print(json.dumps(summary | {"example": errors[:1], "mlflow": mlflow.__version__}))


if __name__ == "__main__":
    main()
