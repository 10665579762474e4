"""The page of `zcode report`: reads what a run left, draws it, and writes it down."""
