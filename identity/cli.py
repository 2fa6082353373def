"""The command line: identity dev | serve | migrate | admin create | password | token | doctor | fence | master-key."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import logging
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NoReturn

from identity_client.clock import SystemClock
from identity_client.errors import IdentityError

from . import dev, doctor, failpoints, logs, master_key_command
from .config import ConfigurationError, Settings, load, read
from .house import LOCAL_ACT, open_house
from .password_command import ask_passwords, change_password, split_passwords
from .server import Server, serve_until
from .storage.database import migrate_database
from .storage.schema import REVISION
from .token_command import fetch_token

_log = logging.getLogger(__name__)

_ONE_TIME_BYTES = 18


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; -> the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if hasattr(options, "password_from"):
            # Before the event loop takes over SIGINT: Ctrl-C at the prompt must end the command.
            options.password = options.password_from(options)
        return asyncio.run(options.run(options)) or 0
    except ConfigurationError as error:
        print("identity cannot do this:", *(f"  - {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return 1
    except IdentityError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _dev(options: argparse.Namespace) -> None:
    logs.configure("info")
    files = dev.DevFiles(options.directory)
    server = Server(dev.prepare(files, options.listen))

    async def announce(address: str) -> None:
        if server.house is not None:
            await dev.seed(files, server.house, address)
        print(dev.welcome(files, address), flush=True)

    await _serve_until_signal(server, announce, drain_seconds=2)


async def _serve(options: argparse.Namespace) -> None:
    if os.environ.get(failpoints.VARIABLE):
        raise ConfigurationError([f"{failpoints.VARIABLE} is set: failpoints are for tests, not for production"])
    settings = load(options.config, os.environ)
    if settings.workers > 1:
        _become_supervisor(options.config)
    logs.configure(settings.log_level)
    for warning in settings.warnings():
        _log.warning(warning)

    async def announce(address: str) -> None:
        _log.info("identity is ready on %s", address)

    await _serve_until_signal(Server(settings), announce, settings.drain_seconds)


def _become_supervisor(config: Path | None) -> NoReturn:
    """Go on as the process that keeps the workers: it must have loaded nothing of grpc."""
    command = [sys.executable, "-m", "identity.supervisor", *([str(config)] if config else [])]
    os.execv(sys.executable, command)  # noqa: S606


async def _serve_until_signal(server: Server, announce: Callable[[str], Awaitable[None]], drain_seconds: float) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        await announce(await server.start())
    except RuntimeError:  # grpc tells it in its own log alone
        await server.stop()
        raise ConfigurationError(
            [f"listen: {server.listen} cannot be bound: is another server running there?"]
        ) from None
    except BaseException:
        await server.stop()
        raise
    await serve_until(server, stop, drain_seconds)


async def _create_admin(options: argparse.Namespace) -> None:
    settings = load(options.config, os.environ)
    password = options.password or secrets.token_urlsafe(_ONE_TIME_BYTES)
    await create_admin(settings, options.username, password)
    print(f"created {options.username}, who has the role admin")
    print(f"the password is good for one thing, replacing it: identity password --username {options.username}")
    if not options.password:
        print(f"one-time password: {password}")


async def create_admin(settings: Settings, username: str, password: str) -> None:
    """Create an account with the role admin, over the database itself; the password is good for ChangePassword alone.

    Raises IdentityError, ConfigurationError.
    """
    house = await open_house(settings, SystemClock())
    try:
        await house.accounts.create_user(username, password, ("admin",), LOCAL_ACT, password_change_required=True)
    finally:
        await house.close()


async def _fence(options: argparse.Namespace) -> None:
    settings = load(options.config, os.environ)
    if not options.yes and not _is_confirmed(settings.issuer):
        raise ConfigurationError(["nothing was done: confirm with --yes, or type the issuer when asked"])
    house = await open_house(settings, SystemClock())
    try:
        fenced = await house.fencer.fence(LOCAL_ACT, with_credentials=options.credentials)
    finally:
        await house.close()
    print(f"{fenced.grant_count} grants have ended, {fenced.key_count} signing keys are revoked")
    print(f"nothing that was issued before is accepted; tokens are signed with {fenced.active_key_id} from now on")
    if not options.credentials:
        print(
            "credentials stay. Where a copy of the database was restored, those that were revoked since it was made "
            "are live again: revoke them anew, or run this with --credentials"
        )


def _is_confirmed(issuer: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"This logs everybody out of {issuer} and revokes every token.")
    return input("Type the issuer to go on: ").strip() == issuer


async def _master_key(options: argparse.Namespace) -> None:
    print(await options.step(load(options.config, os.environ), LOCAL_ACT))


async def _migrate(options: argparse.Namespace) -> None:
    await migrate_database(load(options.config, os.environ).database)
    print(f"the schema is of revision {REVISION}")


async def _doctor(options: argparse.Namespace) -> int:
    if options.dev is not None:
        settings = dev.settings_of(dev.DevFiles(options.dev))
        problems = settings.problems()
    else:
        settings, problems = read(options.config, os.environ)
    findings = await doctor.examine(doctor.Patient(settings, problems, SystemClock()))
    print(doctor.as_json(findings) if options.json else doctor.as_text(findings))
    return doctor.worst(findings)


async def _token(options: argparse.Namespace) -> None:
    if options.dev is not None:
        known = dev.DevFiles(options.dev).read_secrets()
        address, username, password = known["address"], known["admin"]["username"], known["admin"]["password"]
    else:
        address, username = options.address, options.username
        if not address or not username:
            raise ConfigurationError(["give --address (or IDENTITY_ADDRESS) and --username, or --dev"])
        password = options.password
    token = await fetch_token(address, _ca_file(), username, password, options.audience)
    print(f"authorization: Bearer {token}" if options.header else token)


async def _password(options: argparse.Namespace) -> None:
    if not options.address:
        raise ConfigurationError(["give --address (or IDENTITY_ADDRESS)"])
    await change_password(options.address, _ca_file(), options.username, *options.password)
    print(f"the password of {options.username} is replaced; sessions that were open have ended")


def _ca_file() -> Path | None:
    return Path(os.environ["IDENTITY_CA_FILE"]) if os.environ.get("IDENTITY_CA_FILE") else None


def _passwords_for(options: argparse.Namespace) -> tuple[str, str]:
    """The current password and the new one."""
    if options.password_file is None and sys.stdin.isatty():
        return ask_passwords(options.username)
    return split_passwords(read_secret(options.password_file, ""))


def _password_for(options: argparse.Namespace) -> str:
    if getattr(options, "dev", None) is not None or not options.username:
        return ""
    return read_secret(options.password_file, f"Password of {options.username}: ")


def _one_time_password_for(options: argparse.Namespace) -> str:
    """What the operator chose; empty where nothing is given and a password is to be generated."""
    if options.password_file is None and sys.stdin.isatty():
        return ""
    return read_secret(options.password_file, "")


def read_secret(path: Path | None, prompt: str) -> str:
    """A secret from a file, from standard input, or typed unseen; never from an argument. Raises ConfigurationError."""
    if path is None and sys.stdin.isatty():
        return getpass.getpass(prompt)
    try:
        text = sys.stdin.read() if path is None or str(path) == "-" else path.read_text("utf-8")
    except OSError as error:
        raise ConfigurationError([f"--password-file: {path} cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigurationError(["--password-file: a password is UTF-8 text"]) from None
    return text.removesuffix("\n").removesuffix("\r")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("identity", description="A gRPC identity service.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("dev", help="run everything in one folder, for development")
    command.add_argument("--directory", type=Path, default=dev.DEFAULT_DIRECTORY)
    command.add_argument("--listen", default=dev.DEFAULT_LISTEN, metavar="HOST:PORT")
    command.set_defaults(run=_dev)

    command = commands.add_parser("serve", help="run in production")
    command.add_argument("--config", type=Path, help="a TOML file; IDENTITY_* variables win over it")
    command.set_defaults(run=_serve)

    command = commands.add_parser(
        "migrate",
        help="bring the database's schema up to date",
        description="Before the servers of a new release are started; those of the release before go on meanwhile.",
    )
    command.add_argument("--config", type=Path, help="the file that `identity serve` is started with")
    command.set_defaults(run=_migrate)

    admin = commands.add_parser("admin", help="work on the database itself").add_subparsers(
        required=True, metavar="COMMAND"
    )
    command = admin.add_parser("create", help="create an account with the role admin")
    command.add_argument("username")
    command.add_argument("--config", type=Path)
    command.add_argument(
        "--password-file", type=Path, help="default: standard input; where nothing is given, one is made and printed"
    )
    command.set_defaults(run=_create_admin, password_from=_one_time_password_for)

    command = commands.add_parser(
        "doctor",
        help="look at everything the service stands on, and say what to do",
        description="Changes nothing; while the service runs or when it is stopped. "
        "Exit status: 0 all is well, 1 warnings, 2 errors.",
    )
    command.add_argument("--config", type=Path, help="the file that `identity serve` is started with")
    command.add_argument("--dev", type=Path, nargs="?", const=dev.DEFAULT_DIRECTORY, metavar="DIRECTORY")
    command.add_argument("--json", action="store_true", help="print the findings as JSON")
    command.set_defaults(run=_doctor)

    command = commands.add_parser(
        "fence",
        help="after a restore or a breach: have nothing accepted that was issued before",
        description="Ends all sessions, revokes all signing keys, and begins a new epoch of the feed, in one "
        "transaction; while the service runs or when it is stopped.",
    )
    command.add_argument("--config", type=Path)
    command.add_argument("--credentials", action="store_true", help="end API keys, secrets and certificates, too")
    command.add_argument("--yes", action="store_true", help="do not ask: for scripts")
    command.set_defaults(run=_fence)

    steps = commands.add_parser(
        "master-key",
        help="rotate the master key, in three steps",
        description="add, reseal, forget, in this order; while the service runs or when it is stopped. Each step can "
        "be repeated. Bring the file to every replica after the first and after the last.",
    ).add_subparsers(required=True, metavar="STEP")
    for name, step, what in (
        ("add", master_key_command.add, "put a new key into the file"),
        ("reseal", master_key_command.reseal, "seal everything in the database under the newest key"),
        ("forget", master_key_command.forget, "remove the keys from the file under which nothing is sealed"),
    ):
        command = steps.add_parser(name, help=what)
        command.add_argument("--config", type=Path, help="the file that `identity serve` is started with")
        command.set_defaults(run=_master_key, step=step)

    command = commands.add_parser("password", help="replace your own password; the first step of a new user")
    command.add_argument("--address", default=os.environ.get("IDENTITY_ADDRESS"), metavar="HOST:PORT")
    command.add_argument("--username", required=True)
    command.add_argument(
        "--password-file",
        type=Path,
        help="two lines, the current password and the new one; default: standard input, or typed unseen",
    )
    command.set_defaults(run=_password, password_from=_passwords_for)

    command = commands.add_parser("token", help="log in and print an access token")
    command.add_argument("--dev", type=Path, nargs="?", const=dev.DEFAULT_DIRECTORY, metavar="DIRECTORY")
    command.add_argument("--address", default=os.environ.get("IDENTITY_ADDRESS"), metavar="HOST:PORT")
    command.add_argument("--username")
    command.add_argument("--password-file", type=Path, help="default: standard input, or typed unseen")
    command.add_argument("--audience", default="identity", help="whom the token is for; default: this service")
    command.add_argument("--header", action="store_true", help="print it as a header line, as curl tools read it")
    command.set_defaults(run=_token, password_from=_password_for)
    return parser


if __name__ == "__main__":
    sys.exit(main())
