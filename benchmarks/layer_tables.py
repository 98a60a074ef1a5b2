"""What a record of layers.py says: achieved rates, the machine's limits, the table and its summary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import harness

Run = dict[str, Any]
Row = dict[str, Any]

STOCK = ("stock-nhwc", "stock-nchw", "compile")
# A layer's arithmetic at the rate that FMAs from registers had in the same rounds: what the machine gave.
PACE = "fma"
# A layer counts as behind a peer below this share of the peer's speed: less is noise.
BEHIND = 0.97


# Rates and limits -------------------------------------------------------------------------------------------


def median_ms(row: Row, name: str) -> float:
    return row["contestants"][name]["ms"]["median"]


def gflops(row: Row, name: str) -> float:
    """What this contestant achieved."""
    return row["flops"] / median_ms(row, name) / 1e6


def limit_ms(run: Run, row: Row) -> float:
    """The longer of the row's arithmetic at the peak of its dtype, and its bytes at the speed of a copy.

    Tensors that stay in a cache can be faster than that.
    """
    if "bytes" not in row:  # the sum
        return sum(one["count"] * limit_ms(run, one) for one in run["rows"])
    limits = run["probe"]
    return max(row["flops"] / limits["dtype_gflops"], row["bytes"] / limits["copy_gbps"]) / 1e6


# Comparisons ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rival:
    """The fastest of some contestants on a row, and its time over sepconv's."""

    name: str
    ratio: float

    def __str__(self) -> str:
        return f"{harness.times(self.ratio)} {self.name}"


def is_peer(name: str) -> bool:
    return not name.startswith("sepconv") and name != PACE


def fastest(row: Row, names: Iterable[str]) -> Rival | None:
    rivals = [
        Rival(name, row["contestants"][name]["ratio"]["median"])
        for name in names
        if "ratio" in row["contestants"].get(name, {})
    ]
    return min(rivals, key=lambda rival: rival.ratio, default=None)


def best_peer(row: Row) -> Rival | None:
    return fastest(row, filter(is_peer, row["contestants"]))


def best_stock(row: Row) -> Rival | None:
    return fastest(row, STOCK)


def behind(run: Run) -> str:
    """On how many distinct layers the best peer is ahead by more than noise."""
    rivals = [rival for row in run["rows"] if (rival := best_peer(row))]
    return f"{sum(rival.ratio < BEHIND for rival in rivals)} of {len(rivals)}" if rivals else "-"


def worst(run: Run) -> str:
    """The layer where the best peer does best."""
    rivals = [(rival.ratio, row["name"], rival.name) for row in run["rows"] if (rival := best_peer(row))]
    if not rivals:
        return "-"
    ratio, layer, name = min(rivals)
    return f"{harness.times(ratio)} {layer} ({name})"


# For people -------------------------------------------------------------------------------------------------


def shares(run: Run, row: Row) -> list[str]:
    """The baseline's share of the FMA rate of the same rounds, of the FMA peak, and of the limit."""
    name = run["baseline"]
    if name not in row["contestants"]:
        return ["-", "-", "-"]
    peak, limit = gflops(row, name) / run["probe"]["gflops"], limit_ms(run, row) / median_ms(row, name)
    pace = row["contestants"].get(PACE)
    return [f"{pace['ratio']['median']:.0%}" if pace else "-", f"{peak:.0%}", f"{limit:.0%}"]


def total(run: Run) -> Row:
    return run["total"] | {"name": f"sum of {run['total']['count']} layers"}


def contestants(runs: Iterable[Run]) -> list[str]:
    """Those that ran in any of these runs, in the order they were asked for."""
    return list(
        dict.fromkeys(
            name
            for run in runs
            for name in run["settings"]["contestants"]
            if any(name in row["contestants"] for row in run["rows"])
        )
    )


def table(run: Run) -> str:
    """A line a layer: each contestant's time and ratio, then the shares of sepconv."""
    names = contestants([run])

    def cells(row: Row) -> list[str]:
        repeated = f" (x{row['count']})" if row.get("bytes") and row["count"] > 1 else ""
        unsteady = "" if row.get("probe", {}).get("steady", True) else " ~"
        times = [harness.time_and_ratio(row["contestants"].get(name)) for name in names]
        return [row["name"] + repeated + unsteady, *times, *shares(run, row)]

    rows = [cells(row) for row in [*run["rows"], total(run)]]
    return harness.table(["layer, ms", *names, "of FMA rate", "of FMA peak", "of limit"], rows)


