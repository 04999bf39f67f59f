"""Adapter files: LoRA and its relatives, and textual inversion.

files.py        a file read onto the networks at hand, and written
words.py        textual inversion: vectors of new tokens
keys.py         which module a key is of, and which part of its change, in every dialect
names.py        what each dialect calls our modules
families.py     which family a file was trained for
"""
