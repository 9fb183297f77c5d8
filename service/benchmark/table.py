"""Format the figures of `load.json` as tables."""

from collections.abc import Callable, Sequence
from typing import Any


def draw(report: dict[str, Any]) -> str:
    """Return the tables of all parts that ran, as Markdown."""
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    parts = [draw_part(report[name]) for name, draw_part in PARTS.items() if name in report]
    busy = max(report[name]["other_load"] for name in PARTS if name in report)
    note = (
        f"Machine: {machine}. Load average before the runs: up to {busy:.1f}; above a few tenths, other processes used "
        "part of the processor.\n"
    )
    return "\n".join([note, *parts])


def rows(head: list[str], body: Sequence[Sequence[object]]) -> str:
    lines: list[Sequence[object]] = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(shown(cell) for cell in line) + " |" for line in lines) + "\n"


def shown(cell: object) -> str:
    return (
        f"{cell:.2f}"
        if isinstance(cell, float) and cell < 100
        else f"{cell:.0f}"
        if isinstance(cell, float)
        else str(cell)
    )


def images(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: value for name, value in part.items() if isinstance(value, dict)}


def latency(part: dict[str, Any]) -> str:
    head = [
        "one request at a time, ms",
        "decode and engine alone p50",
        "service p50",
        "p99",
        "behind the proxy p50",
        "p99",
    ]
    body = [
        [
            *(name, one["engine_alone_p50_ms"], one["service_p50_ms"], one["service_p99_ms"]),
            *(one["proxied_p50_ms"], one["proxied_p99_ms"]),
        ]
        for name, one in images(part).items()
    ]
    return rows(head, body)


def overload(part: dict[str, Any]) -> str:
    head = [
        "overload",
        "offered/s",
        "200/s",
        "of capacity",
        "p99 ms",
        "429",
        "others",
        "lost",
        "probes p50 ms",
        "most ms",
    ]
    head += ["generator, cores", "proxy, cores", "service, cores"]
    body = [
        [
            *(f"{name}, {run}", one["offered"], one["goodput"], one["share_of_capacity"], one["p99_ms"]),
            one["statuses"].get("429", 0),
            sum(count for status, count in one["statuses"].items() if status not in ("200", "429")),
            *(one["lost"], one["probe_p50_ms"], one["probe_max_ms"], one["generator_share_of_a_core"]),
            *(one["proxy_share_of_a_core"], one["service_share_of_a_core"]),
        ]
        for name, runs in images(part).items()
        for run, one in images(runs).items()
    ]
    return rows(head, body)


def degrade(part: dict[str, Any]) -> str:
    head = ["1.5 times the capacity", "capacity/s", "offered/s", "200/s", "p99 ms", "429", "504", "degraded images"]
    head.append("accuracy that each gave up")
    body = [
        [
            *(name, one["capacity"], one["offered"], one["goodput"], one["p99_ms"]),
            *(one["statuses"].get("429", 0), one["statuses"].get("504", 0)),
            *(round(one["degraded_images"]), f"{one['accuracy_given_up']:.3f}"),
        ]
        for name, one in images(part).items()
    ]
    return rows(head, body)


def peers(part: dict[str, Any]) -> str:
    head = ["64 requests in flight", "image", "requests/s", "p50 ms", "p99 ms", "one at a time, p50 ms"]
    body: list[list[object]] = []
    for server, measured in images(part).items():
        if "problem" in measured:
            body.append([server, "did not run", "", "", "", ""])
        body += [
            [server, name, one["requests_per_second"], one["p50_ms_64"], one["p99_ms_64"], one["p50_ms_1"]]
            for name, one in images(measured).items()
        ]
    return rows(head, body)


def accounts(what: str, part: dict[str, Any]) -> str:
    statuses = ", ".join(f"{count} x {status}" for status, count in part["statuses"].items())
    more = ", ".join(f"{name}: {shown(value)}" for name, value in part.items() if name not in STANDARD)
    return rows([what, "requests", "responses", "lost", ""], [["", part["requests"], statuses, part["lost"], more]])


STANDARD = ("requests", "statuses", "lost", "other_load")
PARTS: dict[str, Callable[[Any], str]] = {
    "latency": latency,
    "overload": overload,
    "degrade": degrade,
    "peers": peers,
    "swaps": lambda part: accounts("swaps under load", part),
    "drains": lambda part: accounts("drains under load", part),
    "memory": lambda part: accounts("memory", part),
}
