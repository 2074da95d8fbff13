"""Serve a trained model on this machine: a web page to try it, and an HTTP endpoint for programs."""

import argparse
import importlib
import ipaddress
import signal
import socket
from typing import TYPE_CHECKING, Any

from flowers_torch.commands import add_coverage, add_device, add_max_error, add_run, check_positive, fraction, warn
from flowers_torch.errors import ResourceError, UsageError, plural, printable
from flowers_torch.files.system import raise_file_limit

if TYPE_CHECKING:
    import uvicorn

EXAMPLES = """examples:
  flowers-torch serve runs/photos-inception_v3-1                  then open the address that it prints
  flowers-torch serve runs/photos-inception_v3-1 --max-error 2%
  curl -F photo=@rose.jpg -F photo=@tulip.jpg http://127.0.0.1:8000/api/predict
"""
STOP_SECONDS = 30  # for running requests to finish
BACKLOG = 64  # connections that are opened before the limit of connections is looked at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one [8000]")
    # guard: H06 host
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at [127.0.0.1]")
    text = "additional host name of this server, such as that of a proxy"
    parser.add_argument("--name", action="append", default=[], help=text)
    add_max_error(parser)
    add_coverage(parser)
    parser.add_argument("--max-upload", type=int, default=10, metavar="MB", help="largest photo [10]")
    parser.add_argument("--queue", type=int, default=128, metavar="N", help="photos that may wait [128]")
    parser.add_argument("--max-pixels", type=int, default=30, metavar="M", help="most million pixels of a photo [30]")
    parser.add_argument("--connections", type=int, default=256, metavar="N", help="clients at the same time [256]")
    add_device(parser, precision=True)


def run(args: argparse.Namespace) -> None:
    """Serves until SIGINT or SIGTERM. Running requests are finished, and the exit code is 0."""
    check_positive(args, "max-upload", "queue", "batch-size", "max-pixels", "connections")
    max_error = fraction(args.max_error) if args.max_error is not None else None
    coverage = fraction(args.coverage, "--coverage", "95%") if args.coverage is not None else None
    try:
        for name in ("prometheus_client", "python_multipart", "starlette", "uvicorn"):
            importlib.import_module(name)
    except ImportError as error:
        what = f"serve needs {error.name}, which is not installed"
        raise UsageError(what, 'pip install "flowers-torch[serve]"') from error
    listener = listen(args.host, args.port)  # before the network is loaded, so that a port in use fails early

    from flowers_torch.deploy.guard import host_names
    from flowers_torch.deploy.predictor import Predictor
    from flowers_torch.deploy.serve import Limits, Service, make_app
    from flowers_torch.runs.folder import find_run
    from flowers_torch.training.device import choose_runtime

    with listener:
        path = find_run(args.run)
        predictor = Predictor.load(path, choose_runtime(args.device, args.precision))
        limits = Limits(args.max_upload << 20, args.max_pixels * 1_000_000, batch=args.batch_size, waiting=args.queue)
        name = printable(path.name if path.is_dir() else path.stem)
        service = Service(predictor, name, limits, max_error, coverage)
        host, port = listener.getsockname()[:2]
        info, device = predictor.info, predictor.runtime.device
        print(f"model    {printable(info.arch)}, {plural(info.classes, 'class')}, on {device}")
        if service.threshold:
            print(f"unsure   {service.threshold.describe()}")
        if coverage is not None:
            print(f"sets     of classes, which contain the true one for {coverage:.4g} of new photos on average")
        if not ipaddress.ip_address(host).is_loopback:
            network = "opens this server to the network, unencrypted and without a password"
            warn(f"warning: --host {printable(args.host)} {network}")
        address = f"[{host}]" if ":" in host else host
        print(f"serving  http://{address}:{port}/ (Ctrl-C stops)", flush=True)
        app = make_app(service, {*host_names(args.host), *args.name})
        serve(make_server(app, args.connections), listener)
    print("stopped  all requests are answered")


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket. UsageError: not a valid address. ResourceError: the port is in use or not allowed."""
    if not 0 <= port < 65536:
        raise UsageError(f"--port {port} is not a valid port: expected 0 .. 65535", "give another --port, or 0")
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {printable(host)} is not a valid address", "leave it out") from error
    try:
        return socket.create_server(place[:2], family=family, backlog=512)
    except OSError as error:
        what = f"cannot listen at {printable(host)} port {port}: {error.strerror}"
        raise ResourceError(what, "give another --port, or 0") from error


def make_server(app: Any, connections: int = 256) -> "uvicorn.Server":
    """A quiet uvicorn server that finishes the running requests when it stops."""
    import uvicorn

    from flowers_torch.deploy.guard import Connection, Sparing

    connections = min(connections, raise_file_limit(2 * connections + 4 * BACKLOG) // 2)  # guard: H06 files
    handler = {"class": "logging.StreamHandler", "filters": ["sparing"]}
    logger = {"handlers": ["default"], "level": "ERROR", "propagate": False}
    log: Any = {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"sparing": {"()": Sparing}},
        "handlers": {"default": handler},
        "loggers": {"uvicorn": logger, "asyncio": logger, "python_multipart": logger},
    }
    quiet: Any = {"log_config": log, "access_log": False, "server_header": False, "proxy_headers": False}
    limits: Any = {"http": Connection, "ws": "none", "backlog": BACKLOG, "limit_concurrency": connections}
    return uvicorn.Server(uvicorn.Config(app, lifespan="on", timeout_graceful_shutdown=STOP_SECONDS, **limits, **quiet))


def serve(server: "uvicorn.Server", listener: socket.socket) -> None:
    """Runs a server until SIGINT or SIGTERM."""

    def stop(number: int, frame: object) -> None:
        server.should_exit = True  # also before uvicorn installs its own handlers

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
