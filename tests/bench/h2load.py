"""h2load, the load generator of nghttp2 (Debian: nghttp2-client): a call takes a tenth of a Python client's CPU.

It sends one request again and again, and looks at the HTTP status alone. A refused gRPC call has 200, too, but no body:
so the bytes of the replies are counted, and every reply must be as long as the one that was looked at before.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CONNECTIONS = 8
_FRAME_HEADER_BYTES = 5
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_TIME = re.compile(r"finished in ([\d.]+)(us|ms|s),")
_GOOD = re.compile(r"(\d+) succeeded")
_DATA = re.compile(r"\((\d+)\) data")


@dataclass(frozen=True)
class Post:
    """One request to the server in process *process_id*; each good reply has so many bytes of content."""

    url: str
    process_id: int
    content: bytes = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    reply_bytes: int
    is_http1: bool = False

    @classmethod
    def of_grpc(
        cls,
        address: str,
        process_id: int,
        method: str,
        request: bytes,
        metadata: Iterable[tuple[str, str]],
        reply_bytes: int,
    ) -> Post:
        """A unary call: the message stands in a frame, after a flag and its length."""
        headers = (("content-type", "application/grpc"), ("te", "trailers"), *metadata)
        framed = b"\0" + len(request).to_bytes(4, "big") + request
        return cls(f"http://{address}{method}", process_id, framed, headers, reply_bytes + _FRAME_HEADER_BYTES)


@dataclass(frozen=True)
class Sent:
    """How long all requests took together, and each by itself."""

    seconds: float
    latencies: Sequence[float]


def is_here() -> bool:
    return shutil.which("h2load") is not None


def send(post: Post, count: int, in_flight: int) -> Sent:
    """Send it *count* times. Raises RuntimeError: a reply was no good one."""
    with tempfile.TemporaryDirectory() as folder:
        content, log = Path(folder) / "content", Path(folder) / "log"
        content.write_bytes(post.content)
        command = ["h2load", "-n", str(count), "-t", "1", "-d", str(content), f"--log-file={log}"]
        command += ["--h1", "-c", str(in_flight)] if post.is_http1 else _streams(in_flight)
        for name, value in post.headers:
            command += ["-H", f"{name}: {value}"]
        told = subprocess.run([*command, post.url], capture_output=True, text=True, check=True).stdout
        latencies = [int(line.rsplit("\t", 1)[1]) / 1e6 for line in log.read_text().splitlines()]
    _check(post, told, count)
    return Sent(_seconds(told), latencies)


def _streams(in_flight: int) -> list[str]:
    return ["-c", str(_CONNECTIONS), "-m", str(in_flight // _CONNECTIONS)]


def _check(post: Post, told: str, count: int) -> None:
    good, data = (int(match.group(1)) if (match := found.search(told)) else 0 for found in (_GOOD, _DATA))
    if good != count or data != count * post.reply_bytes:
        raise RuntimeError(
            f"{post.url}: {good:,} of {count:,} replies were good, with {data:,} bytes in place of "
            f"{count * post.reply_bytes:,}"
        )


def _seconds(told: str) -> float:
    match = _TIME.search(told)
    if match is None:
        raise RuntimeError("h2load does not say how long it took")
    return float(match.group(1)) * _UNITS[match.group(2)]


def cpu_seconds() -> float:
    """What the runs of h2load so far have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
