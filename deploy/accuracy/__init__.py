"""COCO metrics of checkpoints, bundles and scenes."""
