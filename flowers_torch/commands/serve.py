"""`flowers-torch serve RUN|WEIGHTS`: a page in the browser to try a model, and an endpoint for programs."""

import argparse
import ipaddress
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_torch.commands.predict import share
from flowers_torch.errors import ResourceError, UsageError, printable

if TYPE_CHECKING:
    import uvicorn

EXAMPLES = """examples:
  flowers-torch serve runs/photos-inception_v3-1                  then open the address that it prints
  flowers-torch serve runs/photos-inception_v3-1 --max-error 2%
  curl -F photo=@rose.jpg -F photo=@tulip.jpg http://127.0.0.1:8000/api/predict
"""
STOP_SECONDS = 30  # that running requests get to finish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of serving."""
    parser.description = "Try a trained model in the browser, or ask it over HTTP, on this machine."
    parser.epilog = EXAMPLES
    parser.add_argument("model", help="run folder or model.safetensors")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 takes a free one (8000)")
    # guard: H06 host
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument(
        "--name", action="append", default=[], help="a host name that it may be called by, as a proxy's"
    )
    parser.add_argument("--max-error", metavar="P", help="rather say unsure than err more often, as 2%%")
    parser.add_argument("--max-upload", type=int, default=10, metavar="MB", help="size of a photo (10)")
    parser.add_argument("--queue", type=int, default=128, metavar="N", help="photos that may wait (128)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="photos computed at once")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1 | mps")
    parser.add_argument("--precision", default="fp32", help="fp32 | bf16 | fp16 | auto")


def run(args: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM; what is at work then is finished, and the exit code is 0."""
    for flag in ("max_upload", "queue", "batch_size"):
        if getattr(args, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} must be 1 or more", "give a positive number")
    max_error = share(args.max_error) if args.max_error is not None else None
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"serving needs {error.name}, which is not installed", 'pip install "flowers-torch[serve]"'
        ) from error
    listener = listen(args.host, args.port)  # before the network is loaded: a port in use is said at once

    from flowers_torch.deploy.classifier import Classifier
    from flowers_torch.deploy.guard import host_names
    from flowers_torch.deploy.serve import Limits, Service, make_app
    from flowers_torch.training.device import choose_runtime

    with listener:
        path = Path(args.model).expanduser()
        classifier = Classifier.load(path, choose_runtime(args.device, args.precision))
        threshold = classifier.threshold(max_error) if max_error is not None else None
        service = Service(
            classifier,
            printable(path.name if path.is_dir() else path.stem),
            Limits(args.max_upload << 20, batch=args.batch_size, waiting=args.queue),
            threshold.probability if threshold else 0.0,
            threshold.describe() if threshold else "",
        )
        host, port = listener.getsockname()[:2]
        info = classifier.info
        device = classifier.runtime.device
        print(f"model    {printable(info.arch)}, {len(info.classes)} classes, on {device}")
        if threshold:
            print(f"unsure   {threshold.describe()}")
        if not ipaddress.ip_address(host).is_loopback:
            print(
                f"flowers-torch: warning: --host {printable(args.host)} lets every machine of the network "
                "use this server, unencrypted and without a password",
                file=sys.stderr,
            )
        address = f"[{host}]" if ":" in host else host
        print(f"serving  http://{address}:{port}/ (Ctrl-C stops)", flush=True)
        serve(make_server(make_app(service, {*host_names(args.host), *args.name})), listener)
    print("stopped  all requests are answered")
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: no such address.
        ResourceError: the port is in use, or not for this user.
    """
    if not 0 <= port < 65536:
        raise UsageError(f"--port {port} is no port", "give one from 1 to 65535, or 0")
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {printable(host)} is no address", "leave it out") from error
    try:
        return socket.create_server(place[:2], family=family, backlog=512)
    except OSError as error:
        raise ResourceError(
            f"cannot listen at {printable(host)} port {port}: {error.strerror}", "give another --port, or 0"
        ) from error


def make_server(app: Any) -> "uvicorn.Server":
    """uvicorn, quiet, and patient with what is running when it is told to stop."""
    import uvicorn

    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return uvicorn.Server(config)


def serve(server: "uvicorn.Server", listener: socket.socket) -> None:
    """Runs a server until a signal comes."""

    def stop(number: int, frame: object) -> None:
        server.should_exit = True  # also where it comes before uvicorn listens to signals itself

    former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
