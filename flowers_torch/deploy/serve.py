"""HTTP server for a trained classifier.

    POST /api/predict   photos in, predictions out
    GET  /              a page for photos
    GET  /api/model  /healthz  /metrics

The files of the page are read once into a fixed table, so no request can name another file.
"""

import asyncio
import base64
import contextlib
import dataclasses
import importlib.resources
import io
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from torch import Tensor

from flowers_torch import __version__
from flowers_torch.data.images import MAX_PIXELS, load_image
from flowers_torch.deploy.batching import Batcher
from flowers_torch.deploy.classifier import Classifier, Prediction
from flowers_torch.deploy.guard import Guard, limit_body
from flowers_torch.deploy.server_metrics import CONTENT_TYPE, ServerMetrics
from flowers_torch.errors import DataError, FlowersError, UsageError, printable
from flowers_torch.files.atomic import to_json

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
DEFAULT_TOP = 5  # classes in a prediction
MAX_IMAGES = 64  # in one request
BODY_SECONDS = 60.0  # timeout for receiving a request


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the server."""

    image_bytes: int = 10 << 20  # of an image file; a request may hold eight times as much
    pixels: int = MAX_PIXELS  # width times height of an image
    batch: int = 32  # images per forward pass
    waiting: int = 128  # images in the queue or being computed; further requests get status 503


@dataclasses.dataclass(frozen=True)
class Job:
    """A preprocessed image, and whether to explain its prediction."""

    pixels: Tensor
    explain: bool


@dataclasses.dataclass(frozen=True)
class JobResult:
    """A prediction, and its heatmap or the reason why there is none."""

    prediction: Prediction
    heatmap: Image.Image | None = None
    no_heatmap: str = ""


class Service:
    """A classifier behind a queue; the endpoints are its methods.

    Args:
        classifier: The loaded model.
        name: Name of the model on the page.
        limits: Limits of the server.
        confidence_threshold: Probability below which the model abstains.
        threshold_text: Description of the threshold; empty without one.
    """

    def __init__(
        self,
        classifier: Classifier,
        name: str,
        limits: Limits,
        confidence_threshold: float = 0.0,
        threshold_text: str = "",
    ) -> None:
        self.classifier, self.name, self.limits = classifier, name, limits
        self.confidence_threshold, self.threshold_text = confidence_threshold, threshold_text
        self.classes = [printable(label) for label in classifier.info.classes]
        self.server_metrics = ServerMetrics(lambda: self.pending)
        self.pending = 0  # images that wait or are being computed; changed by the event loop's thread only
        self.readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "reader")
        side = classifier.info.preprocessing.size
        classifier.classify([torch.zeros(3, side, side)])  # warm-up: the first forward pass is slow
        self.batcher = Batcher(self.compute, limits.batch)

    def compute(self, jobs: Sequence[Job]) -> list[JobResult]:
        """Computes a batch; called in the network's thread."""
        started = time.perf_counter()
        inputs = [job.pixels for job in jobs]
        predictions = self.classifier.classify(inputs, len(self.classes), self.confidence_threshold)
        results = [JobResult(prediction) for prediction in predictions]
        if wanted := [i for i, job in enumerate(jobs) if job.explain]:
            try:
                heatmaps = self.classifier.explain_inputs([inputs[i] for i in wanted])
                for i, heatmap in zip(wanted, heatmaps, strict=True):
                    results[i] = JobResult(predictions[i], heatmap)
            except UsageError as error:  # the network has no spatial feature map
                for i in wanted:
                    results[i] = JobResult(predictions[i], no_heatmap=str(error))
        self.server_metrics.sizes.observe(len(jobs))
        self.server_metrics.network.observe(time.perf_counter() - started)
        return results

    @contextlib.contextmanager
    def reserve(self) -> Iterator[Callable[[int], None]]:
        """Reserves one place in the queue for a request, and more by calling the yielded function.

        Raises:
            HTTPException: 503, the queue is full.
        """
        own = 0

        def take(images: int) -> None:
            nonlocal own
            if self.pending + images > self.limits.waiting:  # guard: H06 queue
                raise HTTPException(503, "too many photos are waiting; try again", {"Retry-After": "1"})
            own += images
            self.pending += images

        take(1)
        try:
            yield take
        finally:
            self.pending -= own

    async def predict(self, request: Request) -> Response:
        """Predictions for the images of a request, in order; an unreadable image has an error instead."""
        started = time.perf_counter()
        top = _query_integer(request, "top", DEFAULT_TOP, minimum=1)
        explain = bool(_query_integer(request, "gradcam", 0, minimum=0))
        with self.reserve() as take:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    files = await self.receive(request)
            except TimeoutError:
                raise HTTPException(408, f"the photos took more than {BODY_SECONDS:g} s to arrive") from None
            except ClientDisconnect:
                return Response(status_code=400)  # nobody receives it
            take(len(files) - 1)
            work = [self.predict_file(name, content, top, explain) for name, content in files]
            predictions = await asyncio.gather(*work)
        self.server_metrics.seconds.observe(time.perf_counter() - started)
        return _json({"model": self.name, "predictions": predictions})

    async def receive(self, request: Request) -> list[tuple[str, bytes | None]]:
        """Names and contents of the image files in a request; None for a file that is too large.

        The body is a form with any number of files, as browsers and `curl -F` send it, or one image file.
        """
        limited = limit_body(request.scope, request.receive, 8 * self.limits.image_bytes)
        request = Request(request.scope, limited)
        most = self.limits.image_bytes
        files: list[tuple[str, bytes | None]] = []
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            max_files = min(MAX_IMAGES, self.limits.waiting)
            async with request.form(max_files=max_files, max_fields=max_files) as form:
                for _, file in form.multi_items():
                    if isinstance(file, UploadFile):
                        small = file.size is not None and file.size <= most  # guard: H06 photo
                        # guard: H06 escape
                        files.append((printable(file.filename), await file.read() if small else None))
        elif content := await request.body():
            files.append(("the photo", content if len(content) <= most else None))
        if not files:
            raise HTTPException(400, "the request holds no photo; see curl -F photo=@FILE")
        return files

    async def predict_file(self, name: str, content: bytes | None, top: int, explain: bool) -> dict[str, Any]:
        """JSON values for one image file."""
        loop = asyncio.get_running_loop()
        try:
            if content is None:
                limit = self.limits.image_bytes >> 20
                raise DataError(f"{name} holds more than {limit} MB", "make it smaller")
            pixels = await loop.run_in_executor(self.readers, self.read, name, content)
            result = await asyncio.wrap_future(self.batcher.submit(Job(pixels, explain)))
        except FlowersError as error:  # guard: H07 photo
            self.server_metrics.images.labels("error").inc()
            return {"file": name, "error": str(error)}
        prediction = result.prediction
        self.server_metrics.images.labels("abstained" if prediction.reason else "predicted").inc()
        shown = dataclasses.replace(
            prediction,
            file=name,
            classes=tuple(printable(label) for label in prediction.classes[:top]),
            probabilities=prediction.probabilities[:top],
        )
        values = shown.to_dict()
        if result.heatmap:
            values["gradcam"] = await loop.run_in_executor(self.readers, _data_uri, result.heatmap)
        elif result.no_heatmap:
            values["no_gradcam"] = result.no_heatmap
        return values

    def read(self, name: str, content: bytes) -> Tensor:
        """An image file as network input; called in a reader's thread."""
        file = io.BytesIO(content)
        file.name = name
        # guard: H06 pixels
        image = load_image(file, self.limits.pixels, self.classifier.enough_side)
        return self.classifier.preprocess(image)

    async def model(self, request: Request) -> Response:
        """The model and the limits that the page respects."""
        return _json(
            {
                "name": self.name,
                "arch": printable(self.classifier.info.arch),
                "classes": self.classes,
                "threshold": self.threshold_text,
                "image_bytes": self.limits.image_bytes,
                "flowers_torch": __version__,
            }
        )

    async def health(self, request: Request) -> Response:
        """Status 200 while predictions are possible."""
        return _json({"status": "ok"}) if self.batcher.alive else _json({"status": "dead"}, 503)

    async def metrics(self, request: Request) -> Response:
        """Metrics in Prometheus's text format."""
        return Response(self.server_metrics.text(), media_type=CONTENT_TYPE)

    def close(self) -> None:
        """Computes the waiting images, then ends the threads."""
        self.batcher.close()
        self.readers.shutdown()


