"""What the exports of other programs say: one row in, one imported call, nothing, or a refusal with its reason out. Pure."""
