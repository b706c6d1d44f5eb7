"""
Schemathesis over the OpenAPI document: no 5xx, and every answer is what the document says.

    make fuzz [SECONDS=600] [SEED=20260714]

A real orchestrator before the scripted engine, which never fails here: so no 5xx has an excuse. Two
thirds of the time nobody has a key, one third everybody has. The seed is printed, and the same seed
sends the same requests. The exit code is 1 if an answer was not as documented, a request took longer
than 30 s, the process ended, or its log has an error.

Not held: that whatever fits the schemas is accepted. Limits that are settings (the longest question,
the pages of a document) are told in an answer, not in the document. And that a 404 never follows a
creation: a request may name a second thing, in its body, that never was (tests of each route hold what
was created to be there).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from loadtest.programs import commit, end_in_order, machine
from tests import pdfs
from tests.fake_engine import MODEL, FakeEngine, serving
from tests.running import Program, orchestrator

ROOT = Path(__file__).parent.parent
SEED = 20260714
ANSWER_S = 30
LEEWAY_S = 120.0
"""What Schemathesis may take beyond its time to tell what it found."""
KEYED_SHARE = 1 / 3
NOT_HELD = ("positive_data_acceptance", "ensure_resource_availability")
NEVER = "doc-000000000000000000000000"
EMBEDDER = "default"
"""What an embedder behind HTTP is called, unless it is named."""
RANGES = ["bytes=0-99", "bytes=-5", "bytes=5-", "bytes=0-1,4-5", "bytes=9999999-", "bytes=9-1"]
SERIES = re.compile(r'^tidegate_requests_total\{code="(.*)",route="(.*)"\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Service:
    """
    A running orchestrator: what is in it, the key of whoever fuzzes, and that of whoever looks.

    Ids of documents, uploaded files, vector stores and their batches.
    """

    program: Program
    documents: list[str]
    key: str | None
    admin_key: str | None
    files: list[str]
    stores: list[str]
    batches: list[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What a pass came to.

    Attributes:
        requests: How many, by route and outcome code, as the service itself has counted them.
        failures: What was not as it must be, one sentence each.
        told: What Schemathesis wrote.
    """

    requests: Counter[tuple[str, str]]
    failures: list[str]
    told: str


def fuzz(
    folder: Path, *, budget: Sequence[str], keyed: bool, seed: int, within_s: float
) -> Outcome:
    """
    One pass over all operations.

    Args:
        folder: Where the service keeps its data.
        budget: Options of Schemathesis that say how long, or how much.
        keyed: Whether there are API keys.
        seed: Of everything that is drawn.
        within_s: When it is given up, in seconds.
    """
    with _service(folder, keyed=keyed) as service:
        code, told = _schemathesis(service, folder, [*budget, "--seed", str(seed)], within_s)
        failures = [] if code == 0 else [f"Schemathesis ended with {code}: see what it says."]
        if service.program.process.poll() is not None:
            failures.append(f"The orchestrator ended:\n{service.program.tail()}")
            return Outcome(Counter(), failures, told)
        requests = _counted(service)
        if unasked := _documented(service) - {route for route, _ in requests}:
            failures.append(f"Never asked: {', '.join(sorted(unasked))}.")
    errors = _errors(service.program.log)
    if errors:
        failures.append(f"{len(errors)} errors in its log, the first: {errors[0]}")
    return Outcome(requests, failures, told)


@contextmanager
def _service(folder: Path, *, keyed: bool) -> Iterator[Service]:
    data_dir = folder / "data"
    data_dir.mkdir(parents=True)
    key = _make_key(data_dir, "fuzz", "--owner", "fuzz") if keyed else None
    admin_key = _make_key(data_dir, "ops", "--admin") if keyed else None
    with (
        serving(FakeEngine()) as engine,
        orchestrator(data_dir, engine.url, embedder_url=engine.url) as program,
        _client(program.url, key) as http,
    ):
        documents = [
            _added(http, name, data)
            for name, data in (
                ("handbook.pdf", pdfs.handbook()),
                ("one.pdf", pdfs.text_pdf(["The gate closes at high water."])),
                ("failed.pdf", pdfs.image_only()),
            )
        ]
        yield Service(program, documents, key, admin_key, **_stored(http))


def _make_key(data_dir: Path, name: str, *options: str) -> str:
    command = [sys.executable, "-m", "orchestrator", "keys", "create", name, *options]
    made = subprocess.run(
        [*command, "--data-dir", str(data_dir)], check=True, capture_output=True, text=True
    )
    return made.stdout.strip()


def _client(url: str, key: str | None) -> httpx2.Client:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


def _added(http: httpx2.Client, name: str, data: bytes) -> str:
    """The id of a document that is ready, or has failed."""
    response = http.post("/upload", files={"file": (name, data, "application/pdf")})
    document_id = str(response.raise_for_status().json()["documents"][0]["id"])
    http.get(f"/documents/{document_id}/events").raise_for_status()
    return document_id


