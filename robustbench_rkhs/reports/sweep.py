"""The report of a sweep: every setting with its mean over seeds, the Pareto front, and the picked setting."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.reports.figures import figure, save, small_print
from robustbench_rkhs.reports.pareto import pareto
from robustbench_rkhs.reports.tables import bullets, csv, markdown, write_bytes
from robustbench_rkhs.runtime.sinks import for_line, for_markdown, for_markdown_code
from robustbench_rkhs.verdicts.axes import MARKERS, PALETTE, label, percent

QUANTITIES = ("clean", "robust", "certified")
Row = dict[str, Any]
"""A setting: trial, state, reason, setting, runs; after `summarised` also mean, std and worst of every quantity."""


def summarised(rows: Sequence[Row], pick: str) -> list[Row]:
    """The rows with their statistics over seeds; `front` and `picked` are set among the complete rows with a score.

    `pick`: the quantity by which a setting is picked; ties go to the higher clean accuracy, then to the earlier trial.
    """
    found = []
    for row in rows:
        own = dict(row) | {"front": False, "picked": False}
        for key in QUANTITIES:
            values = [run[key] for run in row["runs"] if run[key] is not None]
            whole = row["state"] == "complete" and len(values) == len(row["runs"]) > 0
            own[key] = statistics.mean(values) if whole else None
            own[f"{key}_std"] = statistics.stdev(values) if whole and len(values) > 1 else None
            own[f"{key}_worst"] = min(values) if whole else None
        found.append(own)
    upright = "certified" if pick == "certified" else "robust"
    scored = [row for row in found if row[pick] is not None]
    for row, front in zip(scored, pareto([(row["clean"], row[upright]) for row in scored]), strict=True):
        row["front"] = front
    if scored:
        max(scored, key=lambda row: (row[pick], row["clean"], -row["trial"]))["picked"] = True
    return found


def write_sweep(report: dict[str, Any], stem: str | Path) -> list[Path]:
    """STEM.csv (one row per setting), .md and the trade-off figure. Raises UserError where they cannot be written."""
    texts = {"csv": settings_csv(report), "md": _markdown(report)}
    return [*(write_bytes(Path(f"{stem}.{kind}"), text) for kind, text in texts.items()), *draw_sweep(report, stem)]


def settings_csv(report: dict[str, Any]) -> str:
    """One row per setting."""
    statistic = [f"{key}{end}" for key in QUANTITIES for end in ("", "_std", "_worst")]
    columns = ["state", "seeds", *statistic, "front", "picked", "reason"]
    rows = [
        {"trial": row["trial"], **_cells(row["setting"]), "seeds": len(row["runs"])}
        | {key: row[key] for key in columns if key in row}
        | {key: report["about"][key] for key in ("pick", "eps", "norm", "data", "data_digest", "device", "date", "command")}
        for row in report["settings"]
    ]
    return csv(pd.DataFrame(rows))


def runs_csv(report: dict[str, Any]) -> str:
    """One row per trained network."""
    kept = ("seed", *QUANTITIES, "refused", "epoch", "weights", "folder", "device", "date", "key")
    rows = [
        {"trial": row["trial"], "state": row["state"], **_cells(row["setting"])} | {key: run.get(key, "") for key in kept}
        for row in report["settings"]
        for run in row["runs"]
    ]
    return csv(pd.DataFrame(rows, columns=None if rows else ["trial"]))


def draw_sweep(report: dict[str, Any], stem: str | Path) -> list[Path]:
    """STEM.png, .pdf, .svg: clean versus robust (or certified, if picked by it) accuracy on validation images.

    One faint dot per run, one marker with standard deviation per setting; colour and shape show the first two fields that were
    varied over at most seven values. The line is the Pareto front, the ring the picked setting.
    """
    about = report["about"]
    upright = "certified" if about["pick"] == "validation_certified" else "robust"
    scored = [row for row in report["settings"] if row["clean"] is not None and row[upright] is not None]
    shown = [(key, values) for key, values in about["values"].items() if 1 < len(values) <= len(PALETTE)][:2]
    with figure(7.2, 4.2) as (drawn, axes):
        for row in scored:
            places = [values.index(_word(row["setting"][key])) for key, values in shown]
            look: dict[str, Any] = {"color": PALETTE[places[0]] if places else PALETTE[0]}
            marker = MARKERS[places[1]] if len(places) > 1 else "o"
            runs = row["runs"]
            axes.plot([r["clean"] for r in runs], [r[upright] for r in runs], "o", ms=3.5, mew=0, alpha=0.4, **look)
            spread = {"xerr": row["clean_std"], "yerr": row[f"{upright}_std"]}
            axes.errorbar(row["clean"], row[upright], fmt=marker, ms=6.5, mec="white", mew=0.6, elinewidth=0.7, **spread, **look)
            if row["picked"]:
                axes.plot(row["clean"], row[upright], "o", ms=15, mfc="none", mec="black", mew=1.3, zorder=5)
        front = sorted((row["clean"], row[upright]) for row in scored if row["front"])
        axes.plot([x for x, _ in front], [y for _, y in front], color="#444444", lw=1, ls=(0, (4, 2)), zorder=1)
        _legend(axes, shown, len(about["seeds"]) > 1)
        axes.set_xlabel("clean accuracy, validation")
        axes.set_ylabel(f"{upright} accuracy at {about['norm']} eps {radius_text(about['eps'])}, validation")
        percent(axes, "x")
        percent(axes, "y")
        axes.margins(0.08)
        title = f"{about['name']}: {about['data']}, {about['images']} validation images, seeds {_list(about['seeds'])}"
        axes.set_title(title, loc="left", fontsize=9)
        if not scored:
            axes.annotate("no setting has a score", (0.5, 0.5), xycoords="axes fraction", ha="center")
        small_print(drawn, [origin(about)])
        return save(drawn, stem)


def _legend(axes: Axes, shown: Sequence[tuple[str, list[str]]], seeds: bool) -> None:
    """The legend of colours and shapes."""
    for which, (key, values) in enumerate(shown):
        for place, value in enumerate(values):
            look: dict[str, Any] = (
                {"color": PALETTE[place], "marker": "o"} if which == 0 else {"color": "#777777", "marker": MARKERS[place]}
            )
            axes.plot([], [], ls="", ms=6, label=f"{key} {value}", **look)
    axes.plot([], [], color="#444444", lw=1, ls=(0, (4, 2)), label="front of the means")
    axes.plot([], [], "o", ms=10, mfc="none", mec="black", mew=1.2, label="picked")
    label(axes, [], "dots: runs; bars: standard\ndeviation over seeds" if seeds else "one run a setting")


def origin(about: dict[str, Any]) -> str:
    """The origin of the numbers: command, device, date, seeds, digest of the data."""
    return (
        f"{about['command']}, {about['device']}, {about['date']}, seeds {_list(about['seeds'])}, "
        f"data {about['data']} {about['data_digest'][:12]}, torch {about['torch']}"
    )


def _markdown(report: dict[str, Any]) -> str:
    about, rows = report["about"], report["settings"]
    picked = next((row for row in rows if row["picked"]), None)
    heads = ["trial", *about["fields"], "state", *QUANTITIES, "worst seed", ""]
    pick = about["pick"].removeprefix("validation_")
    cells = [
        [
            str(row["trial"]),
            *(_word(row["setting"].get(key)) for key in about["fields"]),
            row["state"],
            *(_share(row[key], row[f"{key}_std"]) for key in QUANTITIES),
            _share(row[f"{pick}_worst"], None),
            ", ".join(word for word in ("front", "picked") if row[word]),
        ]
        for row in rows
    ]
    reasons = bullets([f"Trial {row['trial']}, {row['state']}: {row['reason']}" for row in rows if row["reason"]])
    chosen = "No setting has a score."
    if picked:
        setting = ", ".join(f"{for_markdown_code(key)} {for_markdown(_word(value))}" for key, value in picked["setting"].items())
        best = for_line(about["best"])
        again = f"rkhs-train --model {Path(best).parent}/trials/TRIAL/seed-SEED/recipe.yaml --out checkpoints/mine"
        chosen = (
            f"Picked by {about['pick']}: {setting} (trial {picked['trial']}); ready as {for_markdown_code(best)}.\n\n"
            f"    rkhs-train --model {best} --out checkpoints/mine\n\n"
            "Any other setting is trained again from the `recipe.yaml` of its runs: "
            f"{for_markdown_code(again)}."
        )
    parts = [
        f"# Sweep {for_markdown(about['name'])}\n",
        *([f"{for_markdown(about['about'])}\n"] if about["about"] else []),
        f"{for_markdown(origin(about))}.\n",
        f"{about['sampler']}, {len(rows)} settings of {for_markdown_code(about['recipe'])}, each trained with seeds "
        f"{_list(about['seeds'])}; "
        f"measured on {about['images']} validation images: clean, robust under PGD "
        f"({about['norm']}, eps {radius_text(about['eps'])}, "
        f"{about['steps']} steps), certified at that eps by the margin certificate. Mean over seeds ± standard deviation.\n",
        f"{chosen}\n",
        markdown(heads, cells),
        "\n".join([*reasons, ""]) if reasons else "",
        "The test images played no part. The best of many on validation is favoured by chance: it is a choice, not a result; "
        "results come from `rkhs-eval`.\n",
    ]
    return "\n".join(part for part in parts if part)


def _cells(setting: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, (int, float, str)) else json.dumps(value) for key, value in setting.items()}


def _word(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _share(value: float | None, std: float | None) -> str:
    return "-" if value is None else f"{value:.1%}" + ("" if std is None else f" ± {100 * std:.1f}")


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