def summary(run: Run) -> list[str]:
    """What the rows come to, a line each question that the run can answer."""
    row, ours = total(run), run["baseline"]
    if ours not in row["contestants"]:
        return []
    pace, peak, limit = shares(run, row)
    stock, peer = best_stock(row), best_peer(row)
    against = [f"{what} {rival}" for what, rival in (("best stock", stock), ("best peer", peer)) if rival]
    rate = [f"{pace} of the FMA rate"] if PACE in row["contestants"] else []  # not in older records
    shared = ", ".join([*rate, f"{peak} of the FMA peak", f"{limit} of the limit", *against])
    lines = [f"{row['name']}: {shared}"]
    if peer:
        lines.append(f"behind the best peer (below {BEHIND}x) on {behind(run)} layers, worst {worst(run)}")
    if f"{ours}-nchw" in row["contestants"]:
        lines.append(_nchw(row, f"{ours}-nchw"))
    if "sepconv-float32" in row["contestants"]:
        lines += _narrow(run)
    return lines + _twins(run)


def _nchw(row: Row, name: str) -> str:
    text = f"NCHW: {harness.times(row['contestants'][name]['ratio']['median'])} the time of NHWC"
    if "stock-nchw" in row["contestants"]:
        ratio = median_ms(row, "stock-nchw") / median_ms(row, name)
        text += f", stock-nchw takes {harness.times(ratio)} as long as {name}"
    return text


def _narrow(run: Run) -> list[str]:
    """A narrower dtype against float32, and its errors against stock's."""
    gains = [(row["contestants"]["sepconv-float32"]["ratio"]["median"], row["name"]) for row in run["rows"]]
    low, high = min(gains), max(gains)
    lines = [
        f"sepconv in float32 takes {harness.times(low[0])} ({low[1]}) to {harness.times(high[0])} ({high[1]})"
        f" as long as in {run['settings']['dtype']}"
    ]
    errors = [
        (row["contestants"]["sepconv"]["error"] / row["contestants"]["stock-nhwc"]["error"], row["name"])
        for row in run["rows"]
        if "stock-nhwc" in row["contestants"]
    ]
    if errors:
        ratio, layer = max(errors)
        lines.append(f"error against float64: at most {ratio:.2f} of stock-nhwc's ({layer})")
    return lines


def _twins(run: Run) -> list[str]:
    """Rows named GROUP.WINDOW: how much further from the limit than GROUP.3x3 they are."""
    costs = {
        row["name"]: median_ms(row, run["baseline"]) / limit_ms(run, row)
        for row in run["rows"]
        if run["baseline"] in row["contestants"]
    }
    ratios = [
        (cost / costs[twin], name)
        for name, cost in costs.items()
        if (twin := f"{name.rpartition('.')[0]}.3x3") in costs and twin != name
    ]
    if not ratios:
        return []
    ratio, name = max(ratios)
    return [f"time over limit, against the 3x3 twin's: at most {harness.times(ratio)} ({name})"]


def notes(run: Run) -> list[str]:
    """What the table leaves out: the limits, unsteady rows, absent contestants and why."""
    limits = run["probe"]
    lines = [
        f"FMA peak {limits['gflops']:.0f} GFLOP/s ({limits['method']}); "
        f"limit: {limits['dtype_gflops']:.0f} GFLOP/s ({limits['dtype_method']}), "
        f"{limits['copy_gbps']:.1f} GB/s (copy from memory)"
    ]
    if any(not row["probe"]["steady"] for row in run["rows"]):
        lines.append(
            f"~ the FMA probe changed by more than {harness.PROBE_TOLERANCE:.0%} while this row was measured"
        )
    reasons = {name: reason for row in run["rows"] for name, reason in row["missing"].items()}
    return lines + [f"{name}: {reason}" for name, reason in reasons.items()]
