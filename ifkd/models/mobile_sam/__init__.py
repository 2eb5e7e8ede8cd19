"""MobileSAM's frozen encoder and its prompt-free mask decoder."""
