"""The paper's Tables 3 and 4, to stand beside a study on its data sets: RetinaNet, ResNet-50 to MobileNetV2."""

from typing import Literal

DataSet = Literal["sar_aircraft", "shiprsimagenet"]
TABLE_3: dict[DataSet, dict[str, tuple[float, float, float]]] = {
    "sar_aircraft": {
        "teacher": (53.2, 74.0, 60.1),
        "student": (53.3, 76.7, 59.2),
        "frs": (52.3, 75.8, 60.4),
        "fgd": (52.8, 75.8, 59.0),
        "arsd": (52.6, 78.0, 59.7),
        "insdist": (50.2, 75.1, 59.3),
        "fitnet": (52.6, 78.2, 55.5),
        "fkd": (52.8, 77.3, 59.3),
        "ifkd": (54.9, 78.5, 59.2),
    },
    "shiprsimagenet": {
        "teacher": (45.9, 56.8, 51.2),
        "student": (40.6, 52.8, 45.8),
        "frs": (45.4, 58.4, 51.2),
        "fgd": (44.5, 57.2, 50.8),
        "arsd": (43.8, 57.8, 49.7),
        "insdist": (42.3, 56.2, 47.3),
        "fitnet": (41.0, 53.3, 45.8),
        "fkd": (40.1, 54.0, 44.8),
        "ifkd": (46.1, 59.8, 51.5),
    },
}
"""mAP, AP50 and AP75, percent; attention transfer has no row there."""
TABLE_4 = {
    "at": 53.0, "at+ede": 57.1, "at+fdr": 56.4, "at+hsm": 57.0, "at+ede+fdr": 57.4, "at+ede+hsm": 57.7,
    "at+fdr+hsm": 57.6, "at+ede+fdr+hsm": 59.8,
}  # fmt: skip
"""AP50 on ShipRSImageNet, percent."""


def figures(label: str, data_set: DataSet | None) -> str:
    """Return what the paper prints for a row on one of its data sets, or nothing."""
    if data_set is None:
        return ""
    if label in TABLE_3[data_set]:
        return " / ".join(f"{value:.1f}" for value in TABLE_3[data_set][label])
    return f"– / {TABLE_4[label]:.1f} / –" if data_set == "shiprsimagenet" and label in TABLE_4 else ""
