"""The provider's formats, without input or output: the only package that spells a JSON key of the Claude API."""
