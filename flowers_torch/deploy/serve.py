"""A local page and a JSON endpoint for a trained classifier.

    POST /api/predict   photos in, answers out, computed by the one image path and the one forward pass
    GET  /              a page to drop photos on
    GET  /api/model  /healthz  /metrics

The files of the page are read once, into a fixed table: no request can name any other file.
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
from flowers_torch.deploy.guard import Guard, limited
from flowers_torch.deploy.meters import CONTENT_TYPE, Meters
from flowers_torch.errors import DataError, FlowersError, UsageError, printable
from flowers_torch.files.atomic import to_json

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
TOP = 5  # classes in an answer where the request does not say
MOST_PHOTOS = 64  # in one request
BODY_SECONDS = 60.0  # that a request may take to arrive


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server takes on.

    Attributes:
        photo_bytes: Size of a photo's file; a request may hold eight times that.
        pixels: Width times height of a photo.
        batch: Photos computed at once.
        waiting: Photos at work or waiting; requests beyond are answered 503.
    """

    photo_bytes: int = 10 << 20
    pixels: int = MAX_PIXELS
    batch: int = 32
    waiting: int = 128


@dataclasses.dataclass(frozen=True)
class Job:
    """A photo as the network wants it, and whether its answer is to be explained."""

    pixels: Tensor
    explain: bool


@dataclasses.dataclass(frozen=True)
class ServedResult:
    """What came of a job: the answer, and the picture that explains it or why there is none."""

    answer: Prediction
    picture: Image.Image | None = None
    no_picture: str = ""


class Service:
    """A classifier behind its queue, with the endpoints as methods.

    Args:
        classifier: Ready to answer.
        name: What the page calls the model.
        limits: What is taken on.
        least: Probability below which an answer is in doubt.
        promise: What that came to in validation, in words.
    """

    def __init__(
        self,
        classifier: Classifier,
        name: str,
        limits: Limits,
        least: float = 0.0,
        promise: str = "",
    ) -> None:
        self.classifier, self.name, self.limits = classifier, name, limits
        self.least, self.promise = least, promise
        self.classes = [printable(label) for label in classifier.info.classes]
        self.meters = Meters(lambda: self.held)
        self.held = 0  # photos at work or waiting; touched by the event loop's thread only
        self.readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "reader")
        side = classifier.info.preprocessing.size
        classifier.answer([torch.zeros(3, side, side)])  # the first pass is slow: not for the first visitor
        self.batcher = Batcher(self.compute, limits.batch)

    def compute(self, jobs: Sequence[Job]) -> list[ServedResult]:
        """Answers a batch; in the network's thread."""
        started = time.perf_counter()
        answers = self.classifier.answer([job.pixels for job in jobs], len(self.classes), self.least)
        outcomes = [ServedResult(answer) for answer in answers]
        if wanted := [i for i, job in enumerate(jobs) if job.explain]:
            try:
                pictures = self.classifier.explain_inputs([jobs[i].pixels for i in wanted])
                for i, picture in zip(wanted, pictures, strict=True):
                    outcomes[i] = ServedResult(answers[i], picture)
            except UsageError as error:  # a network without a map of places
                for i in wanted:
                    outcomes[i] = ServedResult(answers[i], no_picture=str(error))
        self.meters.sizes.observe(len(jobs))
        self.meters.network.observe(time.perf_counter() - started)
        return outcomes

    @contextlib.contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """Keeps places of the queue for a request: one at first, more by calling what it gives.

        Raises:
            HTTPException: 503, all are taken.
        """
        mine = 0

        def take(photos: int) -> None:
            nonlocal mine
            if self.held + photos > self.limits.waiting:  # guard: H06 queue
                raise HTTPException(503, "too many photos are waiting; ask again", {"Retry-After": "1"})
            mine += photos
            self.held += photos

        take(1)
        try:
            yield take
        finally:
            self.held -= mine

    async def predict(self, request: Request) -> Response:
        """Answers to the photos of a request, in order; one that cannot be read has its reason there."""
        started = time.perf_counter()
        top, explain = _whole(request, "top", TOP), bool(_whole(request, "gradcam", 0, least=0))
        with self.place() as take:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    photos = await self.receive(request)
            except TimeoutError:
                raise HTTPException(408, f"the photos took more than {BODY_SECONDS:g} s to arrive") from None
            except ClientDisconnect:
                return Response(status_code=400)  # to nobody
            take(len(photos) - 1)
            work = [self.info(name, content, top, explain) for name, content in photos]
            records = await asyncio.gather(*work)
        self.meters.seconds.observe(time.perf_counter() - started)
        return _json({"model": self.name, "photos": records})

    async def receive(self, request: Request) -> list[tuple[str, bytes | None]]:
        """Names and bytes of the photos that a request holds; None for one that is too large.

        Either a form with any number of files, as browsers and `curl -F` send it, or the bytes of one photo.
        """
        request = Request(request.scope, limited(request.scope, request.receive, 8 * self.limits.photo_bytes))
        most = self.limits.photo_bytes
        photos: list[tuple[str, bytes | None]] = []
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            files = min(MOST_PHOTOS, self.limits.waiting)
            async with request.form(max_files=files, max_fields=files) as form:
                for _, file in form.multi_items():
                    if isinstance(file, UploadFile):
                        small = file.size is not None and file.size <= most  # guard: H06 photo
                        # guard: H06 escape
                        photos.append((printable(file.filename), await file.read() if small else None))
        elif content := await request.body():
            photos.append(("the photo", content if len(content) <= most else None))
        if not photos:
            raise HTTPException(400, "the request holds no photo; see curl -F photo=@FILE")
        return photos

    async def info(self, name: str, content: bytes | None, top: int, explain: bool) -> dict[str, Any]:
        """What the answer says of one photo."""
        loop = asyncio.get_running_loop()
        try:
            if content is None:
                raise DataError(
                    f"{name} holds more than {self.limits.photo_bytes >> 20} MB", "make it smaller"
                )
            pixels = await loop.run_in_executor(self.readers, self.read, name, content)
            outcome = await asyncio.wrap_future(self.batcher.submit(Job(pixels, explain)))
        except FlowersError as error:  # guard: H07 photo
            self.meters.photos.labels("error").inc()
            return {"file": name, "error": str(error)}
        answer = outcome.answer
        self.meters.photos.labels("unsure" if answer.doubt else "answered").inc()
        shown = dataclasses.replace(
            answer,
            file=name,
            classes=tuple(printable(label) for label in answer.classes[:top]),
            probabilities=answer.probabilities[:top],
        )
        found = shown.to_dict()
        if outcome.picture:
            found["gradcam"] = await loop.run_in_executor(self.readers, _data_uri, outcome.picture)
        elif outcome.no_picture:
            found["no_gradcam"] = outcome.no_picture
        return found

    def read(self, name: str, content: bytes) -> Tensor:
        """A photo's bytes as the network wants them; in a reader's thread."""
        file = io.BytesIO(content)
        file.name = name
        # guard: H06 pixels
        return self.classifier.prepare(load_image(file, self.limits.pixels, self.classifier.enough_side))

    async def model(self, request: Request) -> Response:
        """What the page says of the model, and the limits that it keeps to."""
        info = self.classifier.info
        return _json(
            {
                "name": self.name,
                "arch": printable(info.arch),
                "classes": self.classes,
                "unsure": self.promise,
                "photo_bytes": self.limits.photo_bytes,
                "flowers_torch": __version__,
            }
        )

    async def health(self, request: Request) -> Response:
        """200 while photos would be answered."""
        return _json({"status": "ok"}) if self.batcher.alive else _json({"status": "dead"}, 503)

    async def metrics(self, request: Request) -> Response:
        """Counts and times in Prometheus's text form."""
        return Response(self.meters.text(), media_type=CONTENT_TYPE)

    def close(self) -> None:
        """Ends the threads, once what waits is computed."""
        self.batcher.close()
        self.readers.shutdown()


