"""The `tidegate` command: what a person types."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from orchestrator import __version__
from orchestrator.api.schemas import AskResponse, DocumentOut, QueuedOut, TokenOut
from orchestrator.client import AnswerEvent, AskOptions, Client, ClientError
from orchestrator.errors import OrchestratorError
from orchestrator.keys_cli import keys

Url = Annotated[
    str, typer.Option("--url", envvar="TIDEGATE_URL", help="Where the orchestrator listens.")
]
Key = Annotated[
    str,
    typer.Option(
        "--key", envvar="TIDEGATE_KEY", help="An API key, if the orchestrator asks for one."
    ),
]
ControlUrl = Annotated[
    str,
    typer.Option(
        "--control-url", envvar="TIDEGATE_CONTROL_URL", help="Where model_server listens."
    ),
]
ControlKey = Annotated[
    str,
    typer.Option(
        "--control-key", envvar="TIDEGATE_CONTROL_KEY", help="Its MODEL_SERVER_CONTROL_KEY."
    ),
]
Collection = Annotated[
    str, typer.Option(help="Which documents; a new name makes a new collection.")
]

DEFAULT_URL = "http://127.0.0.1:8080"
DEFAULT_CONTROL_URL = "http://127.0.0.1:8081"
GIB = 1024**3
WATCH_S = 2.0

cli = typer.Typer(
    help="Ask your own PDFs, with cited pages.", no_args_is_help=True, add_completion=False
)
cli.add_typer(keys, name="keys")


@cli.command()
def add(
    files: Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="PDFs.")],
    url: Url = DEFAULT_URL,
    key: Key = "",
    collection: Collection = "default",
    replace: Annotated[
        str | None, typer.Option(help="Id of the document that goes when this one is ready.")
    ] = None,
) -> None:
    """Add PDFs, and show how far each one is."""
    if replace is not None and len(files) > 1:
        Console().print("[red]--replace takes one file[/red]")
        raise typer.Exit(2)
    failures = 0
    with Client(url, key=key) as client, _bars() as progress:
        for path in files:
            failures += not _add_one(client, path, collection, replace, progress)
    if failures:
        raise typer.Exit(1)


@cli.command()
def ask(
    question: Annotated[str, typer.Argument(help="In your own words.")],
    url: Url = DEFAULT_URL,
    key: Key = "",
    collection: Collection = "default",
    document: Annotated[list[str] | None, typer.Option(help="Search only this id.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
) -> None:
    """Ask a question; the answer streams, then its sources are listed."""
    options: AskOptions = {"collection": collection, "document_ids": document or []}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    out = Console(soft_wrap=True)
    with Client(url, key=key) as client, _told():
        for event in client.stream(question, **options):
            _show_event(event, out)


@cli.command()
def documents(
    url: Url = DEFAULT_URL,
    key: Key = "",
    collection: Annotated[str | None, typer.Option(help="Of this collection only.")] = None,
    state: Annotated[str | None, typer.Option(help="In this state only, such as failed.")] = None,
) -> None:
    """List documents, newest first, and why a failed one failed."""
    table = Table("id", "file", "state", "pages", "note")
    with Client(url, key=key) as client, _told():
        for document in client.documents(collection=collection, status=state):
            note = document.error.message if document.error else document.warning or ""
            cells = (document.id, document.filename, document.status, document.pages, note)
            table.add_row(*(escape(str(cell)) for cell in cells))
    Console().print(table)


@cli.command()
def retry(
    document: Annotated[str, typer.Argument(help="Its id.")],
    url: Url = DEFAULT_URL,
    key: Key = "",
) -> None:
    """Start a failed document over."""
    with Client(url, key=key) as client, _told():
        found = client.retry(document)
    Console().print(f"{escape(found.filename)}: {found.status}")


@cli.command()
def status(
    url: Url = DEFAULT_URL,
    key: Key = "",
    *,
    watch: Annotated[bool, typer.Option(help="Look again every two seconds.")] = False,
) -> None:
    """Show what the service is doing."""
    out = Console(soft_wrap=True)
    with Client(url, key=key) as client, _told():
        if not watch:
            out.print(_status_text(client.status()), highlight=False)
            return
        with Live(console=out, auto_refresh=False) as live, suppress(KeyboardInterrupt):
            while True:
                live.update(_seen_status(client), refresh=True)
                time.sleep(WATCH_S)


@cli.command()
def plan(control_url: ControlUrl = DEFAULT_CONTROL_URL, control_key: ControlKey = "") -> None:
    """Show how the engine's memory was planned."""
    with Client(control_url, key=control_key) as client, _told():
        found = client.get("/plan")
    table = Table("what", "bytes", "note", title="memory plan")
    for row in found.get("lines", found.get("rows", [])):
        table.add_row(*(escape(str(cell)) for cell in _plan_row(row)))
    Console().print(table)


