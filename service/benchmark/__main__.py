"""Run the load test on loopback: `make loadtest`, `python -m service.benchmark --help`.

Needs h2load (Debian's nghttp2-client) and haproxy. Server, proxy and load generator share the cores of the machine; the
report says how much each used.
"""

import argparse
import json
import os
from pathlib import Path

from models.machine import describe_machine
from service.benchmark.comparison import peers_side_by_side
from service.benchmark.endurance import drains, memory, swaps
from service.benchmark.servers import ROOT
from service.benchmark.speed import degrade, latency, overload
from service.benchmark.table import draw
from service.server import open_many_files


def main() -> None:
    options = argparse.ArgumentParser(prog="make loadtest", description=__doc__)
    options.add_argument(
        "--only",
        type=read_parts,
        default=list(PARTS),
        metavar="PARTS",
        help=f"parts to run, separated by commas: {', '.join(PARTS)}; default: all",
    )
    options.add_argument("--seconds", type=float, default=6, help="of each run")
    options.add_argument(
        "--times", type=float, nargs="+", default=[0.8, 1, 2, 10], help="multiples of the capacity in the part overload"
    )
    options.add_argument("--swaps", type=int, default=100)
    options.add_argument("--drains", type=int, default=50)
    options.add_argument("--requests", type=int, default=200_000, help="of the memory run")
    options.add_argument("--peers", type=Path, default=ROOT / "build/peers", help="environment of the peers")
    options.add_argument("--output", type=Path, default=ROOT / "build/load", help="folder for load.json and table.md")
    chosen = options.parse_args()
    open_many_files()
    chosen.output.mkdir(parents=True, exist_ok=True)
    file = chosen.output / "load.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    report["machine"] = describe_machine()
    for part in chosen.only:
        busy = os.getloadavg()[0]
        report[part] = PARTS[part](chosen) | {"other_load": busy}
        file.write_text(json.dumps(report, indent=1) + "\n")
        (chosen.output / "table.md").write_text(draw(report))
        print(part, json.dumps(report[part], indent=1), flush=True)


def read_parts(text: str) -> list[str]:
    """Return the parts that ``text`` names.

    Raises ArgumentTypeError if there is no such part.
    """
    parts = text.split(",")
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"unknown part {part!r}; expected one of {', '.join(PARTS)}")
    return parts


PARTS = {
    "latency": latency,
    "overload": overload,
    "degrade": degrade,
    "peers": peers_side_by_side,
    "swaps": swaps,
    "drains": drains,
    "memory": memory,
}

if __name__ == "__main__":
    main()
