"""Pages that open anywhere without a network: what all of them share."""
