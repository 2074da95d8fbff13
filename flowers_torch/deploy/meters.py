"""What a server counts and times, in Prometheus's text form."""

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Meters:
    """The meters of one server.

    Args:
        waiting: Asked for the number of photos at work or waiting.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)  # memory, processor time, open files
        self.requests = Counter("flowers_requests", "Responses sent", ["path", "status"], registry=own)
        self.photos = Counter("flowers_photos", "Photos by what came of them", ["outcome"], registry=own)
        self.seconds = Histogram("flowers_request_seconds", "From headers to answer", registry=own)
        self.network = Histogram("flowers_network_seconds", "Of a batch in the network", registry=own)
        self.sizes = Histogram("flowers_batch_photos", "Photos in a batch", buckets=BATCHES, registry=own)
        Gauge("flowers_waiting_photos", "At work or waiting", registry=own).set_function(waiting)

    def text(self) -> bytes:
        """All of them, of the type `CONTENT_TYPE`."""
        return generate_latest(self.registry)
