"""Names of the files and folders that `ifkd detect` writes."""

PRODUCER = "ifkd detect"
"""Start of the key `producer` in the records, which marks files as written by the command."""

RUN_FILE = "run.json"
DETECTION_FILES = {
    "geojson": "detections.geojson",
    "gpkg": "detections.gpkg",
    "coco": "detections.coco.json",
    "csv": "detections.csv",
    "parquet": "detections.parquet",
}
"""Output format -> file name."""
DEFAULT_FORMATS = ("geojson", "gpkg", "coco", "csv")
QUICKLOOK_FILE = "quicklook.png"
QUICKLOOK_DETAIL_FILE = "quicklook_detail.png"
MAP_FILE = "map.html"
ITEM_FILE = "detections.stac.json"
PICTURE_FILES = (QUICKLOOK_FILE, QUICKLOOK_DETAIL_FILE, MAP_FILE)
RESULT_FILES = (*map(DETECTION_FILES.__getitem__, DEFAULT_FORMATS), *PICTURE_FILES, ITEM_FILE)
"""Files of a scene, except the run record, that are written unless options exclude them."""
CROPS_FOLDER = "crops"
OWN_FILES = (*RESULT_FILES, DETECTION_FILES["parquet"], CROPS_FOLDER)
"""All files and folders of a scene except the run record."""

SUMMARY_FILE = "summary.json"
SUMMARY_PAGE_FILE = "summary.html"
COLLECTION_FILE = "collection.json"
BATCH_FILES = (SUMMARY_FILE, SUMMARY_PAGE_FILE, COLLECTION_FILE)
"""Files of a batch run, in the parent folder of its scenes' folders."""

STATE_FOLDER = ".ifkd-detect"
"""Folder with the state of an unfinished run of a scene, in its output folder."""
BATCH_STATE_FOLDER = ".ifkd-detect-batch"
"""Folder with the state of an unfinished batch run, in the parent folder of its scenes' folders."""
