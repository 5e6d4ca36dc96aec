"""Pricing: what usage costs, from a rate card that is reviewed data.

`rates.json` holds the rates, `rows` refuses a card that is not sound, `rate_card` answers what applies to a model at an instant, and `rating` is the
one calculator: charges, the gateway's fast total and ceilings all read the same tables. See docs/RATES.md.
"""
