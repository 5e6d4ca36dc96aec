"""The provider's formats, bytes in and values out: the only package that spells a JSON key of the Claude API.

Nothing here does input or output, knows the time, or changes a byte that is relayed. `envelope` reads requests, `messages` reads answers, `sse` splits
streams, `headers` decides what passes and reads what headers say, `faults` spells our own errors and judges the provider's.
"""