def _stored(http: httpx2.Client) -> dict[str, list[str]]:
    """Files, a vector store with them in it, and the batch that they came in."""
    files = [
        http
        .post(
            "/v1/files",
            files={"file": (name, pdfs.text_pdf([text]), "application/pdf")},
            data={"purpose": "assistants"},
        )
        .raise_for_status()
        .json()["id"]
        for name, text in (("gate.pdf", "The gate closes at dusk."), ("lock.pdf", "A lock."))
    ]
    store = http.post("/v1/vector_stores", json={"name": "kept"}).raise_for_status().json()["id"]
    place = f"/v1/vector_stores/{store}/file_batches"
    batch = http.post(place, json={"file_ids": files}).raise_for_status().json()["id"]
    return {"files": files, "stores": [store], "batches": [batch]}


def _schemathesis(
    service: Service, folder: Path, options: Sequence[str], within_s: float
) -> tuple[int, str]:
    """Its exit code, and what it wrote; 124 if it did not end in time."""
    config = folder / "schemathesis.toml"
    config.write_text(_configuration(service))
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(config)]
    command += ["run", f"{service.program.url}/openapi.json", "--no-color", *options]
    command += ["--checks", "all", "--exclude-checks", ",".join(NOT_HELD)]
    command += ["--continue-on-failure", "--generation-database", "none"]
    command += ["--request-timeout", str(ANSWER_S), "--max-response-time", str(ANSWER_S)]
    if service.key is not None:
        command += ["--header", f"Authorization: Bearer {service.key}"]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.fuzz_inputs",
        "TIDEGATE_FUZZ_KEPT": " ".join([*service.documents, *service.files, *service.stores]),
        "PYTHONPATH": str(ROOT),
    }
    try:
        ended = subprocess.run(
            command,
            cwd=folder,  # it leaves notes there
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within_s,
        )
    except subprocess.TimeoutExpired as exc:
        return 124, (exc.stdout or b"").decode(errors="replace")
    return ended.returncode, ended.stdout


def _configuration(service: Service) -> str:
    """Values that exist, so that not every request ends at a 404."""
    lists = {
        "documents": [*service.documents, NEVER],
        "models": [MODEL, EMBEDDER],
        "collections": ["default"],
        "ranges": RANGES,
        "files": [*service.files, NEVER],
        "stores": service.stores,
        "batches": service.batches,
    }
    drawn = {
        "path.document_id": "documents",
        "path.model_id": "models",
        "query.after": "documents",
        "query.collection": "collections",
        "header.Range": "ranges",
        "body.model": "models",
        "body.collection": "collections",
        "body.document_ids[*]": "documents",
        "path.file_id": "files",
        "path.vector_store_id": "stores",
        "path.batch_id": "batches",
        "body.file_id": "files",
        "body.file_ids[*]": "files",
        "body.tools[*].vector_store_ids[*]": "stores",
    }
    lines = ["[cache]", "enabled = false", "[output.sanitization]", "enabled = false"]
    lines.append("[dictionaries]")
    lines += [f"{name} = {{ values = {json.dumps(values)} }}" for name, values in lists.items()]
    lines.append("[parameters]")
    lines += [
        f'"{at}" = {{ dictionary = "{name}", probability = 0.6 }}' for at, name in drawn.items()
    ]
    return "\n".join([*lines, ""])


def _counted(service: Service) -> Counter[tuple[str, str]]:
    with _client(service.program.url, service.admin_key) as http:
        page = http.get("/metrics").raise_for_status().text
    found: Counter[tuple[str, str]] = Counter()
    for code, route, count in SERIES.findall(page):
        found[route.replace(":path}", "}"), code] += int(float(count))
    return found


def _documented(service: Service) -> set[str]:
    """The paths of the document, but for the one that is refused at the door: it counts for none."""
    with _client(service.program.url, service.key) as http:
        paths = set(http.get("/openapi.json").raise_for_status().json()["paths"])
    return paths - ({"/metrics"} if service.key else set())


def _errors(log: Path) -> list[str]:
    """What the service itself took for an error: a bug in a stream is no status."""
    return [line for line in log.read_text().splitlines() if '"level": "ERROR"' in line]


def table(requests: Counter[tuple[str, str]]) -> str:
    """Requests by route, and what became of them."""
    routes: dict[str, Counter[str]] = defaultdict(Counter)
    for (route, code), count in requests.items():
        routes[route][code] += count
    lines = []
    for route, codes in sorted(routes.items()):
        said = ", ".join(f"{code} {count}" for code, count in codes.most_common())
        lines.append(f"  {codes.total():7d}  {route:34}  {said}")
    return "\n".join([*lines, f"  {requests.total():7d}  in all"])


def main() -> int:
    """Fuzz without keys, then with them; 1 if something was not as documented."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    options.add_argument("--seconds", type=int, default=600)
    options.add_argument("--seed", type=int, default=SEED)
    asked = options.parse_args()
    end_in_order()
    print(f"commit {commit()}, {machine()}, {asked.seconds} s, seed {asked.seed}")
    keyed_s = max(1, round(asked.seconds * KEYED_SHARE))
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in (("without keys", asked.seconds - keyed_s), ("with keys", keyed_s)):
            print(f"== {name}, {seconds} s", flush=True)
            found = fuzz(
                Path(folder) / name.replace(" ", "-"),
                budget=["--max-time", str(seconds)],
                keyed=name == "with keys",
                seed=asked.seed,
                within_s=seconds + LEEWAY_S,
            )
            print(found.told if found.failures else found.told[found.told.rfind("== SUMMARY") :])
            print(table(found.requests), flush=True)
            failures += found.failures
    print("\n".join([f"{len(failures)} failures", *failures]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
