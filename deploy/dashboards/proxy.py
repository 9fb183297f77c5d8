"""The dashboard of the proxy in front of the service, `deploy/haproxy`."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.panels import (
    INSTANCE,
    Built,
    Target,
    dashboard,
    rate,
    series_panel,
    stat_panel,
    steps,
    variable,
    with_rows,
)

CLIENTS = f'{INSTANCE}, proxy="skipnet"'
IMAGES = f'{INSTANCE}, proxy="images"'
CLASSIFYING = f'{INSTANCE}, proxy=~"images|large"'
DENIED = "haproxy_backend_requests_denied_total"
WAITED = "haproxy_backend_connection_errors_total"
VARIABLES = [
    variable("job", "Job", "haproxy_process_uptime_seconds"),
    variable("instance", "Instance", 'haproxy_process_uptime_seconds{job=~"$job"}'),
]


def board() -> Dashboard:
    made = dashboard("skipnet-proxy", "SkipNet: proxy", "Requests that the proxy forwards and refuses.", VARIABLES)
    return with_rows(made, {"Now": numbers(), "Over time": courses()})


def numbers() -> list[Built]:
    return [
        stat_panel(
            "Replicas in use",
            "Ready replicas, to which the proxy sends images.",
            "short",
            Target(f"sum(haproxy_backend_active_servers{{{IMAGES}}})"),
            steps("red", (1, "green")),
        ),
        stat_panel(
            "Requests",
            "Requests per second from clients, to any path.",
            "reqps",
            Target(rate("haproxy_frontend_http_requests_total", CLIENTS)),
            steps("text"),
        ),
        stat_panel(
            "Refused",
            "Share of the images that the proxy refused: the queue was full, the wait was too long, or no replica was "
            "ready.",
            "percentunit",
            Target(
                f"({rate(DENIED, CLASSIFYING)} + {rate(WAITED, CLASSIFYING)})"
                f" / {rate('haproxy_backend_http_requests_total', CLASSIFYING)}"
            ),
            steps("green", (0.01, "orange"), (0.05, "red")),
        ),
        stat_panel(
            "Connections",
            "Open connections as a share of SKIPNET_MAX_CONNECTIONS. At 1, new clients wait.",
            "percentunit",
            Target(
                f"max(haproxy_process_current_connections{{{INSTANCE}}}"
                f" / haproxy_process_max_connections{{{INSTANCE}}})"
            ),
            steps("green", (0.8, "orange"), (0.95, "red")),
        ),
    ]


def courses() -> list[Built]:
    return [
        series_panel(
            "Responses by class",
            "To clients, by the first digit of the status. A refusal is 4xx.",
            "reqps",
            Target(rate("haproxy_frontend_http_responses_total", CLIENTS, "code"), "{{code}}"),
        ),
        series_panel(
            "Refused by cause",
            "Denied: the queue was full or no replica was ready. Waited: not sent to a replica within "
            "SKIPNET_QUEUE_TIMEOUT. Any cause, denied: these, rates of keys and heads that were too long.",
            "reqps",
            Target(rate(DENIED, CLASSIFYING, "proxy"), "{{proxy}} denied"),
            Target(rate(WAITED, CLASSIFYING, "proxy"), "{{proxy}} waited"),
            Target(rate("haproxy_frontend_requests_denied_total", CLIENTS, "proxy"), "any cause, denied"),
        ),
        series_panel(
            "Queue",
            "Images that wait for a place at a replica, at most SKIPNET_MAX_QUEUE, and images at the replicas.",
            "short",
            Target(f"sum by (proxy) (haproxy_backend_current_queue{{{CLASSIFYING}}})", "{{proxy}} queued"),
            Target(f"sum by (proxy) (haproxy_backend_current_sessions{{{CLASSIFYING}}})", "{{proxy}} all"),
        ),
        series_panel(
            "Mean times",
            "Of the last 1,024 images: in the queue, and until a replica responds.",
            "s",
            Target(f"max by (proxy) (haproxy_backend_queue_time_average_seconds{{{CLASSIFYING}}})", "{{proxy}} queue"),
            Target(
                f"max by (proxy) (haproxy_backend_response_time_average_seconds{{{CLASSIFYING}}})", "{{proxy}} response"
            ),
        ),
        series_panel(
            "Retries",
            "Requests that were sent again after a connection to a replica failed, to the same or another replica.",
            "reqps",
            Target(rate("haproxy_backend_retry_warnings_total", CLASSIFYING, "proxy"), "{{proxy}} same"),
            Target(rate("haproxy_backend_redispatch_warnings_total", CLASSIFYING, "proxy"), "{{proxy}} another"),
        ),
        series_panel(
            "Idle time",
            "Share of the time that the proxy is idle. Near 0, raise SKIPNET_PROXY_THREADS.",
            "percent",
            Target(f"min by (instance) (haproxy_process_idle_time_percent{{{INSTANCE}}})", "{{instance}}"),
        ),
    ]
