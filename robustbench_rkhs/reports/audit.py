"""The audit of claims as json, csv, Markdown, and on the terminal."""

from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from robustbench_rkhs.reports.tables import bullets, csv, markdown, write_bytes
from robustbench_rkhs.runtime.seals import write_record
from robustbench_rkhs.runtime.sinks import for_markdown
from robustbench_rkhs.verdicts.axes import in_words

CLAIMS = ["claim", "claimed", "measured [95%]", "left by attacks [95%]", "difference", "verdict", "cause"]
MISTAKES = ["mistake", "would certify [95%]", "off the claim", "broken at eps", "broken nearer", "reproduces the claim"]
SHOWN = 6
"""Mistakes listed per claim on the terminal; the files list all."""
NOTE = (
    "measured: proved for certified claims, neither disproved nor broken for robust ones (no attack proves robustness), "
    "right for clean ones. Upheld: the claim is within the 95% limits of what is measured, or below. Refuted: above the limits of "
    "what attacks left. Not proved: between. A cause is a known mistake that raises the certified share to the claim, within its "
    "95% limits; that it would is no proof that it was made."
)
BROKEN = (
    "broken at eps: images it would certify for which an adversarial image within eps is known; broken nearer: for which one is "
    "known inside the very radius it gives, of all it would certify."
)


def _domain(about: dict[str, Any]) -> str:
    return in_words(about["data"], about["norm"], about["box"])


def write_audit(report: dict[str, Any], stem: str | Path) -> list[Path]:
    """STEM.json (everything, sealed), .csv (one row per claim and mistake) and .md. Raises UserError where not writable."""
    texts = {"csv": _csv(report), "md": _markdown(report)}
    write_record(Path(f"{stem}.json"), report, indent=1)
    return [Path(f"{stem}.json"), *(write_bytes(Path(f"{stem}.{kind}"), text) for kind, text in texts.items())]


def console_audit(report: dict[str, Any]) -> list[Table]:
    """Tables for a terminal: the claims, and the mistakes that come closest to each claim that is not upheld."""
    about = report["about"]
    claims = Table(
        title=f"{about['model']}: claims, {_domain(about)}, {about['samples']} images",
        title_justify="left",
    )
    for column in CLAIMS:
        claims.add_column(column, justify="right" if column in CLAIMS[1:5] else "left")
    for cells in _claims(report):
        claims.add_row(*cells)
    tables = [claims]
    for row in report["claims"]:
        own = [mistake for mistake in report["mistakes"] if mistake["claim"] == row["claim"]][:SHOWN]
        if not own or row["verdict"] == "upheld":
            continue
        table = Table(title=f"known mistakes nearest to {row['claim']}", title_justify="left")
        for column in MISTAKES:
            table.add_column(column, justify="left" if column == MISTAKES[0] else "right")
        for mistake in own:
            table.add_row(*_mistake(mistake))
        tables.append(table)
    tables[-1].caption = "; ".join(findings(report)) or "shares of images in percent"
    return tables


def findings(report: dict[str, Any]) -> list[str]:
    """Further remarks, one line each."""
    lines = [f"no certificate: {line}" for line in report["refused"]]
    lines += [f"stale cache: {path} gives its old answer after its weights have changed" for path in report["stale"]]
    lines += report["notes"]
    if not report["about"]["complete"]:
        lines.append("incomplete: the budget ended first, with images untested")
    if report["breaches"]:
        lines.append(f"UNSOUND: {report['breaches']} proved images were broken; nothing of this may be published")
    return lines


def _claims(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            row["claim"],
            f"{100 * row['claimed']:.1f}%",
            _limits(row, "measured", "measured_low", "measured_high"),
            _limits(row, "standing", "standing_low", "standing_high"),
            f"{100 * row['difference']:+.1f}",
            row["verdict"],
            _cause(row),
        ]
        for row in report["claims"]
    ]


def _cause(row: dict[str, Any]) -> str:
    if row["causes"]:
        return "; ".join(row["causes"][:3])
    return f"none reproduces it; nearest: {row['nearest']}" if row["nearest"] else "-"


def _mistake(row: dict[str, Any]) -> list[str]:
    return [
        row["mistake"],
        _limits(row, "certified", "low", "high"),
        f"{100 * (row['certified'] - row['claimed']):+.1f}",
        f"{row['broken_within_eps']} of {row['certificates']}",
        f"{row['broken_within_radius']} of {row['certificates']}",
        "yes" if row["reproduces"] else "no",
    ]


def _limits(row: dict[str, Any], share: str, low: str, high: str) -> str:
    return f"{100 * row[share]:.1f}% [{100 * row[low]:.1f}, {100 * row[high]:.1f}]"


def _csv(report: dict[str, Any]) -> str:
    about = {key: report["about"][key] for key in ("model", "weights", "data", "data_digest", "samples", "seed", "date", "command")}
    rows = []
    for row in report["claims"]:
        rows.append({"row": "claim", **row, "causes": "; ".join(row["causes"])})
        rows += [{"row": "mistake", **mistake} for mistake in report["mistakes"] if mistake["claim"] == row["claim"]]
    return csv(pd.DataFrame([row | about for row in rows]))


def _markdown(report: dict[str, Any]) -> str:
    about = report["about"]
    parts = [
        f"# Audit of {for_markdown(about['model'])}\n",
        for_markdown(
            f"{about['command']}, {about['date']}, seed {about['seed']}, weights {about['weights'][:12]}, "
            f"data {about['data_digest'][:12]}, torch {about['versions']['torch']}; {about['samples']} images, {_domain(about)}; "
            f"certificates {', '.join(about['certificates']) or 'none'}; attacks {', '.join(about['protocol'])}."
        )
        + "\n",
        "## Claims\n",
        markdown(CLAIMS, _claims(report)),
        f"{NOTE}\n",
    ]
    lines = findings(report)
    if lines:
        parts += ["\n".join(bullets(lines)) + "\n"]
    for row in report["claims"]:
        own = [mistake for mistake in report["mistakes"] if mistake["claim"] == row["claim"]]
        if own:
            parts += [
                f"## Known mistakes beside {for_markdown(row['claim'])}\n",
                markdown(MISTAKES, [_mistake(mistake) for mistake in own]),
            ]
    if report["mistakes"]:
        parts += [f"{BROKEN}\n"]
    return "\n".join(parts)
