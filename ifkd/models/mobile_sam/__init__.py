"""MobileSAM as a frozen source of embeddings and masks."""
