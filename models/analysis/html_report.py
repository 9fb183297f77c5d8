"""An analysis as one HTML page: no files beside it, light and dark, for telephones and for paper; and as Markdown."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from models.analysis.paper_claims import judge_claims
from models.analysis.study import Analysis

STYLE = """
:root{color-scheme:light dark;--ink:#1e293b;--paper:#fff;--quiet:#64748b;--line:#e2e8f0}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e2e8f0;--paper:#0f172a;--quiet:#94a3b8;--line:#334155}}
*{box-sizing:border-box}body{margin:0 auto;max-width:64rem;padding:1rem;color:var(--ink);background:var(--paper);
font:16px/1.5 system-ui,sans-serif}h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{margin:.5rem 0;max-width:44rem}.quiet{color:var(--quiet)}.charts{display:grid;gap:1rem;
grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr))}figure{margin:0;break-inside:avoid}
svg.chart,figure img{width:100%;height:auto;display:block}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem}th,td{padding:.25rem .75rem .25rem 0;text-align:right;
vertical-align:top;border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}
@media print{body{font-size:11px;max-width:none}h2{break-after:avoid}.charts{grid-template-columns:1fr 1fr}}
"""


def draw_report(analysis: Analysis, charts: Mapping[str, str], sheets: Mapping[str, Image.Image]) -> str:
    """Return the page; ``sheets`` may be empty."""
    claims = judge_claims(analysis)
    parts = [
        f"<h1>{escape(analysis.model)}</h1>",
        f'<p class="quiet">{escape(origin(analysis))}</p>',
        f"<p>{escape(summary(analysis))}</p>",
        "<h2>The paper's account of it</h2>",
        table(("SkipNet's authors found", "here", "holds"), [(row.claim, row.measured, row.holds) for row in claims]),
        section("Easy and hard images", "", charts, ("blocks",)),
        *(
            sheet(f"Images that execute {name}, with their blocks and class", sheets[name])
            for name in ("least", "most")
            if name in sheets
        ),
        section("Classes", "", charts, ("classes",)),
        table(
            ("class", "images", "accuracy", "blocks"),
            [(row.label, f"{row.images:,}", f"{row.accuracy:.1%}", f"{row.blocks:.2f}") for row in analysis.classes],
        ),
        section("Blocks and paths", "", charts, ("rates", "paths")),
        section(
            "What makes an image cost more",
            f"First images sorted by how they look, as they are; then {analysis.altered_images:,} of them, altered.",
            charts,
            ("looks", "scale", "brightness", "contrast", "blur"),
        ),
        section(
            "Gates that mean it",
            "A probability that is worth its name says how often the block executes in copies that hardly differ (JPEG "
            "of quality 75 and better, a shift by a pixel); and a block that its gate wants is worth executing.",
            charts,
            ("flips", "reliability", "worth"),
        ),
        section("The compute dial", "", charts, ("dial",)),
    ]
    if analysis.attacks:
        parts.append(
            section(
                "Inputs made to burn compute",
                f"{analysis.attacks[0].images} images, every value moved by at most so many of 255, so that gates open "
                "(ILFO, Haque et al., CVPR 2020; here by projected gradient steps).",
                charts,
                ("attacks",),
            )
        )
        parts.append(
            table(
                ("change", "MACs before", "after", "saving taken back", "accuracy before", "after"),
                [
                    (
                        f"{row.kind}, {row.bound:g}/255",
                        *(f"{share:.1%}" for share in (row.mac_share_before, row.mac_share_after)),
                        f"{row.saving_taken_back:.0%}",
                        *(f"{share:.1%}" for share in (row.accuracy_before, row.accuracy_after)),
                    )
                    for row in analysis.attacks
                ],
            )
        )
    title = escape(f"{analysis.model} on {analysis.dataset}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def draw_markdown(analysis: Analysis, charts: Mapping[str, str]) -> str:
    """Return a page for the folder where the charts lie, each as a file NAME.svg."""
    claims = [f"| {row.claim} | {row.measured} | {row.holds} |" for row in judge_claims(analysis)]
    pictures = [f"![{name}]({name}.svg)" for name in charts]
    return "\n".join(
        [
            f"# {analysis.model}",
            "",
            f"{origin(analysis)}. {summary(analysis)}",
            "",
            "| SkipNet's authors found | here | holds |",
            "|---|---|---|",
            *claims,
            "",
            *pictures,
            "",
        ]
    )


def origin(analysis: Analysis) -> str:
    return (
        f"{analysis.images:,} images of {analysis.dataset} {analysis.split}, engine {analysis.engine}, execute "
        f"threshold {analysis.execute_threshold:g}; {analysis.altered_images:,} of them altered"
    )


def summary(analysis: Analysis) -> str:
    return (
        f"An image executes {analysis.mean_blocks:.1f} of {analysis.blocks} blocks on average, "
        f"{analysis.mac_share:.1%} of the dense multiply-adds, along one of {analysis.paths} paths; "
        f"{analysis.accuracy:.2%} are classified right."
    )


def section(title: str, text: str, charts: Mapping[str, str], names: Sequence[str]) -> str:
    """Return a heading and those of the charts that there are; nothing where there is none."""
    drawn = "".join(f"<figure>{charts[name]}</figure>" for name in names if name in charts)
    if not drawn:
        return ""
    return f'<h2>{escape(title)}</h2>{f"<p>{escape(text)}</p>" if text else ""}<div class="charts">{drawn}</div>'


def sheet(title: str, image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "WEBP", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<h2>{escape(title)}</h2><figure><img alt="{escape(title)}" src="data:image/webp;base64,{data}"></figure>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
