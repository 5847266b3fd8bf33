"""A claim of a paper and what was measured of it, as Markdown."""

from ofqctl.results.study import CheckedClaim, ComparedPair, StudyReport
from ofqctl.studies.wording import PLAIN, number


def claim_markdown(report: StudyReport, claim: CheckedClaim) -> str:
    """What is claimed, each pair of rows that it compares, and the verdict."""
    kind = report.kinds.get(claim.figure, PLAIN)
    shown = kind.model_copy(update={"signed": True})

    def line(pair: ComparedPair) -> str:
        apart = number(pair.difference, shown)
        error = "" if pair.error is None else f" ± {number(pair.error, kind, bare=True)}"
        return f"| {pair.first} | {pair.second} | {apart}{error} | {pair.verdict} |"

    lines = [
        f"### {claim.says}\n",
        f"Here: **{claim.verdict}**.\n",
        f"| better, by the claim | than | difference in {kind.title} | |",
        "| --- | --- | ---: | --- |",
        *map(line, claim.pairs),
    ]
    return "\n".join(lines) + "\n"
