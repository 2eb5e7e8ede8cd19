"""Description of a bundle for catalogs and readers: model.stac.json and README.md, written from the manifest."""

from export.bundle.bundle import Bundle, add_file
from export.bundle.manifest import ReportSummary
from export.bundle.model_card import model_card
from export.bundle.stac_item import model_item
from ifkd.core.files import write_json, write_text

ITEM_NAME = "model.stac.json"
CARD_NAME = "README.md"


def describe(bundle: Bundle, *, report: ReportSummary | None = None) -> Bundle:
    """Write both files into a bundle, or replace them, and return the bundle with a manifest that records them.

    The results of a `report` replace those that the manifest has; without one, they are kept.
    """
    if report is not None:
        bundle = Bundle(bundle.path, bundle.manifest.model_copy(update={"report": report}))
    write_json(bundle.path / ITEM_NAME, model_item(bundle.manifest))
    write_text(bundle.path / CARD_NAME, model_card(bundle.manifest))
    for name in (ITEM_NAME, CARD_NAME):
        bundle = add_file(bundle, name, kind="description")
    return bundle
