"""A claim of a paper and what was measured of it, as Markdown."""

from ofqctl.reports.markdown import block, plain, row
from ofqctl.results.study import CheckedClaim, ComparedPair, StudyReport
from ofqctl.studies.wording import apart, kind_of


def claim_markdown(report: StudyReport, claim: CheckedClaim) -> str:
    """What is claimed, each pair of rows that it compares, and the verdict."""

    def line(pair: ComparedPair) -> str:
        return row([plain(pair.first), plain(pair.second), plain(apart(report, claim, pair)), pair.verdict])

    lines = [
        f"### {block(claim.says)}\n",
        f"Here: **{claim.verdict}**.\n",
        row(["better, by the claim", "than", f"difference in {plain(kind_of(report, claim.figure).title)}", ""]),
        row(["---", "---", "---:", "---"]),
        *map(line, claim.pairs),
    ]
    return "\n".join(lines) + "\n"
