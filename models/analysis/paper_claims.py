"""Check the paper's claims about easy and hard images (SkipNet, section 5 and figures 7 to 10) on an analysis."""

from dataclasses import dataclass

from models.analysis.schema import AlterationEffect, Analysis

APPEARANCE = (("brightness", "high brightness"), ("contrast", "high contrast"), ("sharpness", "fine detail"))
CLEAR = 0.05
"""The least rank correlation, or difference in blocks or execution rates, that counts as a difference."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and its measurement; ``holds`` is "yes", "no", "in part" or "no difference"."""

    claim: str
    measured: str
    holds: str


def check_claims(analysis: Analysis) -> list[Claim]:
    """Return the paper's claims. Those about dogs and trucks are included only if the data set has both."""
    altered = {effect.name: effect for effect in analysis.altered}
    correlation = {effect.name: effect.correlation for effect in analysis.appearance}
    claims = [
        Claim(
            f"images of {more} are easy",
            f"rank correlation of {name} and blocks {correlation[name]:+.2f}",
            verdict(-correlation[name]),
        )
        for name, more in APPEARANCE
    ]
    claims += [
        check_alteration(altered[name], strength, claim)
        for name, strength, claim in (
            ("brightness", 0.5, "the same image, half as bright, is harder"),
            ("contrast", 0.5, "the same image with half the contrast is harder"),
            ("blur", 2.0, "the same image, blurred, is harder"),
            ("scale", 0.75, "the same image, smaller, executes less"),
            ("scale", 1.5, "the same image, larger, executes more"),
        )
    ]
    return [*claims, *check_classes(analysis), *check_blocks(analysis)]


def verdict(measured: float) -> str:
    """Return whether a value that should be positive is."""
    return "no difference" if abs(measured) < CLEAR else "yes" if measured > 0 else "no"


def check_alteration(effect: AlterationEffect, strength: float, claim: str) -> Claim:
    """Return whether the executed blocks change as claimed at a strength."""
    before = effect.blocks[effect.strengths.index(effect.neutral)]
    after = effect.blocks[effect.strengths.index(strength)]
    sign = -1 if claim.endswith("less") else 1
    return Claim(claim, f"{before:.2f} to {after:.2f} blocks", verdict(sign * (after - before)))


def check_classes(analysis: Analysis) -> list[Claim]:
    """Return the claim about dogs and trucks."""
    ranks = {routes.label: (place + 1, routes.blocks) for place, routes in enumerate(analysis.classes)}
    if not {"dog", "truck"} <= ranks.keys():
        return []
    (dog, dog_blocks), (truck, truck_blocks) = ranks["dog"], ranks["truck"]
    ranked = f"ranks {dog} and {truck} of {len(ranks)} from the easiest"
    measured = f"dog {dog_blocks:.2f} blocks, truck {truck_blocks:.2f}; {ranked}"
    halves = (dog > len(ranks) / 2) + (truck <= len(ranks) / 2)
    return [Claim("dogs are hard, trucks easy", measured, ("no", "in part", "yes")[halves])]


def check_blocks(analysis: Analysis) -> list[Claim]:
    """Return the claims about the position of blocks in their group."""
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
