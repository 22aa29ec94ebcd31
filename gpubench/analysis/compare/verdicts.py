"""What a comparison of two arms or two runs can say, and what that means for an exit code."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gpubench.analysis.compare import sequential_test
from gpubench.analysis.summary import Summary
from gpubench.errors import InputError
from gpubench.records.record import FAILURES

VERDICTS = {
    "REGRESSED": "slower, or worse in what else is judged, by more than the margin",
    "MISSING": "failed, skipped or not planned in an arm",
    "INCOMPARABLE": "not made on the same kind of machine, or another question",
    "INCONCLUSIVE": "neither a change nor its absence is shown",
    "IMPROVED": "faster, or better, by more than the margin",
    "EQUIVALENT": "the whole interval lies inside the margin",
}
"""Every verdict, the most urgent first."""

CODES = sequential_test.CODES | {
    "beyond-history": "the change is larger than the machine's A/A sessions allow for",
    "no-history": "looks changed, but too few A/A sessions of this machine say what is normal",
    "within-history": "looks changed, but A/A sessions of this machine have differed as much",
    "identical": "both arms have exactly the same",
    "few-pictures": "some answers changed, and the pictures are too few to tell the margin",
    "once": "made once in each arm, so nothing is known of its noise",
    "no-figure": "not recorded, or of too few samples",
    "no-answers": "no answers, or no labels, in the records of one side",
    "other-pictures": "asked about other pictures, or with other classes",
    "few-repeats": "fewer than two repeats on one side: no interval",
    "unsteady": "samples drift or are too few: no settled machine was measured",
    "invalid-machine": "heat, a pause, other processes or replicas that ran apart spoilt it",
    "different-machine": "the fingerprints differ",
    "different-question": "the arms' networks take inputs of different sizes",
    "failed": "it broke on one side or on both",
    "skipped": "skipped on one side: unavailable or unsupported there",
    "no-record": "planned, but the file holds no record of it",
    "not-planned": "one of the two runs does not have this cell",
    "no-value": "measured, but nothing can be computed from the samples",
}
"""Reason code -> what it means: `sequential_test`'s, and those that it knows nothing of."""

MACHINE = ("THROTTLED", "CO-TENANT", "FROZEN", "NO-COMMON-WINDOW", "BUSY-WHILE-IDLE")
"""Flags of outside evidence that what was measured is not the arm alone."""
UNSTEADY = ("DRIFT", "NO-STEADY-STATE", "FEW-SAMPLES", *MACHINE)
"""Flags that forbid a verdict on stored runs: the samples do not show a settled machine."""

CAVEAT = (
    "Two stored runs confound the session with the code: take a difference as a reason to measure "
    "both again, interleaved, not as a proof."
)
"""Goes with every comparison of stored runs that is shown; see `caveat`."""

FAIL_ON = frozenset({"regressed", "missing", "inconclusive", "incomparable"})
"""Verdicts that fail a comparison unless others are asked for."""
_ALLOWED = (*sorted(FAIL_ON, key=[v.lower() for v in VERDICTS].index), "improved")


class Comparison(Struct, frozen=True, kw_only=True):
    """One metric of a cell in two runs, or in the two arms of an interleaved A/B."""

    key: str
    label: str
    metric: str
    """'p50 [ns]' (in brackets: lower is better) or 'images/s' (higher is better). Where the arms'
    batch sizes or scenarios differ 'images/s (batch sizes differ)': their latencies cannot be
    compared. Of others `metrics.TITLES`: 'host memory [bytes]', 'accuracy', ..."""
    judged: str = "speed"
    """Which of `gpubench.suite.gate.METRICS` it is."""
    baseline: float | None = None
    candidate: float | None = None
    ratio: float | None = None
    """candidate / baseline of the metric."""
    difference: float | None = None
    """candidate - baseline, of accuracy and agreement in place of the ratio: shares of pictures."""
    low: float | None = None
    high: float | None = None
    """95 % interval of the ratio, or of the difference."""
    changed: tuple[int, int] | None = None
    """Pictures answered otherwise than by the baseline, of so many."""
    n: tuple[int, int] = (0, 0)
    """Repeats (pairs; pictures) of the baseline and of the candidate."""
    verdict: str
    code: str = ""
    """Why, for programs: a key of `CODES`."""
    reason: str = ""
    smallest_detectable: float | None = None
    """The slowdown (0.05: 5 %) that this would have found 95 times in 100; None: none, ever."""
    pairs: int = 0
    """Pairs of processes behind the verdict; 0 for two stored runs."""
    interleaved: bool = False
    """Of the two arms of one A/B, and not of two stored runs."""
    pair_sd: float | None = None
    """Standard deviation of log(candidate / baseline) over the pairs."""
    p: float | None = None
    """Of the test that gave REGRESSED or IMPROVED, corrected for the number of cells and looks: at
    most the metric's share of alpha."""
    baseline_key: str = ""
    """The baseline's cell where it is another one: A/B of two backends."""

    def told(self, verdict: str, code: str, reason: str) -> Comparison:
        """With a verdict, its code and its reason."""
        return replace(self, verdict=verdict, code=code, reason=reason)


