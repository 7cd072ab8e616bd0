"""What an audit may say: a leak, no leak by these attacks at this power, or nothing.

    leak found       an attack, a count of copies, completion or the test of the whole set is beyond
                     chance at 5 % in all (Bonferroni over everything that was tried)
    no leak found    by these attacks, at the power that the number of images gives
    no verdict       a control failed: members and non-members differ, the attacks cannot see a
                     planted leak, or there are too few images to see even a strong one

Without a positive control it says so: whether the attacks see a planted leak here is not known
then. It never says that a model is safe.
"""

from typing import Any

from underpaint.privacy import controls, statistics

UNCHECKED = "not checked against a positive control"
ERROR = 0.05  # chance of a false alarm, over all tests together


def count_tests(attacks: int, spaces: int) -> int:
    """Tests among which the error is shared.

    `attacks`: membership scores, with the calibrated ones; `spaces` in which copies are counted,
    each by two ratios and two thresholds; 0 of sealed images, of which neither copies nor
    completion can be tried. One more: the data set as a whole.
    """
    return attacks + (4 * spaces + 1 if spaces else 0) + 1


def few(members: int, non_members: int) -> list[str]:
    """Warnings: what so few images cannot show."""
    least = statistics.REQUIRED[0.01]
    if non_members >= least:
        return []
    return [
        f"{non_members} non-members: below {least} the share of members found at a false-positive "
        "rate of 1 % is not shown, and intervals are wide."
    ]


def judge(result: dict[str, Any], tests: int) -> dict[str, Any]:
    """`verdict`, the `reasons` if there is none, and the `findings`, of an audit's numbers."""
    findings = _findings(result, ERROR / tests)
    reasons = _reasons(result)
    if result["detectable"] > controls.ENOUGH and not findings:
        reasons.append(
            f"{result['members']} members and {result['non_members']} non-members are too few to "
            f"see even a leak with an AUC of {controls.ENOUGH}"
        )
    verdict = "no verdict" if reasons else "leak found" if findings else "no leak found"
    checked = result["controls"]["positive"] is not None
    return {"verdict": verdict, "reasons": reasons, "findings": findings, "checked": checked}


def sentence(result: dict[str, Any]) -> str:
    """The verdict with its counts and its power, in a line."""
    text = f"{result['verdict']}: {result['members']:,} members, {result['non_members']:,} "
    text += f"non-members; the smallest AUC that would be seen is {result['detectable']:.2f}"
    return text if result["checked"] else f"{text}; {UNCHECKED}"


def _reasons(result: dict[str, Any]) -> list[str]:
    """Controls that failed."""
    reasons = []
    blind, reference = (result["controls"]["null"][k] for k in ("blind", "reference"))
    positive = result["controls"]["positive"]
    if not blind["passed"]:
        reasons.append("members and non-members can be separated without asking the model")
    if reference and not reference["passed"]:
        reasons.append("the attacks succeed on a reference model that saw neither side")
    if positive is not None and not positive["passed"]:
        reasons.append(
            f"the attacks do not see a planted leak (AUC {positive['best']:.2f}, and "
            f"{controls.ENOUGH} is needed)"
        )
    return reasons


def _findings(result: dict[str, Any], level: float) -> list[str]:
    """What is beyond chance at `level`, which holds for each test."""
    findings = []
    for name, attack in result["membership"].items():
        if attack["p_value"] < level:
            findings.append(f"membership by {name}: AUC {attack['auc']['value']:.3f}")
    for space, copies in (result["copies"] or {}).get("spaces", {}).items():
        for name, counts in copies["ratios"].items():
            third, quantile = counts["third"], counts["quantile"]
            beyond = quantile is not None and quantile["p_value"] < level
            if third.get("p_value", 1.0) < level or beyond:
                count = quantile["count"] if beyond else third["count"]
                findings.append(
                    f"copies in {space} by the ratio {name}: {count} of {copies['samples']}"
                )
    completion = result["completion"]
    if completion and completion["p_value"] < level:
        findings.append(f"completion: advantage {completion['advantage']:.4f}")
    if result["dataset"]["p_value"] < level:
        findings.append(f"data set as a whole: p = {result['dataset']['p_value']:.2g}")
    return findings
