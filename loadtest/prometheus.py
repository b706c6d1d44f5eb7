"""
A real Prometheus beside a stack: scrapes it, evaluates the project's alarms, answers queries.

Tests and `make chaos` cannot wait for the twenty minutes of an alarm: `hurried` makes seconds of an
alarm's minutes, and leaves the expressions as they are.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from deploy.debian_programs import unpacked
from loadtest.programs import ROOT, Program, free_port, started

RULES = ROOT / "deploy" / "prometheus" / "alerts.yaml"
HOW_TO_GET = (
    "there is no Prometheus here: `apt-get install prometheus`, or "
    "`python3 deploy/debian_programs.py prometheus`, which needs no root"
)
SCRAPE_S = 1
START_S = 30.0


_DURATION = re.compile(r"\b(\d+)([mh])\b")
_SECONDS = {"m": 1, "h": 60}


def program(name: str) -> Path | None:
    """`prometheus` or `promtool`, installed or unpacked; None where there is none."""
    unpacked_at = unpacked("prometheus") / "usr" / "bin" / name
    if unpacked_at.exists():
        return unpacked_at
    found = shutil.which(name)
    return Path(found) if found else None


def hurried(promql: str) -> str:
    """
    The same with seconds for minutes, and minutes for hours: `[15m]` is `[15s]`, `1h` is `60s`.

    Args:
        promql: An expression, or a duration.
    """
    return _DURATION.sub(lambda m: f"{int(m[1]) * _SECONDS[m[2]]}s", promql)


def hurried_rules() -> str:
    """The project's alarms, hurried, as YAML."""
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule |= {key: hurried(rule[key]) for key in ("expr", "for") if key in rule}
    return yaml.safe_dump(rules)


class Prometheus:
    """
    One that runs.

    Args:
        process: Its process, and where it listens.
    """

    def __init__(self, process: Program) -> None:
        self._http = process.http

    def query(self, promql: str) -> list[dict[str, Any]]:
        """
        What an instant query finds now: `metric` and `value` each.

        Raises:
            HTTPStatusError: If Prometheus does not take it.
        """
        answer = self._http.get("/api/v1/query", params={"query": promql}).raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def raised(self, *, within_s: float) -> frozenset[str]:
        """Alarms that were raised at some moment of the last so many seconds."""
        promql = f'max_over_time(ALERTS{{alertstate="firing"}}[{round(within_s * 1000)}ms])'
        return frozenset(str(one["metric"]["alertname"]) for one in self.query(promql))


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, str], *, alarms: bool = True
) -> Iterator[Prometheus | None]:
    """
    One that scrapes these targets once a second, until the block ends; None where there is none.

    Args:
        folder: For its data, its configuration and its log.
        targets: host:port by the name of the job.
        alarms: Whether it has the project's rules.

    Raises:
        NotStarted: If it does not come up.
    """
    binary = program("prometheus")
    if binary is None:
        yield None
        return
    folder.mkdir()
    (folder / "alerts.yaml").write_text(hurried_rules() if alarms else "groups: []\n")
    (folder / "prometheus.yaml").write_text(_configuration(targets))
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(binary),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    log, url = folder / "prometheus.log", f"http://{address}"
    with started(command, log=log, start_s=START_S, url=url, ready_path="/-/ready") as found:
        yield Prometheus(found)


def _configuration(targets: Mapping[str, str]) -> str:
    every = f"{SCRAPE_S}s"
    return yaml.safe_dump({
        "global": {
            "scrape_interval": every,
            "scrape_timeout": every,
            "evaluation_interval": every,
        },
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [
            {"job_name": name, "static_configs": [{"targets": [target]}]}
            for name, target in targets.items()
        ],
    })
