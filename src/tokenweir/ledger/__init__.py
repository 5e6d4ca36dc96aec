"""The records of the journal and the ledger, and what is derived from them."""
