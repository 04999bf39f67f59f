"""Bytes: what a safetensors file holds, how one is written whole, and where the hub's files lie."""
