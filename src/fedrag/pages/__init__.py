"""The report page: what a run left, as one HTML file for people to read."""

from fedrag.pages.curves import read_history, read_log
from fedrag.pages.page import Written, write_page

__all__ = ["Written", "read_history", "read_log", "write_page"]
