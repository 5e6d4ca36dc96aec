"""Usage that did not pass the gateway: finding and reading what other programs wrote down about it."""
