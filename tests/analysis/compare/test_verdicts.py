import pytest

from gpubench.analysis.compare import verdicts
from gpubench.analysis.compare.verdicts import Comparison, caveat, exit_code, parse_fail_on
from gpubench.errors import InputError


def rows(*names: str, **changes) -> list[Comparison]:
    fixed = {"key": "k", "label": "l", "metric": "p50 [ns]", **changes}
    return [Comparison(verdict=name, **fixed) for name in names]


def test_exit_code_precedence():
    assert exit_code(rows("EQUIVALENT", "IMPROVED")) == 0
    assert exit_code(rows("EQUIVALENT", "INCONCLUSIVE")) == 3
    assert exit_code(rows("INCOMPARABLE")) == 3
    assert exit_code(rows("MISSING", "INCONCLUSIVE")) == 4
    assert exit_code(rows(*verdicts.VERDICTS)) == 1
    assert exit_code([]) == 4


@pytest.mark.parametrize(
    ("fail_on", "seen", "code"),
    [
        ("none", tuple(verdicts.VERDICTS), 0),
        ("none", (), 0),
        ("regressed", ("MISSING", "INCONCLUSIVE", "INCOMPARABLE", "IMPROVED"), 0),
        ("regressed", (), 4),
        ("regressed,missing", (), 4),
        ("regressed", ("REGRESSED", "MISSING"), 1),
        ("improved", ("IMPROVED", "REGRESSED"), 1),
        ("regressed,missing,inconclusive,incomparable", ("IMPROVED",), 0),
        ("inconclusive", ("MISSING", "INCONCLUSIVE", "REGRESSED"), 3),
        (" Missing , incomparable", ("INCOMPARABLE",), 3),
        ("missing,incomparable", ("INCOMPARABLE", "MISSING"), 4),
    ],
)
def test_only_what_was_asked_for_fails(fail_on, seen, code):
    assert exit_code(rows(*seen), parse_fail_on(fail_on)) == code


def test_the_default_is_everything_that_is_not_a_pass():
    assert parse_fail_on("regressed,missing,inconclusive,incomparable") == verdicts.FAIL_ON
    assert {v.lower() for v in verdicts.VERDICTS} == verdicts.FAIL_ON | {"improved", "equivalent"}


@pytest.mark.parametrize("text", ["regresed", "", "regressed,", "none,missing", "equivalent"])
def test_a_word_that_is_no_verdict_is_named_with_the_valid_ones(text):
    wrong = {"": "''", "regressed,": "''", "none,missing": "'none'"}.get(text, repr(text))
    valid = "regressed, missing, incomparable, inconclusive, improved"
    with pytest.raises(InputError, match=f"{wrong} is not one of {valid}"):
        parse_fail_on(text)


def test_the_caveat_is_for_stored_runs_alone():
    assert caveat(rows("REGRESSED", n=(3, 3))) == verdicts.CAVEAT
    assert caveat([*rows("MISSING"), *rows("EQUIVALENT", n=(3, 3))]) == verdicts.CAVEAT
    assert caveat(rows("REGRESSED", n=(8, 8), pairs=8, interleaved=True)) == ""
    assert caveat(rows("MISSING")) == caveat([]) == ""
