"""Reads metrics as Prometheus does."""

import re
import socket
import urllib.request
from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.processes import PythonProcess

Samples = dict[str, float]
"""By name and labels, in the form `name{label="value",...}`; the labels in alphabetical order."""


def samples_of(text: str) -> Samples:
    """Parse an exposition. Fail if a sample comes twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            key = sample.name + f"{{{labels}}}" * bool(labels)
            assert key not in found
            found[key] = sample.value
    return found


def sum_of(samples: Samples, name: str, *labels: str) -> float | None:
    """Return the sum of all samples of a name that have these labels (`worker="persist"`); None if there is none."""
    values = [
        value
        for key, value in samples.items()
        if key.partition("{")[0] == name and all(label in key for label in labels)
    ]
    return sum(values) if values else None


def scrape(url: str) -> Samples:
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return samples_of(answer.read().decode())


def metrics_url(worker: PythonProcess) -> str:
    """Wait until a worker says where its metrics are, and return that."""
    worker.wait_for("metrics at ")
    found = re.search(r"metrics at (http://[^\s\"]+)", worker.log)
    assert found
    return found[1]


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def names_of(samples: Iterable[str]) -> set[str]:
    return {key.partition("{")[0] for key in samples}
