"""Where the .proto files of the contract are, for a peer that annotates its own: `python -m identity_client.protos`.

protoc -I protos -I "$(python -m identity_client.protos)" ... finds identity/v1/access.proto there.
"""

from __future__ import annotations

from pathlib import Path

import identity.v1

_MARK = Path("identity", "v1", "access.proto")


def include_path() -> Path:
    """The folder to pass to protoc as -I. Raises FileNotFoundError.

    An installed package has the files beside the stubs; a checkout has them under protos/.
    """
    root = Path(identity.v1.__path__[0]).parents[1]
    for folder in (root, root / "protos"):
        if (folder / _MARK).is_file():
            return folder
    raise FileNotFoundError(f"no {_MARK} under {root}")


if __name__ == "__main__":
    print(include_path())
