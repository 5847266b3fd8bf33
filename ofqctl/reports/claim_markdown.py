"""A claim of a paper and what was measured of it, as Markdown."""

from ofqctl.reports.markdown import block, plain, row
from ofqctl.results.study import CheckedClaim, ComparedPair, StudyReport
from ofqctl.studies.wording import kind_of, number


def claim_markdown(report: StudyReport, claim: CheckedClaim) -> str:
    """What is claimed, each pair of rows that it compares, and the verdict."""
    kind = kind_of(report, claim.figure)
    shown = kind.model_copy(update={"signed": True})

    def line(pair: ComparedPair) -> str:
        apart = number(pair.difference, shown)
        error = "" if pair.error is None else f" ± {number(pair.error, kind, bare=True)}"
        return row([plain(pair.first), plain(pair.second), plain(apart + error), pair.verdict])

    lines = [
        f"### {block(claim.says)}\n",
        f"Here: **{claim.verdict}**.\n",
        row(["better, by the claim", "than", f"difference in {plain(kind.title)}", ""]),
        row(["---", "---", "---:", "---"]),
        *map(line, claim.pairs),
    ]
    return "\n".join(lines) + "\n"
