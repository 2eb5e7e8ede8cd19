"""The paper's Tables 3 and 4 for RetinaNet with a ResNet-50 teacher and a MobileNetV2 student."""

from typing import Literal

PaperDataset = Literal["sar_aircraft", "shiprsimagenet"]
TABLE_3: dict[PaperDataset, dict[str, tuple[float, float, float]]] = {
    "sar_aircraft": {
        "teacher": (53.2, 74.0, 60.1), "student": (53.3, 76.7, 59.2), "frs": (52.3, 75.8, 60.4),
        "fgd": (52.8, 75.8, 59.0), "arsd": (52.6, 78.0, 59.7), "insdist": (50.2, 75.1, 59.3),
        "fitnet": (52.6, 78.2, 55.5), "fkd": (52.8, 77.3, 59.3), "ifkd": (54.9, 78.5, 59.2),
    },
    "shiprsimagenet": {
        "teacher": (45.9, 56.8, 51.2), "student": (40.6, 52.8, 45.8), "frs": (45.4, 58.4, 51.2),
        "fgd": (44.5, 57.2, 50.8), "arsd": (43.8, 57.8, 49.7), "insdist": (42.3, 56.2, 47.3),
        "fitnet": (41.0, 53.3, 45.8), "fkd": (40.1, 54.0, 44.8), "ifkd": (46.1, 59.8, 51.5),
    },
}  # fmt: skip
"""mAP, AP50 and AP75 in percent. The table has no row for attention transfer."""
TABLE_4 = {
    "at": 53.0, "at+ede": 57.1, "at+fdr": 56.4, "at+hsm": 57.0, "at+ede+fdr": 57.4, "at+ede+hsm": 57.7,
    "at+fdr+hsm": 57.6, "at+ede+fdr+hsm": 59.8,
}  # fmt: skip
"""AP50 on ShipRSImageNet in percent."""


def paper_metrics(label: str, dataset: PaperDataset | None) -> str:
    """Return "mAP / AP50 / AP75" as published for a variant on a data set; empty where nothing is published."""
    if dataset is None:
        return ""
    if label in TABLE_3[dataset]:
        return " / ".join(f"{value:.1f}" for value in TABLE_3[dataset][label])
    return f"– / {TABLE_4[label]:.1f} / –" if dataset == "shiprsimagenet" and label in TABLE_4 else ""
