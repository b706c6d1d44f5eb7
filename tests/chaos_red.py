"""
Pulls each plug of `make chaos` with a safeguard taken out, and shows that a promise is broken then.

`make chaos-red`, or `python -m tests.chaos_red "engine killed" storm` for some of them. The exit code
is 0 if every plug breaks its promise for the reason that is written here.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Red:
    """
    A plug that is pulled without a safeguard.

    Attributes:
        plug: Its name.
        without: One of `chaos_stage.WITHOUT`.
        says: Part of what is broken then.
    """

    plug: str
    without: str
    says: str


REDS = (
    Red("engine killed", "supervision", "the engine was not ready within"),
    Red("engine killed again and again", "alarms", "TidegateEngineRestartsOften was not raised"),
    Red("engine stopped", "hang detection", "did not find that the engine hung"),
    Red("engine never starts", "graceful degradation", "answered meanwhile, not"),
    Red("engine smaller", "alarms", "TidegateKvCacheOffPlan was not raised"),
    Red("engine refuses", "graceful degradation", "answered meanwhile, not"),
    Red("engine slow", "graceful degradation", "answered meanwhile, not"),
    Red("engine lies", "graceful degradation", "answered meanwhile, not"),
    Red("engine cuts", "graceful degradation", "answered meanwhile, not"),
    Red("metrics dead", "age of metrics", "engine_metrics_stale is not told"),
    Red("model_server killed", "graceful degradation", "answered meanwhile, not"),
    Red("memory eaten", "alarms", "TidegateMemoryCritical was not raised"),
    Red("orchestrator killed", "durability", "its documents are not what they were"),
    Red("orchestrator starved", "alarms", "TidegateEventLoopBlocked was not raised"),
    Red("embedder killed", "search by words", "served meanwhile, not"),
    Red("disk full", "errors of the disk", "not 507"),
    Red("storm", "request queue", "a refusal took"),
)


def main() -> int:
    """The exit code, after the table."""
    wanted = set(sys.argv[1:]) or {red.plug for red in REDS}
    reds = [red for red in REDS if red.plug in wanted]
    noticed: dict[str, str] = {}
    for without in dict.fromkeys(red.without for red in reds):
        noticed |= _broken(without, [red.plug for red in reds if red.without == without])
    red_plugs = 0
    for red in reds:
        said = noticed.get(red.plug, "not pulled")
        is_red = red.says in said
        red_plugs += is_red
        print(
            f"{'red' if is_red else 'NOT NOTICED':12} {red.plug:30} {red.without:22} {said[:120]}"
        )
    print(f"{red_plugs} of {len(reds)} red")
    return int(red_plugs < len(reds))


def _broken(without: str, plugs: Iterable[str]) -> dict[str, str]:
    """What was broken, by plug."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "chaos.json"
        command = [sys.executable, "-m", "loadtest.chaos", "--without", without]
        subprocess.run(
            [*command, "--plugs", ",".join(plugs), "--out", str(out)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            check=False,
            timeout=LIMIT_S,
        )
        seen = json.loads(out.read_text())["plugs"] if out.exists() else []
    return {one["plug"]: "; ".join(one["broken"]) or "nothing broken" for one in seen}


if __name__ == "__main__":
    sys.exit(main())
