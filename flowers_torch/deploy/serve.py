"""HTTP server for a trained classifier.

    POST /api/predict   photos in, predictions out
    GET  /              a page for photos
    GET  /api/model  /healthz  /metrics

The files of the page are read once into a fixed table, so no request can name another file.
"""

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from torch import Tensor

from flowers_torch import __version__
from flowers_torch.deploy.batching import Batcher
from flowers_torch.deploy.guard import BODY_SECONDS, HEADERS, Bodies, Body, refusal
from flowers_torch.deploy.page_model import page_model
from flowers_torch.deploy.predictor import Prediction, Predictor
from flowers_torch.errors import DataError, FlowersError, UsageError, printable
from flowers_torch.files.atomic import to_json
from flowers_torch.files.system import usable_cores
from flowers_torch.report.image_sections import data_uri
from flowers_torch.report.templating import render

PAGE = {  # templates and MIME types
    "/": ("serve_page.html.jinja", "text/html; charset=utf-8"),
    "/page.css": ("serve_page.css.jinja", "text/css; charset=utf-8"),
    "/page.js": ("serve_page.js.jinja", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
DEFAULT_TOP = 5  # classes in a prediction
MAX_IMAGES = 64  # in one request
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)  # of the histogram


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the server. docs/serve.md derives its largest memory from them."""

    image_bytes: int = 10 << 20  # of an image file; a request may hold 8 times as much, all together 32 times
    pixels: int = 30_000_000  # of a decoded image, and of all that are decoded at the same time
    batch: int = 32  # images per forward pass
    waiting: int = 128  # images in the queue or being computed; further requests get status 503


class Service:
    """A predictor behind a queue; the endpoints are its methods.

    With `max_error` it abstains, with `coverage` predictions have sets, as in `Classifier.predict`.

    Raises:
        UsageError: one of them cannot be promised.
    """

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        limits: Limits,
        max_error: float | None = None,
        coverage: float | None = None,
    ) -> None:
        self.predictor, self.name, self.limits = predictor, name, limits
        self.threshold = None if max_error is None else predictor.threshold(max_error)
        self.set_threshold = None if coverage is None else predictor.set_threshold(coverage)
        self.page = page_model(predictor.info.classes, predictor.info.selective, max_error, coverage)
        self.registry = own = CollectorRegistry()
        ProcessCollector(registry=own)  # memory, processor time, open files
        self.requests = Counter("flowers_requests", "Responses sent", ["path", "status"], registry=own)
        self.images = Counter("flowers_images", "Images by outcome", ["outcome"], registry=own)
        self.seconds = Histogram("flowers_request_seconds", "From headers to response", registry=own)
        self.network = Histogram("flowers_network_seconds", "Per batch in the network", registry=own)
        self.sizes = Histogram("flowers_batch_images", "Images in a batch", buckets=BATCH_SIZES, registry=own)
        Gauge("flowers_pending_images", "Waiting or being computed", registry=own).set_function(lambda: self.pending)
        self.pending = 0  # images that wait or are being computed; changed by the event loop's thread only
        self.bodies = Bodies(32 * limits.image_bytes)
        MultiPartParser.spool_max_size = 8 * limits.image_bytes  # no photo is written to the disk
        self.readers = ThreadPoolExecutor(min(4, usable_cores()), "reader")
        side = predictor.info.preprocessing.size
        predictor.classify([torch.zeros(3, side, side)])  # warm-up: the first forward pass is slow
        self.batcher = Batcher(self.compute, limits.batch)

    def compute(self, jobs: Sequence[tuple[Tensor, bool]]) -> list[tuple[Prediction, Image.Image | UsageError | None]]:
        """Maps inputs, and whether to explain each, to predictions with a heatmap, or why there is none."""
        started = time.perf_counter()
        least = self.threshold.probability if self.threshold else 0.0
        inputs = [pixels for pixels, _ in jobs]
        predictions = self.predictor.classify(inputs, len(self.predictor.info.classes), least, self.set_threshold)
        explained = [number for number, (_, explain) in enumerate(jobs) if explain]
        heatmaps: dict[int, Any] = {}
        if explained:
            try:
                found = self.predictor.explain_inputs([jobs[number][0] for number in explained])
                heatmaps = dict(zip(explained, found, strict=True))
            except UsageError as error:  # the network has no spatial feature map
                heatmaps = dict.fromkeys(explained, error)
        self.sizes.observe(len(jobs))
        self.network.observe(time.perf_counter() - started)
        return [(prediction, heatmaps.get(number)) for number, prediction in enumerate(predictions)]

    @contextlib.contextmanager
    def reserve(self, images: int) -> Iterator[None]:
        """Reserves places in the queue; status 503 if it is full."""
        if self.pending + images > self.limits.waiting:  # guard: H06 queue
            raise HTTPException(503, "too many photos are waiting; try again", {"Retry-After": "1"})
        self.pending += images
        try:
            yield
        finally:
            self.pending -= images

    async def predict(self, request: Request) -> Response:
        """Predictions for the images of a request, in order; an unreadable image has an error instead."""
        started = time.perf_counter()
        top = _query_integer(request, "top", DEFAULT_TOP, minimum=1)
        explain = bool(_query_integer(request, "gradcam", 0, minimum=0))
        with self.reserve(1):
            pass  # a full queue refuses the request before its body is there
        with self.bodies.hold() as body:
            try:
                async with body.clock:
                    files = await self.receive(request, body)
            except TimeoutError:
                if body in self.bodies.held:
                    raise HTTPException(408, f"the photos took more than {BODY_SECONDS:g} s to arrive") from None
                raise HTTPException(503, "too many photos are arriving; try again", {"Retry-After": "1"}) from None
            except ClientDisconnect:
                return Response(status_code=400)  # nobody receives it
            body.is_complete = True
            with self.reserve(len(files)):
                work = [self.predict_file(name, content, top, explain) for name, content in files]
                predictions = await asyncio.gather(*work)
        self.seconds.observe(time.perf_counter() - started)
        return _json({"model": self.name, "predictions": predictions})

    async def receive(self, request: Request, body: Body) -> list[tuple[str, bytes | None]]:
        """Names and contents of the image files in a request; None for a file that is too large.

        The body is a form with any number of files, as browsers and `curl -F` send it, or one image file.
        """
        most = self.limits.image_bytes
        is_form = request.headers.get("content-type", "").lower().startswith("multipart/form-data")  # guard: H07 form
        # guard: H06 raw body
        request = Request(request.scope, self.bodies.counting(request, body, 8 * most if is_form else most))
        files: list[tuple[str, bytes | None]] = []
        if is_form:
            max_files = min(MAX_IMAGES, self.limits.waiting)
            async with request.form(max_files=max_files, max_fields=max_files) as form:
                for _, file in form.multi_items():
                    if isinstance(file, UploadFile):
                        small = file.size is not None and file.size <= most  # guard: H06 photo
                        # guard: H06 escape
                        files.append((printable(file.filename), await file.read() if small else None))
        elif content := await request.body():
            files.append(("the photo", content))
        if not files:
            raise HTTPException(400, "the request holds no photo; see curl -F photo=@FILE")
        return files

    async def predict_file(self, name: str, content: bytes | None, top: int, explain: bool) -> dict[str, Any]:
        """JSON values for one image file."""
        in_reader = functools.partial(asyncio.get_running_loop().run_in_executor, self.readers)
        try:
            if content is None:
                raise DataError(f"{name} holds more than {self.limits.image_bytes >> 20} MB", "make it smaller")
            pixels = await in_reader(self.predictor.read, content, name, self.limits.pixels)
            prediction, heatmap = await asyncio.wrap_future(self.batcher.submit((pixels, explain)))
        except FlowersError as error:  # guard: H07 photo
            self.images.labels("error").inc()
            return {"file": name, "error": str(error)}
        self.images.labels("abstained" if prediction.reason else "predicted").inc()
        values: dict[str, Any] = dataclasses.replace(prediction, file=name).to_dict()
        values["classes"] = [row | {"class": printable(row["class"])} for row in values["classes"][:top]]
        if "set" in values:
            values["set"] = [printable(name) for name in values["set"]]
        if isinstance(heatmap, UsageError):
            values["no_gradcam"] = str(heatmap)
        elif heatmap:
            values["gradcam"] = await in_reader(functools.partial(data_uri, heatmap, max(heatmap.size), quality=88))
        return values

    async def model(self, request: Request) -> Response:
        """The model and the limits that the page respects."""
        values = {
            "name": self.name,
            "arch": printable(self.predictor.info.arch),
            "classes": self.page["classes"],
            "threshold": self.threshold.describe() if self.threshold else "",
            "image_bytes": self.limits.image_bytes,
            "flowers_torch": __version__,
        }
        return _json(values)

    async def health(self, request: Request) -> Response:
        """Status 200 while predictions are possible."""
        return _json({"status": "ok"}) if self.batcher.alive else _json({"status": "dead"}, 503)

    async def metrics(self, request: Request) -> Response:
        """Metrics in Prometheus's text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def close(self) -> None:
        """Computes the waiting images, then ends the threads."""
        self.batcher.close()
        self.readers.shutdown()


def make_app(service: Service, names: Collection[str] = ()) -> Starlette:
    """The ASGI application of a service, which it closes when it ends; for `names` see `refusal`."""
    info, limits = service.predictor.info, service.limits
    model = service.page | {"name": service.name, "arch": info.arch, "image_bytes": limits.image_bytes}
    contents = {path: render(name, {"model": model}, "flowers_torch.deploy") for path, (name, _) in PAGE.items()}
    routes = [
        *(_asset(path, contents[path].encode(), kind) for path, (_, kind) in PAGE.items()),
        Route("/api/predict", service.predict, methods=["POST"]),
        Route("/api/model", service.model),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics),
    ]
    paths = {route.path for route in routes}

    async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
        reason, path = refusal(request, names), request.scope["path"]
        response = PlainTextResponse(reason, 403) if reason else await call_next(request)
        response.headers.update(HEADERS)
        service.requests.labels(path if path in paths else "other", str(response.status_code)).inc()
        return response

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=guard)]
    handlers = {HTTPException: _http_error, Exception: _server_error}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


def _asset(path: str, content: bytes, kind: str) -> Route:
    async def give(request: Request) -> Response:
        return Response(content, media_type=kind)

    return Route(path, give)  # guard: H08


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    """An ASCII response: class and file names may not be valid UTF-8."""
    return Response(to_json(value), status, headers, "application/json")


async def _http_error(request: Request, error: Any) -> Response:
    return _json({"error": error.detail}, error.status_code, error.headers)


async def _server_error(request: Request, error: Exception) -> Response:
    return _json({"error": "the server failed; see its terminal"}, 500)


def _query_integer(request: Request, name: str, default: int, minimum: int) -> int:
    """An integer of the query string; status 400 if it is invalid."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < minimum:
        raise HTTPException(400, f"{name} must be a number from {minimum} on")
    return int(text)
