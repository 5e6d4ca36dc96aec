"""Tokenweir: meter, price, limit and show the tokens a team spends on the Claude API."""

__version__ = "0.1.0"
