"""The telemetry receiver: takes what Claude Code exports over OTLP, books the calls, and keeps the metrics as a cross-check."""
