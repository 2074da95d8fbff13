"""Upload of a packed folder to a model hub, by the client of Hugging Face that timm brings."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from flowers_torch import __version__
from flowers_torch.errors import FlowersError, ResourceError, UsageError, one_line, printable

LOGIN = "log in with hf auth login, or set HF_TOKEN"
REASONS = {
    401: ("the hub does not accept the token", LOGIN),
    403: ("the token may not write there", "use a token with write access to it"),
    404: ("the hub does not know the owner or the repository, or hides it from this token", "correct OWNER/NAME"),
    409: ("the repository is being changed", "try again"),
    429: ("the hub is asked too often", "wait, then try again"),
}


def check_push(repo: str) -> None:
    """Checks, before there is any work, whether a name is OWNER/NAME, and whether there is a token.

    Raises:
        UsageError: the name is not valid.
        ResourceError: there is no token.
    """
    fix = "write --push OWNER/NAME"
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(
            f"--push {printable(repo, 60)} is not the name of a repository: {one_line(error)}", fix
        ) from error
    if "/" not in repo:
        raise UsageError(f"--push {printable(repo, 60)} names no owner", fix)
    if not huggingface_hub.get_token():
        raise ResourceError("there is no token for the hub", LOGIN)


def push(folder: Path, repo: str, public: bool = False) -> str:
    """Uploads a packed folder in one commit, and returns the address of the repository.

    A repository that does not exist is made, a private one unless `public`. One that exists stays as visible as it is.

    Raises:
        ResourceError: the hub cannot be reached, or refuses.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or None
    hub = huggingface_hub.HfApi(endpoint=endpoint, library_name="flowers-torch", library_version=__version__)
    with _hub_errors(f"cannot upload to {printable(repo, 100)} at {printable(hub.endpoint, 100)}"):
        made = hub.create_repo(repo, private=not public, exist_ok=True)
        name = made.repo_id
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message=f"flowers_torch {__version__}")
    return f"{hub.endpoint}/{name}"


@contextlib.contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Whatever the client raises, as one line."""
    try:
        yield
    except FlowersError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason, fix = REASONS.get(
            status, (f"it answers {status}: {one_line(error.server_message or error)}", "try again later")
        )
        raise ResourceError(f"{what}: {reason}", fix) from error
    except Exception as error:  # of its HTTP library, which differs between versions
        reason = one_line(error) or type(error).__name__
        raise ResourceError(f"{what}: {reason}", "check the network, and HF_ENDPOINT if it is set") from error
