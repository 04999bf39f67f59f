"""How published files name their tensors: one table a layout, from our modules' paths to their keys.

Each file here has, for every network that its authors publish, `<network>_config` (sizes, from shapes alone; `hints` say what shapes
cannot, such as the number of heads) and `<network>` (the `Layout`, from the config).
"""
