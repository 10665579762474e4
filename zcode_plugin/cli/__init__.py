"""The `zcode` command: one module a verb, none of which imports torch or fairseq at its top."""