def caveat(comparisons: Sequence[Comparison]) -> str:
    """What a reader must know of how these were measured; '' for an interleaved A/B."""
    return CAVEAT if any(any(c.n) and not c.interleaved for c in comparisons) else ""


def parse_fail_on(text: str) -> frozenset[str]:
    """'regressed,missing' -> the verdicts that fail; 'none': none does. Raises InputError."""
    words = [word.strip().lower() for word in text.split(",")]
    if words == ["none"]:
        return frozenset()
    for word in words:
        if word not in _ALLOWED:
            raise InputError(
                f"--fail-on {text!r}: {word!r} is not one of {', '.join(_ALLOWED)}; "
                "'none' alone lets nothing fail"
            )
    return frozenset(words)


def exit_code(comparisons: Sequence[Comparison], fail_on: Collection[str] = FAIL_ON) -> int:
    """0 pass, 1 regression (or improvement), 4 missing, 3 inconclusive or incomparable.

    The first that holds, of the verdicts (in lower case) in ``fail_on``: a regression is reported
    before anything else, then a hole in the evidence, then weak evidence. Nothing compared is a
    hole, whatever ``fail_on`` names, unless it is empty.
    """
    if not comparisons:
        return 4 if fail_on else 0
    seen = {c.verdict.lower() for c in comparisons}
    bad = seen.intersection(fail_on)
    if bad & {"regressed", "improved"}:
        return 1
    if "missing" in bad:
        return 4
    return 3 if bad else 0


def lost(baseline: Summary | None, candidate: Summary | None) -> tuple[str, str] | None:
    """(code, reason) where a side has no result that may be compared; None when both have one."""
    sides = (("baseline", baseline), ("candidate", candidate))
    holes = [(_hole(s), name) for name, s in sides if s is None or not s.ranked or not s.values]
    if not holes:
        return None
    worst = min((code for (code, _), _ in holes), key=list(CODES).index)
    return worst, "; ".join(f"{name}: {words}" for (_, words), name in holes)


def apart(baseline: Summary, candidate: Summary) -> str:
    """Why the arms of an A/B answer two questions; ''."""
    both = (*baseline.broken, *candidate.broken)
    return next((r.reason for r in both if r.kind == "incomparable"), "")


def _hole(s: Summary | None) -> tuple[str, str]:
    if s is None:
        return "not-planned", "not planned"
    if s.ranked:
        return "no-value", f"no value: {', '.join(s.flags) or 'no samples'}"
    if s.status == "missing":
        return "no-record", "no record"
    reason = next((r.reason for r in s.broken if r.reason), "")
    code = "failed" if s.status.startswith("failed") else "skipped"
    return code, f"{s.status} ({reason})" if reason else s.status


def failures(baseline: Summary, candidate: Summary) -> str:
    """'candidate: 1 of 12 failed: crash (signal 11)' where some repeats did; '' where none did."""
    words = []
    for name, s in (("baseline", baseline), ("candidate", candidate)):
        for r in s.broken[:1]:
            share = f"{len(s.broken)} of {len(s.records)} failed"
            why = r.reason or FAILURES.get(r.kind, "no reason recorded")
            words.append(f"{name}: {share}: {r.kind or 'error'} ({why})")
    return "; ".join(words)
