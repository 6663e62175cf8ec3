"""The pages of a preference study: nothing but a page, pictures and a place for answers."""

from __future__ import annotations
