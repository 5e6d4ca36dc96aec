"""Reports on usage that no ledger holds: answers gathered from transcripts, grouped, and drawn for terminal, file and browser."""
