"""The pages of an analysis: one self-contained HTML page, and a README.md that shows the chart files."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image

from models.analysis.paper_claims import check_claims
from models.analysis.schema import Analysis
from models.errors import needs_extra
from models.evaluation.fixed_routes import HEADS, compare_in_words, route_cells


@dataclass(frozen=True)
class Picture:
    """An image on the page; ``source`` is a data URL."""

    alt: str
    source: str


@dataclass(frozen=True)
class Section:
    """A section of the page: a heading, pictures and a table. Sections without pictures are left out."""

    title: str
    images: list[Picture]
    text: str = ""
    heads: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    layout: str = "charts"


def render_html(analysis: Analysis, charts: Mapping[str, str], sheets: Mapping[str, Image.Image]) -> str:
    """Return the HTML page with its charts (SVG by name) and contact sheets (by name, possibly none)."""
    return render("report.html", analysis, sections=list_sections(analysis, charts, sheets))


def render_markdown(analysis: Analysis, charts: Mapping[str, str]) -> str:
    """Return a README.md for the folder that holds each chart as NAME.svg."""
    return render("report.md", analysis, charts=list(charts))


def render(template: str, analysis: Analysis, **values: object) -> str:
    """Return a page from its template.

    Raises UserError if jinja2 is missing.
    """
    with needs_extra("analysis", "rendering reports"):
        from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    environment = Environment(
        loader=PackageLoader("models.analysis"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    claims = [(claim.claim, claim.measured, claim.holds) for claim in check_claims(analysis)]
    page = environment.get_template(template).render(
        analysis=analysis,
        claims=claims,
        fixed_routes=route_cells(analysis.fixed_routes),
        route_heads=HEADS,
        origin=describe_origin(analysis),
        summary=summarise(analysis),
        verdict=judge_routing(analysis),
        **values,
    )
    return page.lstrip("\n")


def list_sections(analysis: Analysis, charts: Mapping[str, str], sheets: Mapping[str, Image.Image]) -> list[Section]:
    """Return the sections of the HTML page."""

    def pictures(*names: str) -> list[Picture]:
        return [Picture(name, chart_url(charts[name])) for name in names if name in charts]

    def sheet(name: str, title: str) -> Section:
        return Section(title, [Picture(title, sheet_url(sheets[name]))] if name in sheets else [], layout="sheet")

    return [
        Section("Easy and hard images", pictures("blocks")),
        sheet("least", "The images that execute the fewest blocks"),
        sheet("most", "The images that execute the most blocks"),
        Section(
            "Classes", pictures("classes"), heads=("class", "images", "accuracy", "blocks"), rows=class_rows(analysis)
        ),
        Section("Blocks and paths", pictures("rates", "paths")),
        Section(
            "What makes an image cost more",
            pictures("appearance", "scale", "brightness", "contrast", "blur"),
            "The first chart sorts the images by their appearance. The others show "
            f"{analysis.altered_images:,} images in altered copies.",
        ),
        Section(
            "Stability and calibration of the gates",
            pictures("flips", "reliability", "benefit"),
            "A calibrated gate executes its block in slightly altered copies (JPEG of quality 75 and more, a shift by "
            "one pixel) as often as its probability says. A useful gate executes the blocks that lower the loss.",
        ),
        Section("Accuracy-compute curve", pictures("budget")),
        Section(
            "Adversarial inputs",
            pictures("attacks"),
            "Projected gradient descent changes each pixel value by at most the given amount, so that more gates "
            "execute (after ILFO, Haque et al., CVPR 2020).",
            heads=("change", "MACs before", "after", "share of the saving lost", "accuracy before", "after"),
            rows=attack_rows(analysis),
        ),
    ]


def class_rows(analysis: Analysis) -> list[Sequence[str]]:
    """Return the cells of the table of classes."""
    return [
        (routes.label, f"{routes.images:,}", f"{routes.accuracy:.1%}", f"{routes.blocks:.2f}")
        for routes in analysis.classes
    ]


def attack_rows(analysis: Analysis) -> list[Sequence[str]]:
    """Return the cells of the table of attacks."""
    return [
        (
            f"{each.kind}, {each.bound:g}/255",
            f"{each.mac_share_before:.1%}",
            f"{each.mac_share_after:.1%}",
            f"{each.saving_taken_back:.0%}",
            f"{each.accuracy_before:.1%}",
            f"{each.accuracy_after:.1%}",
        )
        for each in analysis.attacks
    ]


def judge_routing(analysis: Analysis) -> str:
    """Return a sentence that says whether routing by image is worth more than a fixed route of its cost."""
    if analysis.macs is None:
        return ""
    verdict = compare_in_words(analysis.macs, analysis.fixed_routes)
    return (
        f"Routing by image ({analysis.accuracy:.2%} for {analysis.macs / 1e6:.2f} M MACs) is {verdict} a fixed route "
        "of its cost. The same weights, the same blocks for every image:"
    )


def describe_origin(analysis: Analysis) -> str:
    """Return a description of the images and the settings of the analysis."""
    return (
        f"{analysis.images:,} images of {analysis.dataset} {analysis.split}, engine {analysis.engine}, execute "
        f"threshold {analysis.execute_threshold:g}; {analysis.altered_images:,} of them also in altered copies"
    )


def summarise(analysis: Analysis) -> str:
    """Return the main figures in two sentences."""
    return (
        f"An image executes {analysis.mean_blocks:.1f} of {analysis.blocks} blocks on average, "
        f"{analysis.mac_share:.1%} of the dense MACs, along one of {analysis.paths} paths. "
        f"Top-1 accuracy is {analysis.accuracy:.2%}."
    )


def chart_url(svg: str) -> str:
    """Return an SVG document as a data URL: each chart keeps its own ids and styles."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def sheet_url(image: Image.Image) -> str:
    """Return a contact sheet as a data URL of a WebP image."""
    file = BytesIO()
    image.save(file, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
