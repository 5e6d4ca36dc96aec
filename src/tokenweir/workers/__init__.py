"""Background work: books the journal into the ledger and keeps derived state true."""
