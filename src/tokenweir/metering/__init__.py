"""From admitted request to booked entry: meter, journal, and the read side of the ledger."""
