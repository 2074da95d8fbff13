"""The verbs of the `flowers-torch` command, one file each: `add_arguments(parser)` and `run(args)`."""
