"""Metrics of the server in Prometheus's text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """The metrics of one server.

    Args:
        pending: Returns the number of images that wait or are being computed.
    """

    def __init__(self, pending: Callable[[], float]) -> None:
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)  # memory, processor time, open files
        self.requests = Counter("flowers_requests", "Responses sent", ["path", "status"], registry=own)
        self.images = Counter("flowers_images", "Images by outcome", ["outcome"], registry=own)
        self.seconds = Histogram("flowers_request_seconds", "From headers to response", registry=own)
        self.network = Histogram("flowers_network_seconds", "Per batch in the network", registry=own)
        self.sizes = Histogram("flowers_batch_images", "Images in a batch", buckets=BATCH_SIZES, registry=own)
        Gauge("flowers_pending_images", "Waiting or being computed", registry=own).set_function(pending)
