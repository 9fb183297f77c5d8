"""The paper's account of what is easy (SkipNet, section 5 and figures 7 to 10), held against an analysis."""

from dataclasses import dataclass

from models.analysis.study import Altered, Analysis

LOOKS = (("brightness", "high brightness"), ("contrast", "high contrast"), ("sharpness", "fine detail"))
CLEAR = 0.05
"""A rank correlation, or a difference in blocks or in execution rates, below which nothing is said."""


@dataclass(frozen=True)
class Claim:
    """What the paper says, what was measured here, and whether it holds: "yes", "no", "in part" or "no difference"."""

    claim: str
    measured: str
    holds: str


def judge_claims(analysis: Analysis) -> list[Claim]:
    """Return the paper's claims, of which those about dogs and trucks only where there are some."""
    altered = {row.name: row for row in analysis.altered}
    looks = {row.name: row.correlation for row in analysis.looks}
    claims = [
        Claim(
            f"images of {more} are easy",
            f"rank correlation of {name} and blocks {looks[name]:+.2f}",
            verdict(-looks[name]),
        )
        for name, more in LOOKS
    ]
    claims += [
        judge_alteration(altered[name], strength, claim)
        for name, strength, claim in (
            ("brightness", 0.5, "the same image, half as bright, is harder"),
            ("contrast", 0.5, "the same image with half the contrast is harder"),
            ("blur", 2.0, "the same image, blurred, is harder"),
            ("scale", 0.75, "the same image, smaller, executes less"),
            ("scale", 1.5, "the same image, larger, executes more"),
        )
    ]
    return [*claims, *judge_classes(analysis), *judge_blocks(analysis)]


def verdict(measured: float) -> str:
    """Return whether what should be above 0 is."""
    return "no difference" if abs(measured) < CLEAR else "yes" if measured > 0 else "no"


def judge_alteration(altered: Altered, strength: float, claim: str) -> Claim:
    before = altered.blocks[altered.strengths.index(altered.neutral)]
    after = altered.blocks[altered.strengths.index(strength)]
    sign = -1 if claim.endswith("less") else 1
    return Claim(claim, f"{before:.2f} to {after:.2f} blocks", verdict(sign * (after - before)))


def judge_classes(analysis: Analysis) -> list[Claim]:
    ranks = {row.label: (place + 1, row.blocks) for place, row in enumerate(analysis.classes)}
    if not {"dog", "truck"} <= ranks.keys():
        return []
    (dog, many), (truck, few) = ranks["dog"], ranks["truck"]
    measured = f"dog {many:.2f} blocks, truck {few:.2f}; places {dog} and {truck} of {len(ranks)} from the easiest"
    halves = (dog > len(ranks) / 2) + (truck <= len(ranks) / 2)
    return [Claim("dogs are hard, trucks easy", measured, ("no", "in part", "yes")[halves])]


def judge_blocks(analysis: Analysis) -> list[Claim]:
    groups: dict[int, list[float]] = {}
    for group, rate in zip(analysis.groups, analysis.execution_rate, strict=True):
        groups.setdefault(group, []).append(rate)
    ends = [rate for rates in groups.values() for rate in (rates[0], rates[-1])]
    inner = [rate for rates in groups.values() for rate in rates[1:-1]]
    means = [sum(rates) / len(rates) for rates in groups.values()]
    claims = []
    if inner:
        outside, inside = sum(ends) / len(ends), sum(inner) / len(inner)
        measured = f"first and last of a group run for {outside:.0%} of images, the others for {inside:.0%}"
        claims.append(Claim("first and last blocks of a group matter most", measured, verdict(outside - inside)))
    if len(means) == 3:
        measured = ", ".join(f"group {number + 1} {mean:.0%}" for number, mean in enumerate(means))
        margin = means[1] - max(means[0], means[2])
        claims.append(Claim("the second group is skipped least", f"executed: {measured}", verdict(margin)))
    return claims
