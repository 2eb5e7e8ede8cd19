"""Style of detections in a GeoPackage: QGIS draws the boxes in the colors of their classes, with labels.

QGIS loads the default style of a layer from the table `layer_styles`, where its dialog "Save as default" writes, too.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pyogrio.raw

from ifkd.core.html.colors import class_color

STYLE_TABLE = "layer_styles"
UTC_OFFSET = 100
"""GDAL's number of the time zone UTC."""
LABEL = """"class_name" || ' ' || format_number("score", 2)"""
OUTSIDE_POLYGONS = 8
"""QGIS's number of a placement of labels."""


def write_style(path: Path, classes: Sequence[str], *, layer: str, time: str) -> None:
    """Write the default style of a layer into a GeoPackage, with a time (RFC 3339, UTC) of its last change."""
    texts = {
        "f_table_catalog": "",
        "f_table_schema": "",
        "f_table_name": layer,
        "f_geometry_column": "geom",
        "styleName": "classes",
        "styleQML": qml(classes),
        "styleSLD": "",
        "description": "Boxes and labels by class",
        "owner": "",
        "ui": "",
    }
    fields = {name: np.array([text], object) for name, text in texts.items()}
    fields["useAsDefault"] = np.array([True])
    fields["update_time"] = np.array([time.removesuffix("Z")], "datetime64[ms]")
    pyogrio.raw.write(
        path,
        geometry=None,
        field_data=list(fields.values()),
        fields=list(fields),
        layer=STYLE_TABLE,
        driver="GPKG",
        layer_options={"FID": "id"},
        gdal_tz_offsets={"update_time": np.array([UTC_OFFSET])},
    )


def qml(classes: Sequence[str]) -> str:
    """Return the style of boxes with the properties `class_name` and `score` in QGIS's format."""
    root = ET.Element("qgis", version="3.22.0", styleCategories="Symbology|Labeling", labelsEnabled="1")
    renderer = ET.SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class_name")
    categories, symbols = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    for number, name in enumerate(classes):
        category = {"value": name, "label": name, "symbol": f"{number}", "type": "string", "render": "true"}
        ET.SubElement(categories, "category", category)
        symbol = ET.SubElement(symbols, "symbol", type="fill", name=f"{number}", alpha="1")
        layer = ET.SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1"})
        options = ET.SubElement(layer, "Option", type="Map")
        color = ",".join(map(str, class_color(number)))
        line = {"outline_color": f"{color},255", "outline_style": "solid", "outline_width": "0.5"}
        for key, value in {"style": "no", **line, "outline_width_unit": "MM"}.items():
            ET.SubElement(options, "Option", name=key, value=value, type="QString")
    settings = ET.SubElement(ET.SubElement(root, "labeling", type="simple"), "settings")
    text = {"fieldName": LABEL, "isExpression": "1", "fontSize": "8", "fontSizeUnit": "Point"}
    text_style = ET.SubElement(settings, "text-style", {**text, "textColor": "0,0,0,255"})
    buffer = {"bufferDraw": "1", "bufferSize": "0.7", "bufferSizeUnits": "MM", "bufferColor": "255,255,255,255"}
    ET.SubElement(text_style, "text-buffer", buffer)
    ET.SubElement(settings, "placement", placement=f"{OUTSIDE_POLYGONS}")
    return ET.tostring(root, encoding="unicode")
