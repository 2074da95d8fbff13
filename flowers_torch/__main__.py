"""`python -m flowers_torch` is the `flowers-torch` program."""

from flowers_torch.cli import run

if __name__ == "__main__":
    run()
