"""Folders of diffusers: model_index.json, and for each component a folder with its config.json and its weights."""
