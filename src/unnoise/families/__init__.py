"""What a model is, as data: no file is read here.

spec.py     ModelSpec: the configs of a model's networks by place, its process, its prediction, its defaults
table.py    FAMILIES: one spec for each published family
papers.py   PUBLISHED: the published models and what their papers print of them, as `unnoise compare` lists them
"""
