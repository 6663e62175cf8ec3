"""Checkpoints: folders of safetensors and JSON with a digest manifest."""

from __future__ import annotations