def make_app(service: Service, names: Collection[str] = ()) -> Starlette:
    """The ASGI application of a service.

    Args:
        service: Closed when the application ends.
        names: Host names that the server may be called by; see `Guard`.
    """
    endpoints = [
        Route("/api/predict", service.predict, methods=["POST"]),
        Route("/api/model", service.model),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics),
    ]
    folder = importlib.resources.files("flowers_torch.deploy") / "serve_page"
    routes = [
        *(_asset(path, (folder / name).read_bytes(), kind) for path, (name, kind) in PAGE.items()),
        *endpoints,
    ]
    known = {route.path for route in routes}

    def seen(path: str, status: int) -> None:
        service.meters.requests.labels(path if path in known else "other", str(status)).inc()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, names=names, seen=seen)],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
        lifespan=lifespan,
    )


def _asset(path: str, content: bytes, kind: str) -> Route:
    async def give(request: Request) -> Response:
        return Response(content, media_type=kind)

    return Route(path, give)  # guard: H08


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    """ASCII throughout: names of classes and files may hold what is no UTF-8."""
    return Response(to_json(value), status, headers, "application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    status, headers = getattr(error, "status_code", 500), getattr(error, "headers", None)
    return _json({"error": getattr(error, "detail", "")}, status, headers)


async def _fail(request: Request, error: Exception) -> Response:
    return _json({"error": "the server failed; its terminal says why"}, 500)


def _whole(request: Request, name: str, default: int, least: int = 1) -> int:
    """A whole number of the query.

    Raises:
        HTTPException: 400, it is none.
    """
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < least:
        raise HTTPException(400, f"{name} must be a number from {least} on")
    return int(text)


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
