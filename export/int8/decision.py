"""Whether an INT8 file is worth it: what it loses against the file one would take otherwise, and its speed."""

from collections.abc import Mapping

from export.bundle.manifest import Precision, QuantizationDecision, Speedup

LEAST_SPEED_UP = 1.1
"""A file that is not faster by this is not worth a second look at its accuracy."""
LARGEST_CLASS_LOSS = 0.02
"""Largest loss of AP of any class."""


def decide(
    *,
    against: Precision,
    map_loss: float,
    per_class_loss: Mapping[str, float],
    max_map_loss: float,
    speed_up: Mapping[Precision, Speedup],
) -> QuantizationDecision:
    """Return the verdict on an INT8 file.

    It is worth it when mAP and the AP of each class hold and it is faster than every file in float, in the slowest
    round too. Where nothing was timed it is not worth it when accuracy does not hold, and else undecided.

    Args:
        against: The file whose accuracy it is compared with.
        map_loss: mAP of that file less that of the INT8 file.
        per_class_loss: Loss of AP by class.
        max_map_loss: Largest loss of mAP.
        speed_up: By the file it was timed beside; empty for a file that is meant for another machine.
    """
    reasons, told = [], [f"mAP changes by {-100 * map_loss:+.2f} points"]
    if map_loss > max_map_loss:
        reasons.append(f"it loses {100 * map_loss:.2f} points of mAP, more than {100 * max_map_loss:g}")
    if per_class_loss:
        worst = max(per_class_loss, key=lambda name: per_class_loss[name])
        told.append(f"AP of {worst}, the class that loses most, by {-100 * per_class_loss[worst]:+.2f}")
        if per_class_loss[worst] > LARGEST_CLASS_LOSS:
            reasons.append(f"{worst} loses {100 * per_class_loss[worst]:.2f} points of AP")
    for name, one in speed_up.items():
        line = f"{one.median:.2f} times as fast as {name} (rounds {one.least:.2f} to {one.most:.2f})"
        (told if one.median >= LEAST_SPEED_UP and one.least > 1 else reasons).append(line)
    if not speed_up:
        told.append("its speed is unmeasured, as it is meant for a GPU")
    return QuantizationDecision(
        against=against,
        map_loss=map_loss,
        per_class_loss=dict(per_class_loss),
        speed_up=dict(speed_up),
        worth_it=False if reasons else True if speed_up else None,
        reason="; ".join(reasons or told),
    )
