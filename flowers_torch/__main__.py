"""`python -m flowers_torch` is the `flowers-torch` program."""

from flowers_torch.cli import program

if __name__ == "__main__":
    program()