@cli.command()
def sleep(control_url: ControlUrl = DEFAULT_CONTROL_URL, control_key: ControlKey = "") -> None:
    """Give the engine's memory back; the next question wakes it."""
    _order("/sleep", control_url, control_key)


@cli.command()
def wake(control_url: ControlUrl = DEFAULT_CONTROL_URL, control_key: ControlKey = "") -> None:
    """Start a sleeping engine before somebody asks."""
    _order("/wake", control_url, control_key)


@cli.command()
def doctor(
    url: Url = DEFAULT_URL,
    key: Key = "",
    *,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Look through this data folder instead: every document, chunk and file."),
    ] = None,
    repair: Annotated[
        bool, typer.Option(help="Put right what can be; the orchestrator has to be stopped.")
    ] = False,
) -> None:
    """Check each part, and say what to do about what is not well."""
    out = Console(soft_wrap=True)
    if data_dir is not None:
        raise typer.Exit(_examine(data_dir, out, repair=repair))
    if repair:
        out.print("[red]✗[/red] say which folder: tidegate doctor --data-dir .data --repair")
        raise typer.Exit(2)
    try:
        with Client(url, key=key) as client:
            ready, found = client.ready(), client.status()
    except ClientError as exc:
        out.print(f"[red]✗[/red] orchestrator: {escape(str(exc))}")
        raise typer.Exit(1) from exc
    out.print(f"[green]✓[/green] orchestrator {found['version']} at {url}")
    well = True
    for name, dependency in ready.dependencies.items():
        fine = dependency.status == "ok"
        well = well and fine
        mark = "[green]✓[/green]" if fine else "[red]✗[/red]"
        out.print(f"{mark} {name} {dependency.status} {escape(dependency.detail)}".rstrip())
    if not found["engine"].get("exact_token_counts", True):
        out.print("[yellow]![/yellow] token counts are estimates: set ORCHESTRATOR_TOKENIZER")
    failed = found["documents"].get("by_status", {}).get("failed", 0)
    if failed:
        out.print(
            f"[yellow]![/yellow] {failed} documents failed: GET /documents?status=failed tells why, "
            "POST /documents/<id>/retry tries again"
        )
    if not well:
        raise typer.Exit(1)


@cli.command()
def serve(
    *,
    insecure: Annotated[
        bool,
        typer.Option(help="Listen without keys, also where other machines can reach it."),
    ] = False,
) -> None:
    """Run the orchestrator; settings come from ORCHESTRATOR_* variables."""
    from orchestrator.server import run  # noqa: PLC0415 - the other commands need no server

    raise typer.Exit(run(insecure=insecure))


@cli.command()
def mcp(url: Url = DEFAULT_URL, key: Key = "") -> None:
    """Serve agents on this machine: MCP on stdin and stdout, for a running orchestrator."""
    from orchestrator.mcp_stdio import run  # noqa: PLC0415 - the other commands need no MCP

    run(url, key, __version__)


@cli.command()
def config() -> None:
    """Show every setting: effective value, where it comes from, what it does."""
    from orchestrator.server import config_text  # noqa: PLC0415 - as above

    sys.stdout.write(config_text())


def _order(path: str, control_url: str, control_key: str) -> None:
    """Tell model_server to do something, and show where the engine is then."""
    with Client(control_url, key=control_key) as client, _told():
        found = client.post(path)
    Console().print(f"engine {found['state']}: {escape(found['phase'])}", highlight=False)


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        DownloadColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def _add_one(
    client: Client, path: Path, collection: str, replace: str | None, progress: Progress
) -> bool:
    """Whether the file became searchable."""
    bar = progress.add_task(escape(path.name), total=path.stat().st_size, state="uploading")
    try:
        document: DocumentOut = client.upload(
            path,
            collection=collection,
            replaces=replace,
            on_bytes=lambda n: progress.advance(bar, n),
        )
        for document in client.follow(document.id):  # noqa: B020 - the same one, further on
            _show_document(document, progress, bar)
    except ClientError as exc:
        progress.update(bar, state="[red]refused[/red]")
        progress.console.print(f"[red]{escape(path.name)}: {escape(str(exc))}[/red]")
        return False
    if document.error:
        progress.console.print(f"[red]{escape(path.name)}: {escape(document.error.message)}[/red]")
        return False
    if document.warning:
        progress.console.print(f"[yellow]{escape(path.name)}: {escape(document.warning)}[/yellow]")
    return True


def _show_document(document: DocumentOut, progress: Progress, bar: TaskID) -> None:
    state: str = document.status
    if state == "parsing":
        state = f"page {document.pages_done} of {document.pages}"
    if state == "ready":
        state = f"[green]ready[/green], {document.pages} pages"
    progress.update(bar, state=state)