def make_app(service: Service, names: Collection[str] = ()) -> Starlette:
    """The ASGI application of a service.

    Args:
        service: Closed when the application ends.
        names: Allowed host names; see `Guard`.
    """
    folder = importlib.resources.files("flowers_torch.deploy") / "serve_page"
    routes = [
        *(_asset(path, (folder / name).read_bytes(), kind) for path, (name, kind) in PAGE.items()),
        Route("/api/predict", service.predict, methods=["POST"]),
        Route("/api/model", service.model),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics),
    ]
    paths = {route.path for route in routes}

    def count(path: str, status: int) -> None:
        service.server_metrics.requests.labels(path if path in paths else "other", str(status)).inc()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, names=names, on_response=count)],
        exception_handlers={HTTPException: _http_error, Exception: _server_error},
        lifespan=lifespan,
    )


def _asset(path: str, content: bytes, kind: str) -> Route:
    async def give(request: Request) -> Response:
        return Response(content, media_type=kind)

    return Route(path, give)  # guard: H08


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    """An ASCII response: class and file names may not be valid UTF-8."""
    return Response(to_json(value), status, headers, "application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    status, headers = getattr(error, "status_code", 500), getattr(error, "headers", None)
    return _json({"error": getattr(error, "detail", "")}, status, headers)


async def _server_error(request: Request, error: Exception) -> Response:
    return _json({"error": "the server failed; see its terminal"}, 500)


def _query_integer(request: Request, name: str, default: int, minimum: int) -> int:
    """An integer of the query string; status 400 if it is invalid."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < minimum:
        raise HTTPException(400, f"{name} must be a number from {minimum} on")
    return int(text)


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
