"""`tidegate keys`: who may use the service, and how much of it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.access.api_keys import ApiKey, KeyLimits
from orchestrator.access.key_file import KeyFile
from orchestrator.domain import Band
from orchestrator.errors import OrchestratorError

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir", envvar="ORCHESTRATOR_DATA_DIR", help="The orchestrator's data folder."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1)]
DEFAULT_DATA_DIR = Path(".data")

keys = typer.Typer(
    help="API keys: with the first one, every request needs one.", no_args_is_help=True
)


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for; for people.")],
    owner: Annotated[
        str | None,
        typer.Option(
            help="Whose documents it opens; default: its name. Several keys may have one owner; "
            "`local` owns what was added before there were keys."
        ),
    ] = None,
    *,
    admin: Annotated[
        bool, typer.Option("--admin", help="It may see /metrics and the whole of /status.")
    ] = False,
    band: Annotated[
        str, typer.Option(help="Best priority it may ask for: interactive, normal or batch.")
    ] = "interactive",
    requests_per_min: Limit = None,
    tokens_per_min: Limit = None,
    max_documents: Limit = None,
    max_bytes: Limit = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a key, and show it this once; a running orchestrator knows it within a second."""
    if band.upper() not in Band.__members__:
        _complain(f"--band is interactive, normal or batch, not {band}.")
    limits = KeyLimits(requests_per_min, tokens_per_min, max_documents, max_bytes)
    try:
        key, text = KeyFile(data_dir).create(
            name, owner=owner or name, admin=admin, band=Band[band.upper()], limits=limits
        )
    except OrchestratorError as exc:
        _complain(exc.message)
    err = Console(stderr=True, soft_wrap=True)
    err.print(
        f"key {key.id} for the documents of {escape(key.owner)}; kept only as a hash, so note it "
        "now:",
        highlight=False,
    )
    typer.echo(text)


@keys.command("list")
def list_keys(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """List the keys, without what they open with."""
    table = Table("id", "name", "owner", "made", "may", "state")
    for key in _all(data_dir):
        state = "good" if key.revoked_at is None else f"revoked {_day(key.revoked_at)}"
        cells = (key.id, key.name, key.owner, _day(key.created_at), _may(key), state)
        table.add_row(*(escape(cell) for cell in cells))
    Console().print(table)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="Its id, as `list` shows it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """End a key; its owner's documents stay."""
    try:
        ended = KeyFile(data_dir).revoke(key_id)
    except OrchestratorError as exc:
        _complain(exc.message)
    if not ended:
        _complain(f"No good key has the id {key_id}: tidegate keys list shows them.")
    Console().print(f"{escape(key_id)} is good for nothing any more")


def _all(data_dir: Path) -> list[ApiKey]:
    try:
        return KeyFile(data_dir).all()
    except OrchestratorError as exc:
        _complain(exc.message)


def _may(key: ApiKey) -> str:
    limits = key.limits
    told = {
        "requests/min": limits.requests_per_min,
        "tokens/min": limits.tokens_per_min,
        "documents": limits.documents,
        "bytes": limits.size_bytes,
    }
    words = [f"{value:,} {what}" for what, value in told.items() if value is not None]
    if key.band is not Band.INTERACTIVE:
        words.append(f"{key.band.name.lower()} at best")
    return ", ".join([*(["admin"] if key.admin else []), *words]) or "anything of its owner's"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _complain(message: str) -> NoReturn:
    Console(stderr=True, soft_wrap=True).print(f"[red]{escape(message)}[/red]")
    raise typer.Exit(1)