def _show_event(event: AnswerEvent, out: Console) -> None:
    match event:
        case QueuedOut(position=position, eta_s=eta_s):
            about = f", about {eta_s:.0f} s" if eta_s is not None else ""
            Console(stderr=True).print(f"[dim]waiting: place {position}{about}[/dim]")
        case TokenOut(text=text):
            out.print(text, end="", markup=False, highlight=False)
        case AskResponse():
            out.print("\n")
            if event.degraded is not None:
                out.print(f"[yellow]{escape(event.degraded.reason)}[/yellow]", highlight=False)
            for citation in event.citations:
                mark = "bold" if citation.cited else "dim"
                line = f"[{citation.n}] {citation.filename}, page {citation.page}"
                out.print(f"[{mark}]{escape(line)}[/{mark}]")


def _seen_status(client: Client) -> str:
    """The rows, or why there are none: whoever watches wants to see it come back."""
    try:
        return _status_text(client.status())
    except ClientError as exc:
        return f"[red]{escape(str(exc))}[/red]"


def _status_text(found: dict[str, Any]) -> str:
    return "\n".join(
        f"[bold]{name:10}[/bold] {escape(value)}" for name, value in _status_rows(found)
    )


def _status_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    if "memory" not in found:  # the key is no admin's
        return _own_rows(found)
    gate, engine, documents = found["gate"], found["engine"], found["documents"]
    served = engine["model"] or ("asleep" if engine["asleep"] else "not ready")
    server = engine["model_server"]
    if server is not None:
        steps = dict.fromkeys(str(server.get(key, "")) for key in ("state", "phase"))
        served += f" ({': '.join(filter(None, steps))})"
    return [
        ("engine", f"{served} at {engine['url']}, window {engine['max_model_len']} tokens"),
        (
            "gate",
            f"{gate['running']} of {gate['concurrent']} running, {gate['queued']} waiting{_for(gate)}",
        ),
        (
            "KV cache",
            _tokens(gate),
        ),
        (
            "documents",
            f"{documents['total']} ({documents['chunks']} chunks), {documents['queued']} waiting",
        ),
        ("memory", f"{found['memory']['rss_bytes'] / GIB:.2f} GiB"),
        ("uptime", f"{found['uptime_s']:.0f} s"),
    ]


def _own_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What a key without --admin is shown."""
    gate, engine, documents = found["gate"], found["engine"], found["documents"]
    return [
        ("engine", engine["model"] or ("asleep" if engine["asleep"] else "not ready")),
        ("gate", f"{gate['queued']} waiting"),
        ("documents", f"{documents.get('total', 0)} ({documents.get('chunks', 0)} chunks)"),
    ]


def _plan_row(row: Any) -> tuple[Any, Any, Any]:
    if isinstance(row, dict):
        return tuple([*row.values(), "", "", ""][:3])
    return tuple([*row, "", "", ""][:3])


class _told:  # noqa: N801 - used as a statement, like contextlib's own
    """Errors of the client become one line and exit code 1."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ClientError):
            Console(stderr=True).print(f"[red]{escape(str(error))}[/red]")
            raise typer.Exit(1) from error


def _for(gate: dict[str, Any]) -> str:
    """What those who wait are waiting for."""
    limit = gate.get("waits_for")  # a service of an older version does not say
    return f" for {limit}" if limit else ""


def _tokens(gate: dict[str, Any]) -> str:
    """What is reserved of the engine's cache."""
    whole = gate["capacity_tokens"]
    of = "an unknown number of" if whole is None else f"{whole:,}"
    return f"{gate['reserved_tokens']:,} of {of} tokens reserved"


def _examine(folder: Path, out: Console, *, repair: bool) -> int:
    """Look through a data folder and tell what is wrong; the exit code: 0 if nothing is."""
    # The other commands speak HTTP, and start without a database.
    from orchestrator.data_folder import DataFolder  # noqa: PLC0415 - see above
    from orchestrator.retrieval.database import Database  # noqa: PLC0415 - see above
    from orchestrator.retrieval.store_check import StoreCheck  # noqa: PLC0415 - see above

    path = folder / "tidegate.db"
    if not path.exists():
        out.print(f"[red]✗[/red] {escape(str(path))} does not exist: name the data folder")
        return 2
    database, claimed = Database(path=path), DataFolder(folder)
    try:
        if repair:
            claimed.claim()
        database.open()
        check = StoreCheck(folder=folder, database=database)
        found = list(check.findings())
        for finding in found:
            cure = finding.repair or "cannot be repaired here"
            out.print(f"[red]✗[/red] {escape(finding.what)} → {escape(cure)}", highlight=False)
        left = check.repair(found) if repair and found else found
    except OrchestratorError as exc:
        out.print(f"[red]✗[/red] {escape(exc.message)}")
        return 2
    finally:
        database.close()
        claimed.release()
    if not found:
        out.print(
            f"[green]✓[/green] {escape(str(folder))}: everything that belongs together is there"
        )
    elif repair:
        out.print(f"{len(found) - len(left)} of {len(found)} findings put right")
    elif any(finding.repair for finding in found):
        out.print("stop the orchestrator, then: tidegate doctor --data-dir … --repair")
    return 1 if left else 0
