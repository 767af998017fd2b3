"""What is built on a victim or on audits as a whole: one question each."""

from __future__ import annotations
