"""What a model of a shape needs of machines: arithmetic for `zcode plan`."""
