"""Sentences on a study: what its teacher can teach, which variants lose, and whether the best one is clearly first."""

from collections.abc import Sequence

from ifkd.study.study_record import SeedSpread, StudyRecord, map_difference, map_spread
from ifkd.study.variants import PLAIN


def study_verdict(record: StudyRecord) -> tuple[str, ...]:
    """Return a sentence for each variant that ends clearly below the plain student, and one about the first place.

    If a plain student reaches the teacher, a sentence before them says so: then there is little to teach.
    A difference is clear if the 95 % interval of the differences paired by seed does not contain 0.
    """
    variants = [label for label in record.students if label != PLAIN.label and record.finished(label)]
    if PLAIN.label not in record.students or not variants:
        return ()
    teacher = _weak_teacher(record)
    if len(record.seeds) == 1:
        return (*teacher, "One seed has no interval, so no difference is proved.")
    gains = {label: gain for label in variants if (gain := map_difference(record, label)) is not None}
    return (*teacher, *_losses(gains), *_first_place(record, variants))


def _weak_teacher(record: StudyRecord) -> list[str]:
    """Return a sentence if plain students are as good as the teacher on average."""
    plain = map_spread(record.finished(PLAIN.label))
    if plain is None or plain.mean < 100 * record.teacher.mean_ap:
        return []
    figures = f"{plain.mean:.1f} against {100 * record.teacher.mean_ap:.1f} points of mAP"
    advice = "train a stronger teacher, for example with a wider pyramid, more epochs or larger tiles"
    return [f"A plain student reaches the teacher ({figures}), so there is little to teach: {advice}."]


def _losses(gains: dict[str, SeedSpread]) -> list[str]:
    """Return a sentence for each variant whose interval is below 0."""
    below = {label: gain for label, gain in gains.items() if gain.interval[1] < 0}
    sentences = [f"{label} is clearly below the plain student: {_described(gain)}." for label, gain in below.items()]
    if below:
        advice = 'lower the weight, or set distillation.balance.form = "gradient"'
        sentences.append(
            f"Where gradient/… in metrics.jsonl is above 10 at the end, the method rules the task: {advice}."
        )
    return sentences


def _first_place(record: StudyRecord, variants: Sequence[str]) -> list[str]:
    """Return a sentence on whether the best variant is clearly above all others, but other rows of its method."""
    means = {label: spread.mean for label in variants if (spread := map_spread(record.finished(label)))}
    first, *others = sorted(means, key=lambda label: -means[label])
    absent = [label for label in record.students if label not in means and label != PLAIN.label]
    rivals = [label for label in [*others, PLAIN.label, *absent] if _method(label) != _method(first)]
    found = {rival: map_difference(record, first, rival) for rival in rivals}
    unclear = [rival for rival, one in found.items() if one is None or one.interval[0] <= 0]
    closest = unclear[0] if unclear else rivals[0]
    difference = found[closest]
    described = f"{first} against {closest}: {_described(difference)}" if difference else f"{first}, {closest}: no pair"
    return [f"No variant is clearly first ({described})." if unclear else f"{first} is clearly first ({described})."]


def _method(label: str) -> str:
    """Return the method of a row of a comparison, such as `fgd` of the tuned row `fgd+weight=3`."""
    return label.partition("+")[0] if "=" in label else label


def _described(difference: SeedSpread) -> str:
    """Return a paired difference in words."""
    low, high = difference.interval
    interval = f"95 % interval {low:+.1f} to {high:+.1f}, " if difference.std is not None else ""
    noun = "seed" if difference.seeds == 1 else "seeds"
    return f"{difference.mean:+.1f} points of mAP, {interval}{difference.seeds} paired {noun}"
