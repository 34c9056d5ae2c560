"""Plots"""

from __future__ import annotations


def draw(data, path):
    return []
