"""Lets the tests of this folder import what they have in common (`cases`)."""

from __future__ import annotations
