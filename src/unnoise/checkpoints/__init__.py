"""Checkpoints: files in, files out, a room for each format.

    store/          bytes: the header of a safetensors file, its tensors, a whole write, the hub's cache
    layouts/        names: a table for each published layout, from our parameters to its keys, run in both directions
    folder/         diffusers' folders: read, written, and their configs as one two-way table
    pickles/        old pickled checkpoints, made into safetensors by a process of its own
    adapters/       LoRA and its relatives, and learned words

    keys.py         Layout: how such a table is run
    found.py        Part, Found: what a file turned out to hold
    native.py       unnoise's own file, one format among the others
    recognise.py    what a path is: which format reads it, or why none does
    inspect.py      the same as a record for people, by headers alone
    save.py         a model written in a layout

A path is read in this order: `recognise.model(path)` asks each format in turn, by keys and shapes alone, and the one that knows the file
answers with a Found: the spec, and for each network its config, its Layout and its Weights. `Part.load` then builds the network around
the file's tensors. `save.model` runs the same tables the other way round.
"""
