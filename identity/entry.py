"""What the command `identity` starts: the command line, or a word on what is missing for it."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; -> the exit status."""
    try:
        from .cli import main as run
    except ModuleNotFoundError as error:
        print(f"identity needs {error.name}: install grpc-identity[server]; peers need no command", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return run()
